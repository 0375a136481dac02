"""A picture of any kind, as 8-bit RGB: wide numbers, and what is transparent."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from curation.decode.pixels.alpha import GROUND

_WIDE = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def rgb_of(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright. Raises `ValueError` for numbers whose black and white are not known.

    Pictures of 16 bits are divided by 257, for Pillow would cut them off at 255. What is transparent shows
    the ground: the colours that a file hides there are not meant to be seen.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in _WIDE:
        return _wide(np.asarray(image))
    if image.mode == "F":
        raise ValueError(
            "a picture of floating-point numbers does not say which is white; save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        whole = image.convert("RGBA")
        ground = Image.new("RGBA", whole.size, (*GROUND, 255))
        return np.asarray(Image.alpha_composite(ground, whole).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _wide(values: np.ndarray) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"a picture of 32-bit numbers from {low} to {high}; save it with 8 or 16 bits")
    grey = np.rint(values.astype(np.float32) / 257).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
