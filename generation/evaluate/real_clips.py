"""Real clips of a dataset, prepared as for training. Evaluation compares videos with these clips."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from generation.config import Bucket, Data
from generation.data.loader import Loader
from generation.data.plan import open_selection, select

Which = Literal["trained on", "held out", "all"]


@dataclass(frozen=True)
class Clips:
    """Clips with their captions and ids."""

    video: Tensor  # (N, 3, T, H, W) in [-1, 1]
    captions: list[str | None]
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)


def load(
    dataset: str,
    data: Data,
    bucket: Bucket,
    *,
    which: Which,
    limit: int,
    seed: int = 0,
) -> Clips:
    """Load clips in the shape of `bucket`.

    which: "held out" and "all" give at most `limit` clips in the dataset's order, each from its middle.
    "trained on" gives `limit` pieces of training clips, from random starts in random order; clips may repeat.
    data: the data settings of training, which decide the held-out clips. Raises `ValueError` when there are
    no such clips.
    """
    again = which == "trained on"
    changes = {"buckets": (bucket,), "single_frame_fraction": 0.0, "random_start": again, "workers": 0}
    own = data.model_copy(update=changes)
    if which == "all":
        selection = open_selection(dataset, own)
        # Held-out clips are read once each, from their middle.
        selection = replace(selection, held_out=np.ones(len(selection.index), dtype=bool))
    else:
        # All buckets of training decide the held-out clips, as one bucket alone could hold out other clips.
        trained = open_selection(dataset, data)
        selection = select(trained.index, own)
        usable = np.where(trained.bucket >= 0, selection.bucket, -1)
        selection = replace(selection, bucket=usable, held_out=trained.held_out)
    rows = len(selection.rows(validation=not again))
    if not rows and not again:
        raise ValueError(
            f"{dataset}: no clip is held out; name a dataset of other clips with --held-out, or train "
            "with data.validation_fraction above 0"
        )
    count = limit if again else min(limit, rows)
    with Loader(selection, 1, seed=seed) as loader:
        source = loader.batches() if again else loader.validation(count)
        video, captions, found = [], [], []
        for batch in itertools.islice(source, count):
            assert batch.video is not None
            video.append(batch.video)
            captions += batch.captions
            found += batch.clip_ids
    # The conversion is in place, as thousands of clips are gigabytes.
    return Clips(torch.cat(video).float().div_(127.5).sub_(1), captions, found)


def ids(dataset: str, data: Data) -> set[str]:
    """The ids of training clips."""
    selection = open_selection(dataset, data)
    return {selection.index.clip_id(row) for row in selection.rows()}


def check_apart(dataset: str, trainings: Sequence[Data], held_out: str, found: Collection[str]) -> None:
    """Raises `ValueError` when some of the clips `found` of `held_out` are training clips."""
    known = set().union(*(ids(dataset, data) for data in trainings))
    both = known.intersection(found)
    if both:
        raise ValueError(
            f"--held-out {held_out}: {len(both)} of {len(found)} clips are training clips of {dataset}; name "
            "a dataset of other clips, or leave --held-out out to use clips that training held out"
        )


def captions(dataset: str, data: Data, which: Which, limit: int | None = None) -> list[str]:
    """Captions of at most `limit` clips with captions, evenly chosen in the order of their ids."""
    fraction = {"validation_fraction": 0.0} if which == "all" else {}
    selection = open_selection(dataset, data.model_copy(update=fraction))
    rows = selection.rows(validation=which == "held out")
    index = selection.index
    texts = {index.clip_id(row): index.caption(row) for row in rows}
    found = [text for _, text in sorted(texts.items()) if text]
    if limit is None or len(found) <= limit:
        return found
    return [found[k * len(found) // limit] for k in range(limit)]
