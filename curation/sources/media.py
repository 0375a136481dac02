"""The suffixes of videos, images and lists."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from captioning.beside import SUFFIXES

HEIF_SUFFIXES = frozenset({".heic", ".heif"})  # of phones; read where the package pillow-heif is installed
IMAGE_SUFFIXES = HEIF_SUFFIXES | {
    ".jpg",
    ".jpeg",
    ".jfif",
    ".png",
    ".apng",
    ".webp",
    ".avif",
    ".bmp",
    ".tif",
    ".tiff",
}
VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".ts",
        ".m2ts",
        ".mts",
        ".mpg",
        ".mpeg",
        ".vob",
        ".wmv",
        ".asf",
        ".flv",
        ".f4v",
        ".3gp",
        ".3g2",
        ".ogv",
        ".mxf",
        ".gif",
        ".y4m",
        ".rm",
        ".rmvb",
        ".dv",
        ".ivf",
        ".h264",
        ".264",
        ".hevc",
        ".265",
    ]
)
MEDIA_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES
CAPTION_SUFFIXES = frozenset(SUFFIXES)
LIST_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt", ".parquet"})
# Lists for other programs, with which these can be saved as CSV or JSONL.
OTHER_LISTS = frozenset(
    {".xlsx", ".xls", ".ods", ".yaml", ".yml", ".pkl", ".arrow", ".feather", ".xml", ".db", ".sqlite"}
)


def is_media(path: str) -> bool:
    # A Mac writes `._x.mp4` beside `x.mp4` on disks with other file systems. `._x.mp4` is not a video.
    suffix = Path(path).suffix.lower()
    if suffix in HEIF_SUFFIXES and not reads_heif():
        return False
    return suffix in MEDIA_SUFFIXES and not os.path.basename(path).startswith("._")


@cache
def reads_heif() -> bool:
    return find_spec("pillow_heif") is not None


def left_out(suffixes: Mapping[str, int]) -> str:
    """What a listing left out, in words, with the most frequent suffix first."""
    words = ", ".join(f"{n} {suffix}" for suffix, n in sorted(suffixes.items(), key=lambda i: (-i[1], i[0])))
    remedy = "; pip install pillow-heif, and HEIC is read" if HEIF_SUFFIXES & suffixes.keys() else ""
    return f"left out: {words}{remedy if not reads_heif() else ''}"


def suffix_left_out(path: str) -> str | None:
    """How a file that is no video or image is counted; None: it is hidden, or may hold captions."""
    name = os.path.basename(path)
    suffix = Path(name).suffix.lower()
    if name.startswith(".") or suffix in CAPTION_SUFFIXES or name.lower() in ("thumbs.db", "desktop.ini"):
        return None
    return suffix or "without a suffix"


def is_list(path: str) -> bool:
    """By its suffix, behind which `.gz` may stand."""
    return Path(path.lower().removesuffix(".gz")).suffix in LIST_SUFFIXES


def is_image(uri: str) -> bool:
    """By its suffix. Only who opens the file knows whether it moves (`curation.decode.image_file`)."""
    return Path(uri).suffix.lower() in IMAGE_SUFFIXES
