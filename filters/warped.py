"""The pictures of pairs of frames, block by block, and the first of each pair moved as the camera did."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

_Size = tuple[int, int]  # columns and rows


class Warped:
    """`slopes`, `change` and `off` are (n, rows, columns), for the n pairs and the blocks of `size`.

    `slopes`: the steepness of the first pictures, in levels a pixel. After `warp`, `change`: the mean
    difference of the two pictures, in levels, and `off`: the same after the first one was moved. And `sums`
    (5, n, blocks of `few`): the products of the moved pictures' slopes with each other (xx, xy, yy), and with
    what is left (x, y), from which the rest of a motion follows (Lucas and Kanade 1981).
    """

    def __init__(self, grey: Sequence[tuple[np.ndarray, np.ndarray]], size: _Size, few: _Size):
        """grey: the two pictures of each pair, (h, w) uint8."""
        self._pairs = _softened(grey)
        self._size, self._few = size, few
        blocks = (len(grey), size[1], size[0])
        self.slopes, self.change, self.off = (np.zeros(blocks, np.float32) for _ in range(3))
        self.sums = np.zeros((5, len(grey), few[0] * few[1]), np.float32)
        for k, (first, _) in enumerate(self._pairs):
            across, down = cv2.spatialGradient(first)  # Sobel's, which weighs 8
            steep = cv2.magnitude(across.astype(np.float32), down.astype(np.float32))
            self.slopes[k] = _means(steep, size) / 8

    def warp(self, terms: np.ndarray) -> None:
        """terms: (n, 8), in widths, as `filters.global_motion` has them."""
        height, width = self._pairs[0][0].shape
        half = max(1, width // 2), max(1, height // 2)
        for k, (matrix, (first, second)) in enumerate(
            zip(_matrices(terms, height, width), self._pairs, strict=True)
        ):
            moved = cv2.warpPerspective(first, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
            self.change[k] = _means(cv2.absdiff(first, second).astype(np.float32), self._size)
            self.off[k] = _means(cv2.absdiff(moved, second).astype(np.float32), self._size)
            self.sums[:, k] = _sums(_means(moved, half), _means(second, half), self._few)


def _means(image: np.ndarray, blocks: _Size) -> np.ndarray:
    return cv2.resize(image, blocks, interpolation=cv2.INTER_AREA)


def _sums(moved: np.ndarray, second: np.ndarray, few: _Size) -> list[np.ndarray]:
    """Of pictures of half the size; slopes and the step that follows are in pixels of the whole size."""
    x, y = (slope.astype(np.float32) / 16 for slope in cv2.spatialGradient(moved))
    left = cv2.subtract(moved, second, dtype=cv2.CV_32F)
    return [_means(a * b, few).ravel() for a, b in ((x, x), (x, y), (y, y), (x, left), (y, left))]


def _matrices(terms: np.ndarray, height: int, width: int) -> np.ndarray:
    """(n, 3, 3): the homographies of these terms for pixels of a picture of this size."""
    right, down, grow, turn, stretch, shear, lean_x, lean_y = terms.T.astype(np.float64)
    one = np.ones_like(right)
    rows = [
        [1 + grow + stretch, shear - turn, right * width],
        [shear + turn, 1 + grow - stretch, down * width],
        [-lean_x / width, -lean_y / width, one],
    ]
    from_middle = np.array([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])
    to_middle = np.array([[1, 0, (1 - width) / 2], [0, 1, (1 - height) / 2], [0, 0, 1]])
    return np.asarray(from_middle @ np.moveaxis(np.array(rows), 2, 0) @ to_middle)


def _softened(grey: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pictures of each pair without their finest detail. One that ends a pair may begin the next."""
    made: dict[int, np.ndarray] = {}
    for pair in grey:
        for picture in pair:
            if id(picture) not in made:
                made[id(picture)] = cv2.GaussianBlur(picture, (3, 3), 0)
    return [(made[id(first)], made[id(second)]) for first, second in grey]
