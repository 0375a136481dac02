"""Patch discriminators for a video autoencoder (after PatchGAN, Isola et al. 2017).

One discriminator judges single frames, and one judges space and time together. A high score means that the
discriminator takes the patch for real video.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

SHORTEST = 4  # frames that the discriminator of space and time needs


class Discriminator(nn.Module):
    """Judges videos (B, 3, T, H, W) in [-1, 1]. width: channels of the first layer, a multiple of 8."""

    def __init__(self, width: int):
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.frames = _patches(nn.Conv2d, widths)
        self.videos = _patches(nn.Conv3d, widths)

    def forward(self, video: Tensor) -> list[Tensor]:
        """Scores (B, N) of the patches of frames, and, from SHORTEST frames on, (B, M) of the video."""
        count, _, length = video.shape[:3]
        scores = [self.frames(video.transpose(1, 2).flatten(0, 1)).reshape(count, -1)]
        if length >= SHORTEST:
            scores.append(self.videos(video).flatten(1))
        return scores


def _patches(conv: type[nn.Conv2d] | type[nn.Conv3d], widths: Sequence[int]) -> nn.Sequential:
    """A discriminator. Each layer except the last two halves the sides. Norms do not depend on the batch."""
    layers: list[nn.Module] = [conv(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
    for k, (narrow, wide) in enumerate(pairwise(widths)):
        last = k == len(widths) - 2
        layers.append(conv(narrow, wide, 3, 1, 1) if last else conv(narrow, wide, 4, 2, 1))
        layers += [nn.GroupNorm(8, wide), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, conv(widths[-1], 1, 3, 1, 1))


def hinge(real: Sequence[Tensor], made: Sequence[Tensor]) -> Tensor:
    """The discriminators' loss for each sample: (B,) (Lim and Ye 2017). Both discriminators count equally."""
    parts = [
        0.5 * (functional.relu(1 - r) + functional.relu(1 + m)).mean(1)
        for r, m in zip(real, made, strict=True)
    ]
    return sum(parts[1:], parts[0]) / len(parts)


def unconvinced(made: Sequence[Tensor]) -> Tensor:
    """The adversarial loss of the autoencoder for each sample: (B,)."""
    parts = [-m.mean(1) for m in made]
    return sum(parts[1:], parts[0]) / len(parts)
