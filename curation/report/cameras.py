"""How the cameras of a dataset's clips move, counted by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from curation.report.read import ACCEPTED
from filters.camera import Camera, camera_class


def cameras(scores: Mapping[str, np.ndarray], status: np.ndarray) -> list[tuple[str, int, int]]:
    """(class, clips, accepted ones) of the clips that have the columns of `camera`, most common first."""
    columns = {c.name: scores[c.name] for c in Camera.columns if c.name in scores}
    clips: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    for i in range(len(status)):
        name = camera_class({column: float(values[i]) for column, values in columns.items()})
        if name is not None:
            clips[name] += 1
            accepted[name] += bool(status[i] == ACCEPTED)
    return [(name, count, accepted[name]) for name, count in clips.most_common()]
