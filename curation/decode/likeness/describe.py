"""A frame becomes a vector of 488 bytes, of which distances between frames are made.

The vector holds the luma of 16 x 9 cells, the chroma of 8 x 9 cells, and a histogram of colours. All come
from pictures of 32 x 18 pixels, so that noise and small movements matter little.
"""

from __future__ import annotations

import cv2
import numpy as np

from curation.decode.pixels.levels import CHROMA_TO_FULL, LUMA_TO_FULL

WIDTH, HEIGHT = 32, 18  # pixels of the small pictures
SAMPLED = (64, 36)  # luma is sampled at this size and averaged to the small one
LUMA, CHROMA, BINS = 16 * 9, 2 * 8 * 9, 8 * 5 * 5
LENGTH = LUMA + CHROMA + BINS
ROOT_SCALE = 10  # a bin holds the root of its number of pixels, times this

_levels = np.arange(256)
# Bins of 32 levels of luma. Chroma has narrow bins around grey, where most pixels are.
_chroma_bin = np.digitize(_levels, [112, 122, 134, 144])
_BIN_OF_Y = ((_levels >> 5) * 25).astype(np.uint8)
_BIN_OF_U = (_chroma_bin * 5).astype(np.uint8)
_BIN_OF_V = _chroma_bin.astype(np.uint8)


def shrink(
    y: np.ndarray, u: np.ndarray, v: np.ndarray, *, full_range: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three planes of any size, (H, W) uint8, become pictures of (18, 32) uint8 in full range."""
    small = (WIDTH, HEIGHT)
    luma = cv2.resize(
        cv2.resize(y, SAMPLED, interpolation=cv2.INTER_LINEAR), small, interpolation=cv2.INTER_AREA
    )
    blue = cv2.resize(u, small, interpolation=cv2.INTER_LINEAR)
    red = cv2.resize(v, small, interpolation=cv2.INTER_LINEAR)
    if full_range:
        return luma, blue, red
    return cv2.LUT(luma, LUMA_TO_FULL), cv2.LUT(blue, CHROMA_TO_FULL), cv2.LUT(red, CHROMA_TO_FULL)


def describe(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The vector (488,) uint8 of a frame, from its small pictures (18, 32) uint8."""
    bins = cv2.add(cv2.add(cv2.LUT(y, _BIN_OF_Y), cv2.LUT(u, _BIN_OF_U)), cv2.LUT(v, _BIN_OF_V))
    counts = cv2.calcHist([bins], [0], None, [BINS], [0, BINS])
    vector = np.empty(LENGTH, np.uint8)
    vector[:LUMA] = cv2.resize(y, (16, 9), interpolation=cv2.INTER_AREA).ravel()
    half = LUMA + CHROMA // 2
    vector[LUMA:half] = cv2.resize(u, (8, 9), interpolation=cv2.INTER_AREA).ravel()
    vector[half : LUMA + CHROMA] = cv2.resize(v, (8, 9), interpolation=cv2.INTER_AREA).ravel()
    vector[LUMA + CHROMA :] = np.sqrt(counts.ravel()) * ROOT_SCALE  # at most 240
    return vector
