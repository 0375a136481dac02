"""How a stored picture is turned and mirrored for display: the display matrix of a container.

The matrix has 9 numbers (a b u, c d v, x y w). It takes the stored point (x, y), with y downwards, to the
displayed point (a x + c y, b x + d y). It may turn a picture, mirror it, or do both. Here it is taken apart
into a mirror that exchanges left and right, and a turn after that.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np

_TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


def display_of(frame: Any) -> tuple[int, bool]:
    """(degrees clockwise: 0, 90, 180 or 270; is it mirrored before that?) of a decoded frame."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 0, False
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), "<i4").astype(float)
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    return round(math.degrees(math.atan2(b, a)) / 90) * 90 % 360, bool(mirrored)


def upright(image: np.ndarray, rotation: int, *, mirrored: bool) -> np.ndarray:
    """The stored (H, W) or (H, W, C) picture as it is displayed."""
    if mirrored:
        image = cv2.flip(image, 1)
    return cv2.rotate(image, _TURNS[rotation]) if rotation else image
