"""What the camera did between the two frames of each pair, and what moved besides.

The flow of a pair is explained by eight numbers: how a plane moves before a camera. What they do not explain,
and the pictures confirm, has moved by itself. Lengths are in frame widths, unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from filters.warped import Warped

_COLUMNS = 16  # blocks across the frame, which say how the camera moved; twice as many say what else did
# Eight directions of motion, of which the first four are a similarity: right, down, growing, turning
# clockwise; then two that shear, and two of a perspective.
_TERMS = 8
# How much the blocks have to say for a direction before it is believed: perspectives fit anything small.
_DOUBT = np.diag(np.array([1e-4, 1e-4, 3e-4, 3e-4, 1e-3, 1e-3, 1e-3, 1e-3], np.float32))
_TEXTURE = 2.0  # levels a pixel: ground with less has a flow that says little
_SCALES = np.geomspace(0.1, 0.002, 6, dtype=np.float32)  # of a block's distance from the fit, round by round
_TOLERANCE = 0.001  # an eighth of a pixel: flow is not better than that
_CLOSE = 0.06  # of the camera's motion: nor than this
_NOISE = 1.0  # levels by which a block may change between two pictures of the same
_OFF_PIXELS = 0.15  # by which a block may be off after the camera's motion
_VOTERS = 5  # pairs
_DISSENT = 0.4  # of the blocks that a motion makes better: when it makes more of them worse, it is none


@dataclass(frozen=True)
class GlobalMotion:
    """Of n pairs, in widths a pair: `terms` (n, 8), and `rest` (n, rows, columns), what is left of blocks."""

    terms: np.ndarray
    rest: np.ndarray

    def moved(self, terms: np.ndarray) -> np.ndarray:
        """The root mean square over the frame of how far its points are moved by terms: (n,). Those that are
        not there, of (n, 8), are zero."""
        rows, columns = self.rest.shape[1:]
        move = terms @ _flat(_basis(columns, rows))[: terms.shape[1]]
        return np.asarray(np.sqrt(np.square(move).mean(1) * 2))


def global_motion(grey: Sequence[tuple[np.ndarray, np.ndarray]], flow: Sequence[np.ndarray]) -> GlobalMotion:
    """grey: both frames of each pair, (h, w) uint8 as the flow (h, w, 2) in pixels saw them."""
    height, width = flow[0].shape[:2]
    few = _COLUMNS, max(1, round(_COLUMNS * height / width))
    size = 2 * few[0], 2 * few[1]
    seen = Warped(grey, size, few)
    blocks = np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in flow]) / np.float32(width)
    trust = seen.slopes**2 / (seen.slopes**2 + np.float32(_TEXTURE**2))
    terms, weight = _fit(_halved(blocks), _halved(trust)[..., 0], _basis(*few))
    seen.warp(terms)
    stands = _stands(seen)
    terms[stands] = weight[stands] = 0
    seen.off[stands] = seen.change[stands]
    given = (terms @ _flat(_basis(*size))).reshape(blocks.shape)
    rest = np.maximum(_length(blocks - given) - _TOLERANCE - _CLOSE * _length(given), 0)
    rest *= trust * _unexplained(seen)
    for k in np.flatnonzero(rest.any((1, 2))):
        rest[k] = cv2.medianBlur(rest[k], 3)  # the rims of bars and of things that stand are thin
    return GlobalMotion(terms + _step(seen.sums * weight, few) / width, rest)


def _halved(blocks: np.ndarray) -> np.ndarray:
    """(n, rows, columns, ...) with one block in the place of four: (n, rows * columns / 4, channels)."""
    count, rows, columns = blocks.shape[:3]
    stacked = blocks.reshape(count * rows, columns, -1)
    few = cv2.resize(stacked, (columns // 2, count * rows // 2), interpolation=cv2.INTER_AREA)
    return few.reshape(count, rows * columns // 4, -1)


def _length(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(np.hypot(vectors[..., 0], vectors[..., 1]))


@lru_cache(maxsize=16)
def _basis(columns: int, rows: int) -> np.ndarray:
    """How the middle of each block moves in each of the eight directions: (8, rows * columns, 2) float32.

    Places are in widths, from the middle of the frame.
    """
    across = (np.arange(columns) + 0.5) / columns - 0.5
    along = (np.arange(rows) + 0.5 - rows / 2) / columns
    x, y = (place.ravel() for place in np.meshgrid(across, along))
    one, none = np.ones_like(x), np.zeros_like(x)
    right = [one, none, x, -y, x, y, x * x, x * y]
    down = [none, one, y, x, -y, x, x * y, y * y]
    return np.stack([np.stack(right), np.stack(down)], -1).astype(np.float32)


def _flat(basis: np.ndarray) -> np.ndarray:
    return basis.reshape(_TERMS, -1)


def _fit(flow: np.ndarray, trust: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The terms (n, 8) that explain most blocks of flow (n, p, 2), and how far each block agrees (n, p).

    The fit starts from the median. In each round a block counts less the farther it is off, by a scale that
    shrinks from a tenth of the width to the tolerance (Geman and McClure 1985, graduated as by Black and
    Rangarajan 1996).
    """
    points = flow.shape[1]
    product = _products(basis, 0, 0) + _products(basis, 1, 1)
    across, down = (basis[..., i] for i in (0, 1))
    x, y = (np.ascontiguousarray(flow[..., i]) for i in (0, 1))
    terms = np.zeros((len(flow), _TERMS), np.float32)
    terms[:, :2] = _median(flow, trust)
    weight = trust
    for scale in _SCALES:
        off = (x - terms @ across) ** 2 + (y - terms @ down) ** 2
        weight = trust / (1 + off / scale**2) ** 2
        left = (weight @ product).reshape(-1, _TERMS, _TERMS) + _DOUBT
        right = ((weight * x) @ across.T + (weight * y) @ down.T) / points
        terms = np.linalg.solve(left, right[..., None])[..., 0]
    return terms, weight


def _products(basis: np.ndarray, i: int, j: int) -> np.ndarray:
    """(p, 64): coordinate i of each term times coordinate j of each term, over the number of blocks."""
    both = basis[:, None, :, i] * basis[None, :, :, j]
    return both.reshape(_TERMS**2, -1).T / basis.shape[1]


def _median(flow: np.ndarray, trust: np.ndarray) -> np.ndarray:
    """The median flow (n, 2) of the half of the blocks that has more texture."""
    half = flow.shape[1] // 2
    best = np.argpartition(-trust, half, axis=1)[:, : half + 1]
    return np.median(np.take_along_axis(flow, best[..., None], 1), axis=1)


def _stands(seen: Warped) -> np.ndarray:
    """Of which pairs the camera stood, although the flow says otherwise: (n,) of bool.

    Something that moves before a plain wall has most of the texture, and is taken for the ground. But then
    the wall's faint texture gets worse by that motion. The votes of a few pairs are counted together.
    """
    better = seen.change - seen.off
    window = np.ones(_VOTERS)
    for_it, against = (
        np.convolve(np.count_nonzero(votes, (1, 2)), window)[_VOTERS // 2 :][: len(better)]
        for votes in (better > _NOISE, better < -_NOISE)
    )
    return np.asarray(against > _DISSENT * for_it)


def _unexplained(seen: Warped) -> np.ndarray:
    """How far the pictures contradict that a block moved with the camera: 0 to 1, for each block.

    Flow is drawn along at the rims of things and of flat ground, and a caption that is burnt in does not
    move. So a block counts only where the first picture, moved as the camera says, is not the second one,
    and where the pictures differ at all.
    """
    pixels = seen.off / (seen.slopes + np.float32(_TEXTURE))  # by which it is off, if it is not far
    return np.clip(pixels / _OFF_PIXELS - 1, 0, 1) * np.clip(seen.change / _NOISE - 1, 0, 1)


def _step(sums: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What the pictures add to the terms, in pixels: flow falls short of soft pictures by a tenth or so.

    sums: those of `Warped`, weighted.
    """
    basis = _basis(*size)
    xx, xy, yy, x_left, y_left = sums
    left = xx @ _products(basis, 0, 0) + yy @ _products(basis, 1, 1)
    left += xy @ (_products(basis, 0, 1) + _products(basis, 1, 0))
    left = left.reshape(-1, _TERMS, _TERMS) + _DOUBT * np.float32(_TEXTURE**2)
    right = (x_left @ basis[..., 0].T + y_left @ basis[..., 1].T) / basis.shape[1]
    return np.asarray(np.linalg.solve(left, right[..., None])[..., 0])
