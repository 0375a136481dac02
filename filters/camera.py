"""`camera`: how the camera moved, and how fast things moved besides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from filters.base import VIDEO, Column, Frames, Media, Pair, Sampling, Scorer, pairs
from filters.global_motion import GlobalMotion, global_motion
from filters.motion import at_width, flows

CameraClass = Literal["static", "pan", "tilt", "zoom", "roll", "shake", "mixed"]
STATIC_SPEED = 0.01  # frame widths/s: a slower camera stands
SHAKEN = 0.5  # of the speed: more shake than this is a hand-held camera
STEADY = 0.5  # of the speed: a camera whose steady part is less goes to and fro
STILL_OBJECT = 0.002  # frame widths/s: slower things are none
_RADIUS_WIDTHS = 0.331  # of a 16:9 frame: the root mean square distance of its points from the middle


@dataclass(frozen=True)
class Camera(Scorer):
    """The motion of the whole picture, as a camera makes it, and the motion that it leaves over.

    The flow of each pair of frames, which is that of `motion`, is explained by eight numbers (see
    `filters.global_motion`), of which four are a similarity. `camera.speed` is the root mean square of that
    motion over the frame, averaged over the clip. `camera.pan` to `camera.roll` are its signed rates, seen
    from the camera: a pan to the right moves the picture to the left. `camera.shake` is the speed of what
    their running mean over half a second leaves. `camera.object` is the mean over the frame of the speed that
    the camera leaves: 0 for a zoom or a pan over a still picture, and `motion.speed` or less for a camera
    that stands. `camera.still` is the speed of a camera that moves smoothly while nothing else moves, and 0
    for all others.

    A thing that fills more than half of what has texture is taken for the ground. Depth in front of a camera
    that travels is motion of its own, since nothing tells it from things that move.
    """

    per_second: float = 10.0
    step_s: float = 0.1
    width: int = 256  # pixels, as sampled
    analysis_width: int = 128  # pixels, of the flow; with the values of `motion`, one flow serves both

    applies_to: ClassVar[frozenset[Media]] = VIDEO
    columns: ClassVar[tuple[Column, ...]] = (
        Column("camera.speed", "frame widths/s", (0, float("inf")), "speed of the picture as a whole"),
        Column("camera.pan", "frame widths/s", meaning="mean rate of the camera to the right"),
        Column("camera.tilt", "frame widths/s", meaning="mean rate of the camera upwards"),
        Column("camera.zoom", "1/s", meaning="mean rate at which the picture grows"),
        Column("camera.roll", "degrees/s", meaning="mean rate at which the camera turns clockwise"),
        Column("camera.shake", "frame widths/s", (0, float("inf")), "speed of what is not steady in it"),
        Column("camera.object", "frame widths/s", (0, float("inf")), "speed of the rest of the picture"),
        Column("camera.still", "frame widths/s", (0, float("inf")), "speed of a zoom or pan over a still"),
    )
    cost_ms: ClassVar[float] = 6  # where `motion` has made the flow

    @property
    def sampling(self) -> Sampling:
        return pairs(self.per_second, self.step_s, self.width)

    def measure(self, frames: Frames) -> Mapping[str, float | None]:
        seconds = np.array([pair.dt_s for pair in frames.pairs])
        total = float(seconds.sum())
        if total <= 0:
            return {}
        found = global_motion(
            _pictures(frames.pairs, self.analysis_width), flows(frames, self.analysis_width)
        )
        right, down, grow, turn = (float(rate) for rate in found.terms[:, :4].sum(0) / total)
        speed = float(found.moved(found.terms).sum()) / total
        shake = _shake(found, seconds, round(self.per_second / 2))
        objects = float(found.rest.mean((1, 2)).sum()) / total
        return {
            "camera.speed": speed,
            "camera.pan": -right,
            "camera.tilt": down,
            "camera.zoom": grow,
            "camera.roll": -math.degrees(turn),
            "camera.shake": shake,
            "camera.object": objects,
            "camera.still": _still(speed, shake, objects),
        }


def _still(speed: float, shake: float, objects: float) -> float:
    """The speed, and less of it the more shakes or moves by itself: nothing is left where a hand holds the
    camera, or where things move."""
    if speed <= 0:
        return 0.0
    steady = max(0.0, 1 - shake / (SHAKEN * speed))
    return speed * steady * max(0.0, 1 - objects / STILL_OBJECT)


def _pictures(pairs: Sequence[Pair], width: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Both frames of each pair at `width`. A frame that ends a pair and begins the next is reduced once."""
    frames = {id(frame): frame for pair in pairs for frame in (pair.first, pair.second)}
    made = {key: at_width(frame, width) for key, frame in frames.items()}
    return [(made[id(pair.first)], made[id(pair.second)]) for pair in pairs]


def _shake(found: GlobalMotion, seconds: np.ndarray, window: int) -> float:
    """The mean speed of what is left of the camera's rates after their running mean over `window` pairs."""
    rates = found.terms[:, :4] / seconds[:, None]
    kernel = np.ones(min(window | 1, len(rates)))
    counts = np.convolve(np.ones(len(rates)), kernel, "same")
    steady = np.stack([np.convolve(rate, kernel, "same") / counts for rate in rates.T], 1)
    return float((found.moved(rates - steady) * seconds).sum() / seconds.sum())


def camera_class(values: Mapping[str, float | None]) -> CameraClass | None:
    """The name of the camera's motion, from the columns of one clip. None: the columns were not measured.

    `static`: slower than 0.01 widths/s. `shake`: hand-held, without a direction. `pan`, `tilt`, `zoom` and
    `roll`: the largest part of a steady motion. `mixed`: a motion that goes to and fro.
    """
    given = [values.get(f"camera.{name}") for name in ("speed", "pan", "tilt", "zoom", "roll", "shake")]
    measured = [float(value) for value in given if value is not None and math.isfinite(value)]
    if len(measured) < len(given):
        return None
    speed, pan, tilt, zoom, roll, shake = measured
    parts: dict[CameraClass, float] = {
        "pan": abs(pan),
        "tilt": abs(tilt),
        "zoom": abs(zoom) * _RADIUS_WIDTHS,
        "roll": math.radians(abs(roll)) * _RADIUS_WIDTHS,
    }
    steady = math.hypot(*parts.values())
    if speed < STATIC_SPEED:
        return "static"
    if shake > SHAKEN * speed:
        return "shake"
    if steady < STEADY * speed:
        return "mixed"
    return max(parts, key=lambda name: parts[name])
