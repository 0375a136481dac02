"""The detector that a configuration names."""

from __future__ import annotations

from curation.config.schema import DetectorName
from curation.decode.shots.base import NoCuts, ShotDetector
from curation.decode.shots.library import SceneDetect
from curation.decode.shots.similarity import Similarity
from curation.decode.shots.transnet import TransNet

DEFAULT_THRESHOLD = {"similarity": 0.2, "content": 27.0, "adaptive": 3.0, "transnetv2": 0.5, "none": 0.0}


def make_detector(
    name: DetectorName, threshold: float | None, min_scene_seconds: float, *, exact: bool, fps: float
) -> ShotDetector:
    """A new detector for one source of about `fps` frames per second. `threshold` None: the default."""
    threshold = DEFAULT_THRESHOLD[name] if threshold is None else threshold
    if name == "none":
        return NoCuts()
    if name == "similarity":
        return Similarity(threshold, fps)
    if name == "transnetv2":
        return TransNet(threshold, min_scene_seconds)
    return SceneDetect(name, threshold, min_scene_seconds, exact=exact, fps=fps)
