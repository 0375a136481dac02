"""Pictures with a colour profile (ICC), as viewers show them: in sRGB."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

_GREY = ("1", "L", "LA", "La")
_NEARLY = 3  # levels: a profile that changes less than this is sRGB, whatever its name, and nothing is done


def in_srgb(image: Image.Image) -> Image.Image | None:
    """The colours of a picture of 8 bits as RGB, without its transparency. None: they are sRGB as they are.

    A profile that cannot be read, or that is for other colours than the picture has, is left out of account,
    as viewers do.
    """
    data = image.info.get("icc_profile")
    if not isinstance(data, bytes) or not data:
        return None
    found = _transform(data)
    if found is None or not _fits(found[0], image.mode):
        return None
    mode, transform = found
    return ImageCms.applyTransform(image.convert(mode), transform)


def _fits(mode: str, of_picture: str) -> bool:
    if mode == "L":
        return of_picture in _GREY
    return (of_picture == "CMYK") == (mode == "CMYK") and of_picture != "LAB"


@lru_cache(maxsize=2)  # the frames of an animation share their profile
def _transform(data: bytes) -> tuple[str, Any] | None:
    """(the mode of the pictures, the transform to sRGB)."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(profile.profile.xcolor_space.strip())
        if mode is None:
            return None
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return (mode, transform) if mode == "CMYK" or _changes(mode, transform) else None


def _changes(mode: str, transform: Any) -> bool:
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(27, 27, 3)
    picture = Image.fromarray(grid if mode == "RGB" else np.arange(256, dtype=np.uint8).reshape(16, 16))
    before = np.asarray(picture.convert("RGB"), int)
    after = np.asarray(ImageCms.applyTransform(picture, transform), int)
    return bool(np.abs(after - before).max() > _NEARLY)
