"""Files that Pillow reads: still pictures, and animations of WebP, PNG and AVIF. Only in the decoding child.

What a file holds decides, not its suffix: a suffix only settles what a beginning of some bytes leaves open.
Animated GIF stays with FFmpeg, which composes it right.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from curation.decode.pixels.stills import rgb_of
from curation.sources.media import HEIF_SUFFIXES, VIDEO_SUFFIXES, is_image, reads_heif
from curation.store.table_row import table_row

# Whatever its suffix says, a picture is read as one of these: others start programs (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", *(("AVIF",) if features.check("avif") else ()))
MOST_PIXELS = 178_956_970  # of one picture: where Pillow stops by itself
_MOVING = frozenset({"PNG", "WEBP", "AVIF"})  # several pictures of other formats are pages, or views
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_RAW_TAG = 50706  # DNGVersion: what TIFF shows of a raw photograph is its thumbnail
_WEBP_FLAGS, _WEBP_ALPHA, _WEBP_ANIMATED = 20, 0x10, 0x02  # the place of a byte, and bits in it
_NO_DURATION_S = Fraction(1, 10)  # how long browsers show a picture of an animation that lasts 0 s


class NoVideo(ValueError):
    """The file holds no video stream, and no picture, that could be decoded."""


@dataclass(frozen=True)
class Shown:
    """One picture, (H, W, 3) uint8 RGB and upright, and when it is shown. duration_s is None for a still."""

    rgb: np.ndarray
    time_s: Fraction
    duration_s: Fraction | None


def holds_picture(file: BinaryIO, uri: str) -> bool:
    """Is the open file one for Pillow? Otherwise it is one for FFmpeg. The file is left at its beginning."""
    start = file.read(32)
    file.seek(0)
    if start.startswith((b"GIF87a", b"GIF89a")):
        return False
    if start.startswith(b"\x89PNG\r\n\x1a\n") or _is_webp(start) or _brand(start):
        return True
    if is_image(uri):
        return not _is_video(start) or Path(uri).suffix.lower() in HEIF_SUFFIXES
    if table_row(uri):  # its address has no suffix that says more
        return start.startswith((b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM"))
    # A stream of many JPEGs begins as one JPEG does.
    suffix = Path(uri).suffix.lower()
    return start.startswith(b"\xff\xd8\xff") and suffix not in VIDEO_SUFFIXES | {".mjpg", ".mjpeg"}


def check_gif(file: BinaryIO) -> None:
    """Raises `OSError` if a GIF of one picture ends too early: FFmpeg shows what there is, and does not say
    so."""
    file.seek(0)
    with contextlib.suppress(UnidentifiedImageError, SyntaxError, ValueError):
        Image.open(file, formats=("GIF",)).load()


class ImageFile:
    """An opened picture or animation. Raises `NoVideo` if there is none that could be decoded.

    first: its first picture, which is decoded when it is opened.
    """

    def __init__(self, file: BinaryIO, uri: str):
        start = file.read(32)
        file.seek(0)
        formats = _formats(uri, start)
        try:
            self._image = Image.open(_with_alpha(file, start), formats=formats)
            self._check()
            self.kind = (self._image.format or "image").lower()
            begin, end = self._places()
            self._places_left = iter(range(begin, end))
            self.count = end - begin
            self.is_still = self.count == 1
            self.damaged = False
            self._time_s = Fraction(0)
            self.first = self._shown(next(self._places_left))
        except Image.DecompressionBombError:
            raise NoVideo(f"the picture has more than {MOST_PIXELS} pixels, which are too many") from None
        except UnidentifiedImageError:  # its message is the name of a file object
            raise NoVideo(f"not a picture of a known kind ({', '.join(_FORMATS)})") from None

    def shown(self) -> Iterator[Shown]:
        """All pictures in order, each once: an animation is not repeated. Call it once."""
        yield self.first
        for place in self._places_left:
            try:
                shown = self._shown(place)
            except (OSError, EOFError, SyntaxError, ValueError) as error:
                if getattr(error, "errno", None):  # the disk, not the picture
                    raise
                self.damaged = True
                return
            yield shown

    def _check(self) -> None:
        image = self._image
        if image.width * image.height > MOST_PIXELS:  # of what its headers say: nothing is decoded
            raise NoVideo(f"the picture has {image.width}x{image.height} pixels, which are too many")
        if image.format == "TIFF" and _RAW_TAG in getattr(image, "tag_v2", ()):
            raise NoVideo("a raw photograph (DNG), of which only a preview could be read; develop it first")

    def _places(self) -> tuple[int, int]:
        """The first place among the file's pictures that is shown, and the end of them."""
        count = getattr(self._image, "n_frames", 1) if self._image.format in _MOVING else 1
        # The default picture of an animated PNG is for programs that do not know animations.
        hidden = count > 1 and bool(self._image.info.get("default_image"))
        return int(hidden), max(1, count)

    def _shown(self, place: int) -> Shown:
        self._image.seek(place)
        if self.is_still:
            return Shown(rgb_of(self._image), Fraction(0), None)
        self._image.load()
        duration_s = _seconds(self._image.info.get("duration")) or _NO_DURATION_S
        shown = Shown(rgb_of(self._image), self._time_s, duration_s)
        self._time_s += duration_s
        return shown

    def close(self) -> None:
        self._image.close()


def _seconds(milliseconds: Any) -> Fraction:
    # Pillow divides: a third of a second comes as 333.33333333333337 ms.
    return Fraction(float(milliseconds or 0) / 1000).limit_denominator(1_000_000)


def _with_alpha(file: BinaryIO, start: bytes) -> BinaryIO:
    """An animated WebP that says it has alpha. Without that, Pillow shows the black of libwebp where no frame
    covers the canvas, which is transparent there."""
    if not (_is_webp(start) and start[12:16] == b"VP8X" and start[_WEBP_FLAGS] & _WEBP_ANIMATED):
        return file
    data = bytearray(file.read())
    data[_WEBP_FLAGS] |= _WEBP_ALPHA
    return io.BytesIO(data)


def _is_webp(start: bytes) -> bool:
    return start[:4] == b"RIFF" and start[8:12] == b"WEBP"


def _is_video(start: bytes) -> bool:
    """ISO boxes that are not those of a picture (MP4, MOV), and Matroska."""
    return start[4:8] == b"ftyp" or start.startswith(b"\x1aE\xdf\xa3")


def _brand(start: bytes) -> str | None:
    """Which picture a file of ISO boxes says that it is: AVIF, HEIF or none."""
    if start[4:8] != b"ftyp":
        return None
    major, brands = start[8:12], (start[8:12], *(start[k : k + 4] for k in range(16, 32, 4)))
    if major in (b"avif", b"avis") or (major in (b"mif1", b"msf1") and {b"avif", b"avis"} & set(brands)):
        return "AVIF"
    return "HEIF" if major in _HEIF_BRANDS else None


def _formats(uri: str, start: bytes) -> tuple[str, ...]:
    if Path(uri).suffix.lower() not in HEIF_SUFFIXES and _brand(start) != "HEIF":
        return _FORMATS
    if _brand(start) == "AVIF" and "AVIF" in _FORMATS:
        return _FORMATS
    if not reads_heif():
        raise NoVideo("pictures of this kind need the package pillow-heif: pip install pillow-heif")
    register: Any = import_module("pillow_heif").register_heif_opener
    register()
    return *_FORMATS, "HEIF"
