"""Thumbnails of clips on both sides of a cut-off."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from curation.report.read import STATUSES, Clips
from curation.report.words import short
from curation.store.dataset import Dataset

THUMBNAILS_PER_SIDE = 12  # at most, on each side of a cut-off
_THUMBNAIL_BYTES = 4_000_000  # of all thumbnails together, as data URLs


@dataclass
class Tile:
    """One clip that is shown. `fill` reads the missing values from the part of the clip."""

    clip: int
    value: float | None = None
    uri: str = ""
    start_s: float = 0.0
    seconds: float = 0.0
    status: str = ""
    reason: str | None = None
    message: str | None = None
    caption: str | None = None
    thumbnail: bytes | None = field(default=None, repr=False)
    image: str | None = None  # data URL

    @property
    def name(self) -> str:
        return short(self.uri.rstrip("/").rsplit("/", 1)[-1])


@dataclass(frozen=True)
class Strip:
    """Clips on one side of a cut-off. The nearest clip comes first."""

    title: str
    passes: bool
    tiles: list[Tile]


def both_sides(
    values: np.ndarray, inside: np.ndarray, cut: float | None, out: np.ndarray, *, is_min: bool
) -> list[Strip]:
    """The clips that a cut-off just rejects (of `out`), and those that it just lets pass (of `inside`)."""
    if cut is None:
        return []
    passes, rejected = ("at or above", "below") if is_min else ("at or below", "above")
    return [
        Strip(f"Just {rejected} {cut:g}", False, nearest(values, out, cut)),
        Strip(f"Just {passes} {cut:g}", True, nearest(values, inside, cut)),
    ]


def nearest(values: np.ndarray, among: np.ndarray, cut: float) -> list[Tile]:
    """The clips nearest to a cut-off. Equally near clips are chosen evenly, to show many sources."""
    where = np.flatnonzero(among)
    where = where[np.argsort(np.abs(values[where] - cut), kind="stable")]
    if len(where) > THUMBNAILS_PER_SIDE:
        distance = np.abs(values[where] - cut)
        limit = distance[THUMBNAILS_PER_SIDE - 1]
        nearer = where[distance < limit]
        where = np.concatenate([nearer, spread(where[distance == limit], THUMBNAILS_PER_SIDE - len(nearer))])
    return [Tile(int(i), float(values[i])) for i in where]


def spread(numbers: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of `numbers`, evenly spaced, so that the page shows many sources."""
    if len(numbers) <= most:
        return numbers
    return numbers[np.linspace(0, len(numbers) - 1, most).round().astype(int)]


def fill(dataset: Dataset, clips: Clips, strips: Iterable[Sequence[Tile]]) -> None:
    """Complete the tiles. Only the parts of shown clips are read, and only shown thumbnails are kept."""
    wanted: dict[int, list[Tile]] = {}
    for strip in strips:
        for tile in strip:
            wanted.setdefault(tile.clip, []).append(tile)
    numbers = np.array(sorted(wanted), dtype=np.int64)
    firsts = [first for _, first in clips.parts] + [len(clips)]
    for (part, first), end in zip(clips.parts, firsts[1:], strict=True):
        here = numbers[(numbers >= first) & (numbers < end)]
        if not len(here):
            continue
        rows = dataset.read_part("clips", part, ["uri", "thumbnail"]).take(here - first).to_pylist()
        for place, row in zip(here.tolist(), rows, strict=True):
            reason = int(clips.reason[place])
            message = clips.message[place].as_py()
            for tile in wanted[place]:
                tile.uri = row["uri"] or ""
                tile.thumbnail = row["thumbnail"]
                tile.start_s = float(clips.start_s[place])
                tile.seconds = float(clips.seconds[place])
                tile.status = STATUSES[clips.status[place]]
                tile.reason = clips.reasons[reason] if reason >= 0 else None
                tile.message = short(message) if message else None


def embed(strips: Sequence[Sequence[Tile]]) -> None:
    """Turn thumbnails into data URLs, up to the limit. All first tiles of strips come before second tiles."""
    left = _THUMBNAIL_BYTES
    for rank in range(max(map(len, strips), default=0)):
        for strip in strips:
            if rank < len(strip):
                tile = strip[rank]
                url = _data_url(tile.thumbnail)
                if url and len(url) <= left:
                    tile.image = url
                    left -= len(url)
                tile.thumbnail = None


def _data_url(image: bytes | None) -> str | None:
    if image is None:
        return None
    if image[:2] == b"\xff\xd8":
        kind = "jpeg"
    elif image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        kind = "webp"
    else:
        return None
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
