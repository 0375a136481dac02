"""The suffixes of videos, images and lists."""

from __future__ import annotations

import os
from pathlib import Path

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
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
LIST_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".json", ".txt", ".parquet"})


def is_media(path: str) -> bool:
    # A Mac writes `._x.mp4` beside `x.mp4` on disks with other file systems. `._x.mp4` is not a video.
    return Path(path).suffix.lower() in MEDIA_SUFFIXES and not os.path.basename(path).startswith("._")


def is_list(path: str) -> bool:
    """By its suffix, behind which `.gz` may stand."""
    return Path(path.lower().removesuffix(".gz")).suffix in LIST_SUFFIXES


def is_image(uri: str) -> bool:
    return Path(uri).suffix.lower() in IMAGE_SUFFIXES
