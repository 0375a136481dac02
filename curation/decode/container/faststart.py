"""Moves the index of an mp4 (the box `moov`) to the front, so that the mp4 can be read from a pipe.

ffmpeg's own `movflags=faststart` needs a file. The pictures (the box `mdat`) stay as they are, byte for byte.
The index holds the places of the pictures in the file, and these move by the size of the index.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl"}
_PLACES = {b"stco": ">I", b"co64": ">Q"}  # tables of places, with 32 and 64 bits for each


def index_first(mp4: bytes) -> bytes:
    """The same mp4 with its index behind `ftyp`. An mp4 whose index is in front already is returned as it is.

    Raises `ValueError` for bytes that are not an mp4 of our encoder.
    """
    boxes = list(_boxes(mp4, 0, len(mp4)))
    kinds = [kind for kind, _, _ in boxes]
    if kinds[:1] != [b"ftyp"] or kinds.count(b"moov") != 1 or b"mdat" not in kinds:
        raise ValueError(f"not an mp4 of our encoder: its boxes are {kinds}")
    if kinds.index(b"moov") < kinds.index(b"mdat"):
        return mp4
    _, start, end = boxes[kinds.index(b"moov")]
    front = boxes[0][2]
    index = bytearray(mp4[start:end])
    _move_places(index, 0, len(index), after=front, before=start)
    return mp4[:front] + bytes(index) + mp4[front:start] + mp4[end:]


def _boxes(data: bytes | bytearray, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of each box between two places. The start is that of its head."""
    while start < end:
        size, kind = struct.unpack_from(">I4s", data, start)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start + 8)
        elif size == 0:  # to the end
            size = end - start
        if size < 8 or start + size > end:
            raise ValueError(f"not an mp4 of our encoder: its box {kind!r} has a size of {size}")
        yield kind, start, start + size
        start += size


def _move_places(index: bytearray, start: int, end: int, *, after: int, before: int) -> None:
    """Add the size of `index` to each place in its tables that is between `after` and `before`."""
    for kind, box, box_end in list(_boxes(index, start, end)):
        if kind in _PARENTS:
            _move_places(index, box + 8, box_end, after=after, before=before)
        elif form := _PLACES.get(kind):
            (count,) = struct.unpack_from(">I", index, box + 12)
            width = struct.calcsize(form)
            for at in range(box + 16, box + 16 + count * width, width):
                (place,) = struct.unpack_from(form, index, at)
                if after <= place < before:
                    struct.pack_into(form, index, at, place + len(index))
