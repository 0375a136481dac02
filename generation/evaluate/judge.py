"""A judge of videos: a small network that reads off a video which of some words its caption has.

The words come in groups of which a caption has one each (colours, directions, …). It is trained on real clips
alone, and counts for a group only where it is right about real clips that it has not seen.
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

FIT = 0.99  # of held-out real clips that must be right, for a group to be judged
_WIDTHS = (32, 64, 96, 128, 128, 128)
_NARROWEST = 4  # pixels a side that are left before what was seen is pooled
_BATCH = 32

Attributes = Mapping[str, Sequence[str]]  # group -> its words


def labels(captions: Sequence[str | None], attributes: Attributes) -> Tensor:
    """(N, groups) int64: which word of each group a caption has; -1 where it has none, or several."""
    rows = []
    for caption in captions:
        words = set(re.findall(r"\w+", (caption or "").lower()))
        found = [
            [k for k, word in enumerate(group) if word.lower() in words] for group in attributes.values()
        ]
        rows.append([places[0] if len(places) == 1 else -1 for places in found])
    return torch.tensor(rows, dtype=torch.int64).reshape(len(captions), len(attributes))


class JudgeNet(nn.Module):
    """Videos (B, 3, T, side, side) in [-1, 1] to features (B, D), and these to a score for every word."""

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
        """(B, D): mean and maximum over time and place."""
        x = self.layers(video)  # (B, C, T, h, w)
        return torch.cat([x.mean((2, 3, 4)), x.amax((2, 3, 4))], 1)

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        features = self.features(video)
        return {name: head(features) for name, head in self.heads.items()}


@dataclass(frozen=True)
class Judge:
    """A trained one. `accuracy`: on real clips that it was not trained on, by group."""

    net: JudgeNet
    attributes: Attributes
    side: int  # pixels, that videos are scaled to
    accuracy: Mapping[str, float]

    @property
    def unfit(self) -> list[str]:
        """Groups that it must not be asked about."""
        return [name for name, right in self.accuracy.items() if not right >= FIT]

    @torch.no_grad()
    def read(self, videos: Tensor) -> Tensor:
        """The word of each group that a video shows: (N, groups)."""
        found = [self.net(part) for part in self._parts(videos)]
        return torch.cat(
            [torch.stack([part[n].argmax(1) for n in self.attributes], 1) for part in found]
        ).cpu()

    @torch.no_grad()
    def features(self, videos: Tensor) -> Tensor:
        """What it saw before it says words, (N, D) float64, to compare sets of videos by."""
        return torch.cat([self.net.features(part) for part in self._parts(videos)]).cpu().double()

    def _parts(self, videos: Tensor) -> list[Tensor]:
        device = next(self.net.parameters()).device
        return [scaled(part, self.side).to(device) for part in videos.split(_BATCH)]


def scaled(videos: Tensor, side: int) -> Tensor:
    """(B, C, T, H, W) to squares of `side` pixels, bicubic."""
    if videos.shape[-2:] == (side, side):
        return videos
    # In parts: of thousands a copy or two would be gigabytes.
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
    """A judge of real clips `videos` (N, 3, T, H, W) with words `truth` (N, groups).

    held_out: clips and words that it is examined on. device: where it learns; that of the videos unless told.
    Raises `ValueError` for a word that no clip has.
    """
    for k, (name, words) in enumerate(attributes.items()):
        missing = [word for j, word in enumerate(words) if not bool((truth[:, k] == j).any())]
        if missing:
            raise ValueError(
                f"attributes.{name}: of {len(truth)} captions none has {', '.join(missing)} and no "
                "other word of the group; leave that out, or take a dataset whose captions say it, or more "
                "of its clips with judge_clips"
            )
    device = device or videos.device
    side = min(videos.shape[-2:])
    known = (truth >= 0).any(1)  # the others teach nothing, and a batch of them alone has no loss
    if not bool(known.all()):
        videos, truth = videos[known], truth[known]
    videos, truth = scaled(videos, side).cpu(), truth.cpu()  # there the draws are
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
    """Of each group, over the rows that have a word of it; NaN where none has."""
    known = truth >= 0
    right = (read == truth) & known
    return (right.sum(0) / known.sum(0)).tolist()


def joint(read: Tensor, truth: Tensor) -> float:
    """The share of rows where all groups are right, of those that have words of all."""
    known = (truth >= 0).all(1)
    return float((read == truth)[known].all(1).double().mean()) if bool(known.any()) else math.nan


def _varied(videos: Tensor, generator: torch.Generator) -> Tensor:
    """Moved a little, lighter or darker, with a little noise: what changes no word."""
    b, _, _, h, w = videos.shape
    reach = max(1, min(h, w) // 10)
    padded = F.pad(videos.flatten(1, 2), (reach,) * 4, mode="replicate").unflatten(1, videos.shape[1:3])
    moves = torch.randint(0, 2 * reach + 1, (b, 2), generator=generator).tolist()
    moved = torch.stack([p[..., y : y + h, x : x + w] for p, (y, x) in zip(padded, moves, strict=True)])
    gain = 1 + 0.1 * torch.randn((b, 1, 1, 1, 1), generator=generator)
    offset = 0.05 * torch.randn((b, 3, 1, 1, 1), generator=generator)
    return moved * gain + offset + 0.03 * torch.randn(moved.shape, generator=generator)
