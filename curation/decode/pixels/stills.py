"""A picture of any kind, as 8-bit RGB: wide numbers, and what is transparent."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from curation.decode.pixels.alpha import GROUND
from curation.decode.pixels.profile import in_srgb

_WIDE = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def rgb_of(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright. Raises `ValueError` for numbers whose black and white are not known.

    Pictures of 16 bits are divided by 257, for Pillow would cut them off at 255. Colours of another profile
    become sRGB. What is transparent shows the ground: the colours that a file hides there are not meant to be
    seen.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in _WIDE:
        image = _eight_bits(image)
    if image.mode == "F":
        raise ValueError(
            "a picture of floating-point numbers does not say which is white; save it with 8 or 16 bits"
        )
    colours = in_srgb(image)
    if not image.has_transparency_data:
        return np.asarray(colours or image.convert("RGB"))
    whole = image.convert("RGBA")
    if colours is not None:
        colours.putalpha(whole.getchannel("A"))
        whole = colours
    ground = Image.new("RGBA", whole.size, (*GROUND, 255))
    return np.asarray(Image.alpha_composite(ground, whole).convert("RGB"))


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"a picture of 32-bit numbers from {low} to {high}; save it with 8 or 16 bits")
    grey = Image.fromarray(np.rint(values.astype(np.float32) / 257).astype(np.uint8))
    hidden = image.info.get("transparency")  # of PNG: the level that is transparent, in 16 bits
    if isinstance(hidden, int):
        grey.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    if "icc_profile" in image.info:
        grey.info["icc_profile"] = image.info["icc_profile"]
    return grey
