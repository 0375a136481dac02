"""Whether videos show what their prompts say: the evaluation of Stage I, and of both stages together.

A judge recognises words in the videos, and optical flow recognises the direction. Controls must do worse than
the claimed result: other prompts, untrained weights, a video that stands still, scaled-up videos of Stage I.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from generation import draws
from generation.config import Bucket
from generation.evaluate import judge, scores
from generation.evaluate.figures import Figures, Found, Say, mean, ratio
from generation.evaluate.judge import Judge, labels
from generation.evaluate.real_clips import Clips
from generation.media import from_uint8, read_video
from generation.process import stage1
from generation.sample.trained import Trained

_DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_OF_A_PROMPT = 8  # videos of a prompt, which are compared with each other


# ---------------------------------------------------------------------------------------------------
# The judge, and optical flow
# ---------------------------------------------------------------------------------------------------


class JudgeUnfit(Exception):
    """The judge is not accurate enough about real clips to judge other videos."""


def examine(found: Judge, truth: Clips) -> Figures:
    """The accuracy of the judge and of optical flow on real held-out clips. Raises `JudgeUnfit`."""
    if found.unfit:
        told = ", ".join(
            f"{name} {found.accuracy[name]:.3f}"
            if not math.isnan(found.accuracy[name])
            else f"{name} not at all, as no caption has a word of this group"
            for name in found.unfit
        )
        raise JudgeUnfit(
            f"judge unfit: on {len(truth)} real held-out clips the judge is right about {told}, and it needs "
            f"{judge.FIT}. Train the judge longer (judge_steps, judge_clips), or leave that group of words "
            "out (attributes)"
        )
    figures: Figures = {"accuracy": dict(found.accuracy)}
    flow = by_flow(truth.video, truth.captions, found.attributes)
    if flow is not None:
        figures["direction_by_flow"] = flow
    return figures


def by_flow(videos: Tensor, prompts: Sequence[str | None], attributes: judge.Attributes) -> float | None:
    """The share of videos (N, 3, T, H, W) that move as their prompts say, by optical flow.

    A video that stands still counts as wrong. None: there is no group of directions, no prompt has a
    direction, or the videos have one frame.
    """
    groups = ([word.lower() for word in words] for words in attributes.values())
    group = next((words for words in groups if set(words) <= set(_DIRECTIONS)), None)
    if group is None or videos.shape[2] < 2:
        return None
    truth = labels(prompts, {"direction": group})[:, 0]
    ways = torch.tensor([_DIRECTIONS[word] for word in group], dtype=torch.float64)
    along = scores.direction(videos) @ ways.T  # (N, words)
    right = (along.argmax(1) == truth) & (along.amax(1) > 0)
    return mean(right[truth >= 0].double())


def read_by(found: Judge, videos: Tensor, prompts: Sequence[str | None]) -> Figures:
    """How often videos (N, 3, T, H, W) show what their prompts say: by group, jointly, and over chance."""
    truth, read = labels(prompts, found.attributes), found.read(videos)
    right = (None if math.isnan(share) else share for share in judge.accuracy(read, truth))
    accuracy = dict(zip(found.attributes, right, strict=True))
    chance = math.prod(1 / len(words) for words in found.attributes.values())
    jointly = judge.joint(read, truth)
    known = not math.isnan(jointly)
    figures: Figures = {
        **accuracy,
        "jointly": jointly if known else None,
        "jointly_over_chance": jointly / chance if known else None,
    }
    flow = by_flow(videos, prompts, found.attributes)
    return figures if flow is None else {**figures, "direction_by_flow": flow}


# ---------------------------------------------------------------------------------------------------
# Prompts
# ---------------------------------------------------------------------------------------------------


def is_seen(
    prompts: Sequence[str | None], trained_on: Sequence[str | None], attributes: judge.Attributes
) -> list[bool | None]:
    """Whether a caption of the training set has the same words as the prompt, of all groups.

    None: the prompt does not have a word of every group.
    """
    known = {tuple(row) for row in labels(trained_on, attributes).tolist()}
    return [None if -1 in row else tuple(row) in known for row in labels(prompts, attributes).tolist()]


def shuffled(prompts: Sequence[str]) -> list[str]:
    """The prompts of other videos, in a fixed order.

    Every video gets a different prompt, except where one prompt belongs to more than half of the videos.
    """
    order = torch.randperm(len(prompts), generator=draws.generator("shuffle prompts")).tolist()
    place: dict[str, int] = {}
    for k in order:
        place.setdefault(prompts[k], len(place))
    # Equal prompts are neighbours now, so a shift by the largest number of equal prompts separates them.
    order.sort(key=lambda k: place[prompts[k]])
    away = max(Counter(prompts).values(), default=0) % max(1, len(prompts))
    following = dict(zip(order, order[away:] + order[:away], strict=True))
    return [prompts[following[k]] for k in range(len(prompts))]


def swapped(prompt: str, swap: Mapping[str, str]) -> str:
    """The prompt with words replaced by `swap`, whatever their case."""
    others = {word.lower(): other for word, other in swap.items()}
    return re.sub(r"\w+", lambda word: others.get(word[0].lower(), word[0]), prompt)


# ---------------------------------------------------------------------------------------------------
# Stage I
# ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """Videos of prompts, as read from disk: each tensor is (N, 3, T, H, W) in [-1, 1]."""

    prompts: list[str]
    previews: Tensor
    finals: Tensor | None


def read_made(prompts: Sequence[str], folders: Sequence[Path], finals: bool) -> Made:
    """Read the folders of `sample.previews.sample_previews`. Raises `ValueError` for broken videos."""

    def read(name: str) -> Tensor:
        return torch.stack([from_uint8(read_video(folder / name).frames) for folder in folders])

    return Made(list(prompts), read("preview.mp4"), read("final.mp4") if finals else None)


@torch.no_grad()
def sample_untrained(trained: Trained, prompts: Sequence[str], shape: Bucket, say: Say) -> Tensor:
    """Videos (N, 3, T, H, W) of Stage I with the weights of step 0, as a control."""
    say(f"stage1: {len(prompts)} videos of untrained weights")
    config, codec = trained.config, trained.codec
    texts, negative = trained.embedded(prompts)
    model = trained.untrained()
    grid = codec.grid(shape.frames, shape.height, shape.width)
    made = []
    for k, text in enumerate(texts):
        latents = stage1.sample(
            model,
            config.objective,
            config.sampling,
            (codec.channels, *grid),
            text,
            negative,
            "untrained",
            k,
            positions=config.transformer.positions,
            device=trained.device,
        )
        made.append(codec.decode(latents, shape.frames).clamp(-1, 1).cpu())
    return torch.cat(made)


def evaluate_stage1(
    made: Made, real: Clips, captions: Sequence[str | None], found: Judge | None, fresh: Tensor | None
) -> Found:
    """How well previews follow their prompts, and how much the previews of one prompt differ.

    real: some training clips. captions: of all training clips. fresh: videos of untrained weights for the
    first prompts.
    """
    size = (made.previews.shape[-2], made.previews.shape[-1])
    own = list({clip_id: k for k, clip_id in reversed(list(enumerate(real.ids)))}.values())  # each clip once
    figures: Figures = {
        "videos": len(made.prompts),
        "spread": _spread(made.previews, made.prompts, range(len(made.prompts)), size),
        "real_spread": _spread(real.video, real.captions, own, size),
    }
    notes = []
    if figures["spread"] is None:
        notes.append(
            "stage1: no prompt comes twice, so the difference between videos of one prompt is not measured; "
            "write some prompts several times in the file of --prompts"
        )
    if found is None:
        notes.append("stage1: without attributes, it is not measured whether videos follow their prompts")
        return Found(figures, notes)
    followed = _follow(found, made.previews, made.prompts, captions)
    figures |= followed.figures
    if fresh is not None:
        figures["untrained"] = read_by(found, fresh, made.prompts[: len(fresh)])
    return Found(figures, notes + [f"stage1: {note}" for note in followed.notes])


def _follow(found: Judge, videos: Tensor, prompts: Sequence[str], captions: Sequence[str | None]) -> Found:
    """The judge's figures: of all videos, and of prompts whose words were or were not together in a caption.

    The controls are the same videos with other prompts, and videos that stand still.
    """
    figures = read_by(found, videos, prompts)
    notes = [f"no prompt has a word of {name}" for name in found.attributes if figures[name] is None]
    seen = is_seen(prompts, captions, found.attributes)
    for name, which in (("seen", True), ("unseen", False)):
        rows = [k for k, known in enumerate(seen) if known is which]
        if rows:
            figures[name] = {**read_by(found, videos[rows], [prompts[k] for k in rows]), "videos": len(rows)}
    others = shuffled(prompts)
    if others != list(prompts):
        figures["shuffled_prompts"] = read_by(found, videos, others)
    else:
        notes.append("all prompts are the same, so there is no control with other prompts")
    figures["standing_still"] = read_by(found, _still(videos), prompts)
    return Found(figures, notes)


def _still(videos: Tensor) -> Tensor:
    return videos[:, :, :1].expand_as(videos)


def _spread(
    videos: Tensor, prompts: Sequence[str | None], rows: Sequence[int], size: tuple[int, int]
) -> float | None:
    """How much videos of one prompt differ, in levels of 255, at this size (height, width).

    The mean over the prompts that `rows` has several times. None without such prompts.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for k in rows:
        places[prompts[k] or ""].append(k)
    found = [
        scores.spread(scores.resized(videos[own[:_OF_A_PROMPT]], *size))
        for prompt, own in places.items()
        if prompt and len(own) > 1
    ]
    return sum(found) / len(found) if found else None


# ---------------------------------------------------------------------------------------------------
# Both stages
# ---------------------------------------------------------------------------------------------------


def evaluate_chain(
    made: Made,
    truth: Clips,
    real: Clips,
    captions: Sequence[str | None],
    found: Judge | None,
    features: Callable[[Tensor], Tensor] | None,
) -> Found:
    """How well final videos follow their prompts, and how far sets of videos are from held-out clips `truth`.

    real: some training clips. captions: of all training clips. features: None means the judge's features.
    """
    assert made.finals is not None
    figures: Figures = {"videos": len(made.prompts)}
    notes = []
    size = (made.finals.shape[-2], made.finals.shape[-1])
    if found is not None:
        followed = _follow(found, made.finals, made.prompts, captions)
        figures |= followed.figures
        notes += [f"chain: {note}" for note in followed.notes]
        figures["stage1_bicubic"] = read_by(found, scores.resized(made.previews, *size), made.prompts)
    features = features or (found.features if found else None)
    count = min(len(made.finals), len(truth), len(real))
    if features is None:
        notes.append("chain: without attributes or an extractor, distances to real videos are not measured")
    elif count < 2:
        notes.append("chain: distances of sets need at least two prompts and two held-out clips")
    else:
        figures |= _distances(made, truth, real, count, features)
    return Found(figures, notes)


def _distances(
    made: Made, truth: Clips, real: Clips, count: int, features: Callable[[Tensor], Tensor]
) -> Figures:
    """Distances of sets of `count` videos to held-out clips.

    All sets have the same number of videos, as small sets have a larger Fréchet distance. `static`: the
    final videos, standing still. `real_static`: training clips, standing still; held-out clips would be near
    to themselves. Ratios use the kernel distance, which has no bias: with fewer videos than features, their
    covariance is not known.
    """
    assert made.finals is not None
    height, width = made.finals.shape[-2:]
    frames = min(made.finals.shape[2], truth.video.shape[2])

    def alike(videos: Tensor) -> Tensor:
        return scores.resized(videos[:count, :, :frames], height, width)

    target = features(alike(truth.video))
    sets = {
        "real": alike(real.video),
        "two_stage": alike(made.finals),
        "stage1_bicubic": alike(made.previews),
        "static": _still(alike(made.finals)),
        "real_static": _still(alike(real.video)),
    }
    of = {name: features(videos) for name, videos in sets.items()}
    figures: Figures = {
        name: {key: measure(one, target) for key, one in of.items()}
        for name, measure in (("frechet", scores.frechet), ("kernel_distance", scores.kernel_distance))
    }
    distance = figures["kernel_distance"]
    for one, other in (("two_stage", "stage1_bicubic"), ("stage1_bicubic", "static")):
        figures[f"{one}_over_{other}"] = ratio(distance[one], distance[other])
    return figures
