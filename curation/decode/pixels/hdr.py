"""From HDR to SDR: HLG and PQ pictures of BT.2100, tone-mapped to BT.709.

The steps: signal to light (BT.2100's EOTF of PQ; of HLG its inverse OETF and the OOTF of a display of 1000
cd/m2), BT.2020's primaries to BT.709's (BT.2087), a curve, and back to a signal with BT.1886's power of 2.4.
White of 203 cd/m2 (BT.2408) is 1. The curve is Mobius as ffmpeg's filter `tonemap` has it: light up to
`KNEE` stays as it is, and what is lighter bends towards 1, which light of `PEAK_NITS` reaches. The curve is
applied to the largest of red, green and blue, so that hues stay.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import cv2
import numpy as np

Transfer = Literal["pq", "hlg"]
WHITE_NITS = 203.0
PEAK_NITS = 1000.0
KNEE = 0.5
HDR: dict[str, Transfer] = {"smpte2084": "pq", "arib-std-b67": "hlg"}
_NAMES = {  # ISO 23091-2 -> ffmpeg's name
    1: "bt709",
    4: "gamma22",
    5: "gamma28",
    6: "smpte170m",
    7: "smpte240m",
    8: "linear",
    9: "log100",
    10: "log316",
    11: "iec61966-2-4",
    12: "bt1361e",
    13: "iec61966-2-1",
    14: "bt2020-10",
    15: "bt2020-12",
    16: "smpte2084",
    17: "smpte428",
    18: "arib-std-b67",
}
_STEPS = 4096  # of the tables
_TO_709 = np.linalg.inv(
    [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]  # BT.2087
).astype(np.float32)
_LUMA_2020 = np.array([[0.2627, 0.6780, 0.0593]], np.float32)
_LUMA_709 = np.array([[0.2126, 0.7152, 0.0722]], np.float32)


def transfer_of(frame: Any) -> str | None:
    """The transfer that a decoded frame names. None: it names none."""
    return _NAMES.get(int(frame.color_trc))


def to_sdr(signal: np.ndarray, transfer: Transfer) -> np.ndarray:
    """(H, W, 3) uint8 RGB of BT.709, from (H, W, 3) uint16 RGB of BT.2020 in full range."""
    light = _light_table(transfer)[signal >> 4]
    if transfer == "hlg":
        luma = cv2.transform(light, _LUMA_2020)
        light *= cv2.pow(luma, 0.2).reshape(*luma.shape[:2], 1) * np.float32(PEAK_NITS / WHITE_NITS)
    light = np.maximum(cv2.transform(light, _TO_709), 0)
    light *= _gain(light.max(axis=2))[..., None]
    return _signal_table()[(np.minimum(light, 1) ** 0.5 * (_STEPS - 1) + 0.5).astype(np.uint16)]


def luma_709(rgb: np.ndarray) -> np.ndarray:
    """Luma of BT.709 in full range, (H, W) uint8."""
    return np.rint(cv2.transform(rgb.astype(np.float32), _LUMA_709)).astype(np.uint8).reshape(rgb.shape[:2])


def _gain(light: np.ndarray) -> np.ndarray:
    """What the curve multiplies light with. light: float32, of which 1 is white."""
    peak = PEAK_NITS / WHITE_NITS
    a = -(KNEE**2) * (peak - 1) / (KNEE**2 - 2 * KNEE + peak)
    b = (KNEE**2 - 2 * KNEE * peak + peak) / (peak - 1)
    high = np.maximum(light, KNEE)
    curved = (b * b + 2 * b * KNEE + KNEE**2) / (b - a) * (high + a) / (high + b)
    return np.asarray(np.minimum(curved, 1) / high, np.float32)


@cache
def _light_table(transfer: Transfer) -> np.ndarray:
    """Signal (0 to 4095) -> light as float32: of a display in units of white for PQ, of the scene for HLG."""
    signal = np.arange(_STEPS) / (_STEPS - 1)
    if transfer == "pq":
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = signal ** (1 / m2)
        nits = 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
        return (nits / WHITE_NITS).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return scene.astype(np.float32)


@cache
def _signal_table() -> np.ndarray:
    """The square root of light (0 to 4095) -> the signal of BT.1886, as uint8."""
    root = np.arange(_STEPS) / (_STEPS - 1)
    return np.rint(255 * root ** (2 / 2.4)).astype(np.uint8)
