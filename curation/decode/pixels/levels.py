"""Tables from the levels of limited range (16 to 235, chroma to 240) to those of full range (0 to 255)."""

from __future__ import annotations

import numpy as np

_levels = np.arange(256)
LUMA_TO_FULL = np.clip(np.rint((_levels - 16) * 255 / 219), 0, 255).astype(np.uint8)
CHROMA_TO_FULL = np.clip(np.rint((_levels - 128) * 255 / 224 + 128), 0, 255).astype(np.uint8)
