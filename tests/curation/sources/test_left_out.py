"""What a folder holds and a build does not take is said; AVIF, JFIF and HEIC are pictures."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from curation.decode.video import NoVideo, Video
from curation.sources import media
from curation.sources.listing import list_sources
from curation.sources.source import SourcesError

HALVES = ((200, 30, 30), (40, 50, 200))  # left, right


def picture() -> Image.Image:
    image = Image.new("RGB", (96, 64), HALVES[0])
    image.paste(HALVES[1], (48, 0, 96, 64))
    return image


def listed(name: str) -> tuple[list[str], list[str]]:
    """(names, lines that were said)."""
    said: list[str] = []
    return [Path(s.uri).name for s in list_sources([name], None, said.append)], said


@pytest.fixture(autouse=True)
def _afresh() -> None:
    media.reads_heif.cache_clear()


def fill(folder: Path) -> None:
    names = [
        "a.mp4",
        "b.avif",
        "c.jfif",
        "x.heic",
        "y.HEIC",
        "x.psd",
        "README",
        ".hidden",
        "._a.mp4",
        "a.txt",
        "a.srt",
    ]
    (folder / "deep").mkdir()
    for name in [*names, "deep/z.heic", "deep/Thumbs.db"]:
        (folder / name).write_bytes(b"x")


@pytest.mark.parametrize("prefix", ["", "file://", "glob"])
def test_a_line_counts_what_is_left_out(tmp_path: Path, prefix: str) -> None:
    fill(tmp_path)
    name = f"{tmp_path}/**" if prefix == "glob" else f"{prefix}{tmp_path}"
    names, said = listed(name)
    assert names == ["a.mp4", "b.avif", "c.jfif"]
    (line,) = said
    assert "left out: 3 .heic, 1 .psd, 1 without a suffix" in line
    assert "pip install pillow-heif" in line


def test_a_remote_folder_says_it_too() -> None:
    import fsspec

    for name in ("a.mp4", "b.psd", "c.txt"):
        with fsspec.open(f"memory://left/{name}", "wb") as file:
            file.write(b"x")
    names, said = listed("memory://left")
    assert names == ["a.mp4"]
    assert said == ["memory://left: left out: 1 .psd"]


def test_a_folder_without_any_media(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(SourcesError, match=r"no video or image in it \(left out: 1 \.heic; pip install"):
        listed(str(tmp_path))


def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.vtt", "a.json"):
        (tmp_path / name).write_bytes(b"x")
    assert listed(str(tmp_path)) == (["a.mp4"], [])


@pytest.mark.parametrize(("name", "kind"), [("a.avif", "AVIF"), ("a.jfif", "JPEG"), ("a.jpg", "AVIF")])
def test_pictures_are_read(tmp_path: Path, name: str, kind: str) -> None:
    picture().save(tmp_path / name, kind, quality=95)
    with Video(str(tmp_path / name)) as video:
        assert (video.info.width, video.info.height, video.info.is_image) == (96, 64, True)
        (frame,) = video.frames()
        rgb = frame.rgb(96, 64).astype(float)
    for half, colour in zip((rgb[8:-8, 8:40], rgb[8:-8, 56:-8]), HALVES, strict=True):
        assert np.abs(half.reshape(-1, 3).mean(0) - colour).max() < 8


def test_a_picture_that_needs_a_package_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(NoVideo, match="pip install pillow-heif"):
        Video(str(tmp_path / "a.heic"))


def test_with_the_package_heic_is_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is not installed here: one that knows a format of its own stands in its place."""

    class Own(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            assert self.fp is not None
            self.fp.read(4)
            self._mode, self._size = "RGB", (4, 2)
            self.tile = [ImageFile._Tile("raw", (0, 0, 4, 2), 4, ("RGB", 0, 1))]

    stand_in = types.ModuleType("pillow_heif")
    stand_in.__dict__["register_heif_opener"] = lambda: Image.register_open(
        "HEIF", Own, lambda p: p[:4] == b"HEIF"
    )
    monkeypatch.setitem(sys.modules, "pillow_heif", stand_in)
    monkeypatch.setattr(media, "find_spec", lambda name: name)
    (tmp_path / "a.HEIC").write_bytes(b"HEIF" + bytes([9, 99, 199]) * 8)
    assert listed(str(tmp_path)) == (["a.HEIC"], [])
    with Video(str(tmp_path / "a.HEIC")) as video:
        assert (video.info.width, video.info.height, video.info.is_image) == (4, 2, True)
    media.reads_heif.cache_clear()
