"""Small files that decode to more than a memory holds."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from PIL import Image

from curation.decode.video import NoVideo, Video


def test_a_gif_is_refused_by_its_headers(tmp_path: Path) -> None:
    frame = b"!\xf9\4\0\1\0\0\0," + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0\2\2D\1\0"
    head = b"GIF89a" + struct.pack("<HH", 20000, 20000) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    (tmp_path / "a.gif").write_bytes(head + frame * 3 + b";")
    with pytest.raises(NoVideo, match="no frame could be decoded"):
        Video(str(tmp_path / "a.gif"))


@pytest.mark.parametrize("kind", ["png", "webp", "bmp"])
def test_a_picture_is_refused_by_its_headers(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (15000, 12000)).save(tmp_path / f"a.{kind}")
    for limit in (Image.MAX_IMAGE_PIXELS, None):  # None: as a program sets it that reads larger ones
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(NoVideo, match="pixels, which are too many"):
            Video(str(tmp_path / f"a.{kind}"))
