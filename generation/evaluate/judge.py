"""A judge of videos: a small network that predicts words of a video's caption from the video.

The words are in groups (colours, directions, …), and a caption has one word of each group. The judge is
trained only on real clips. It is used for a group only if it is right about real clips that it has not seen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generation import draws
from generation.evaluate import scores

FIT = 0.99  # a group is judged if the judge is right about this share of held-out real clips
_WIDTHS = (32, 64, 96, 128, 128, 128)
_NARROWEST = 4  # pixels of a side before pooling, about
_BATCH = 32

Attributes = Mapping[str, Sequence[str]]  # group -> its words


def labels(captions: Sequence[str | None], attributes: Attributes) -> Tensor:
    """(N, groups) int64: the word of each group in a caption, as its number; -1: none or several."""
    rows = []
    for caption in captions:
        words = set(re.findall(r"\w+", (caption or "").lower()))
        found = [
            [k for k, word in enumerate(group) if word.lower() in words] for group in attributes.values()
        ]
        rows.append([places[0] if len(places) == 1 else -1 for places in found])
    return torch.tensor(rows, dtype=torch.int64).reshape(len(captions), len(attributes))


class JudgeNet(nn.Module):
    """Maps videos (B, 3, T, side, side) in [-1, 1] to features (B, D), and these to scores of all words."""

    def __init__(self, attributes: Attributes, side: int):
        super().__init__()
        levels = max(1, round(math.log2(side / _NARROWEST)))
        widths = _WIDTHS[:levels]
        layers: list[nn.Module] = [nn.Conv3d(3, widths[0], (1, 4, 4), (1, 2, 2), (0, 1, 1))]
        for before, after in pairwise(widths):
            layers += [nn.GroupNorm(8, before), nn.SiLU(), nn.Conv3d(before, after, 3, (1, 2, 2), 1)]
        layers += [
            nn.GroupNorm(8, widths[-1]),
            nn.SiLU(),
            nn.Conv3d(widths[-1], widths[-1], 3, 1, 1),
            nn.SiLU(),
        ]
        self.layers = nn.Sequential(*layers)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(2 * widths[-1], len(words)) for name, words in attributes.items()}
        )

    def features(self, video: Tensor) -> Tensor:
        """Features (B, D): mean and maximum over time and place."""
        x = self.layers(video)  # (B, C, T, h, w)
        return torch.cat([x.mean((2, 3, 4)), x.amax((2, 3, 4))], 1)

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """Scores (B, words) by group."""
        features = self.features(video)
        return {name: head(features) for name, head in self.heads.items()}


@dataclass(frozen=True)
class Judge:
    """A trained judge. accuracy: by group, on real clips that are not in its training set."""

    net: JudgeNet
    attributes: Attributes
    side: int  # videos are scaled to squares of so many pixels
    accuracy: Mapping[str, float]

    @property
    def unfit(self) -> list[str]:
        """Groups that the judge must not judge."""
        return [name for name, right in self.accuracy.items() if not right >= FIT]

    @torch.no_grad()
    def read(self, videos: Tensor) -> Tensor:
        """The numbers of the words that videos (N, 3, T, H, W) show: (N, groups)."""
        found = [self.net(part) for part in self._parts(videos)]
        return torch.cat(
            [torch.stack([part[n].argmax(1) for n in self.attributes], 1) for part in found]
        ).cpu()

    @torch.no_grad()
    def features(self, videos: Tensor) -> Tensor:
        """Features (N, D) float64 of videos (N, 3, T, H, W), to compare sets of videos."""
        return torch.cat([self.net.features(part) for part in self._parts(videos)]).cpu().double()

    def _parts(self, videos: Tensor) -> list[Tensor]:
        device = next(self.net.parameters()).device
        return [scaled(part, self.side).to(device) for part in videos.split(_BATCH)]


def scaled(videos: Tensor, side: int) -> Tensor:
    """Scale videos (B, C, T, H, W) to squares of `side` pixels, bicubic."""
    if videos.shape[-2:] == (side, side):
        return videos
    # Parts of a batch save memory, as copies of thousands of videos would be gigabytes.
    return torch.cat([scores.resized(part, side, side) for part in videos.split(_BATCH)])


def train(
    videos: Tensor,
    truth: Tensor,
    attributes: Attributes,
    held_out: tuple[Tensor, Tensor],
    steps: int,
    seed: int = 0,
    device: torch.device | None = None,
) -> Judge:
    """Train a judge on real clips `videos` (N, 3, T, H, W) with words `truth` (N, groups).

    held_out: clips and words that measure its accuracy. device: of the training; None means the device of
    the videos. Raises `ValueError` for a word that no clip has.
    """
    for k, (name, words) in enumerate(attributes.items()):
        missing = [word for j, word in enumerate(words) if not bool((truth[:, k] == j).any())]
        if missing:
            raise ValueError(
                f"attributes.{name}: none of {len(truth)} captions has {', '.join(missing)} as its only "
                "word of the group; leave the word out, take a dataset whose captions have the word, or take "
                "more clips with judge_clips"
            )
    device = device or videos.device
    side = min(videos.shape[-2:])
    known = (truth >= 0).any(1)  # other clips teach nothing, and a batch of only such clips has no loss
    if not bool(known.all()):
        videos, truth = videos[known], truth[known]
    videos, truth = scaled(videos, side).cpu(), truth.cpu()  # random draws are made on the CPU
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = JudgeNet(attributes, side).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    order = torch.cat(
        [
            torch.randperm(len(videos), generator=draws.generator("judge", seed, k))
            for k in range(1 + steps * _BATCH // len(videos))
        ]
    )
    for step in range(steps):
        rows = order[step * _BATCH : (step + 1) * _BATCH]
        made = net(_varied(videos[rows], draws.generator("judge varies", seed, step)).to(device))
        target = truth[rows].to(device)
        loss = sum(
            F.cross_entropy(made[name], target[:, k], ignore_index=-1)
            for k, name in enumerate(attributes)
            if bool((target[:, k] >= 0).any())
        )
        optimizer.zero_grad()
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()
    judge = Judge(net, dict(attributes), side, {})
    right = accuracy(judge.read(held_out[0]), held_out[1])
    return Judge(net, dict(attributes), side, dict(zip(attributes, right, strict=True)))


def accuracy(read: Tensor, truth: Tensor) -> list[float]:
    """The share of right rows of each group, over rows with a word of the group; NaN without such rows.

    read, truth: (N, groups).
    """
    known = truth >= 0
    right = (read == truth) & known
    return (right.sum(0) / known.sum(0)).tolist()


def joint(read: Tensor, truth: Tensor) -> float:
    """The share of rows with all groups right, over rows with words of all groups; NaN without such rows."""
    known = (truth >= 0).all(1)
    return float((read == truth)[known].all(1).double().mean()) if bool(known.any()) else math.nan


def _varied(videos: Tensor, generator: torch.Generator) -> Tensor:
    """Videos with changes that keep their words: a small move, lighter or darker, and a little noise."""
    b, _, _, h, w = videos.shape
    reach = max(1, min(h, w) // 10)
    padded = F.pad(videos.flatten(1, 2), (reach,) * 4, mode="replicate").unflatten(1, videos.shape[1:3])
    moves = torch.randint(0, 2 * reach + 1, (b, 2), generator=generator).tolist()
    moved = torch.stack([p[..., y : y + h, x : x + w] for p, (y, x) in zip(padded, moves, strict=True)])
    gain = 1 + 0.1 * torch.randn((b, 1, 1, 1, 1), generator=generator)
    offset = 0.05 * torch.randn((b, 3, 1, 1, 1), generator=generator)
    return moved * gain + offset + 0.03 * torch.randn(moved.shape, generator=generator)
