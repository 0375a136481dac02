"""The picture for a README: the right frames are in the right places, enlarged without blur."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from generation.media import read_video, write_mp4
from generation.report.picture import _wrapped, main, write_picture
from generation.sample.preview_folder import Preview, save_preview

PREVIEW = Preview(
    prompt="",
    negative_prompt="",
    seed=0,
    frames=9,
    height=16,
    width=16,
    fps=8.0,
    sampling={},
    precision="fp32",
    weights_hash="w",
    codec={},
    codec_hash="c",
    text_hash="t",
)


def movie(side: int, seed: int, frames: int = 9) -> np.ndarray:
    """A video of coloured blocks, with other colours in every frame."""
    small = np.random.default_rng(seed).integers(30, 226, (frames, 4, 4, 3), np.uint8)
    return small.repeat(side // 4, 1).repeat(side // 4, 2)


def save(
    folder: Path, index: int, prompt: str = "a red square", final: int | None = 32, frames: int = 9
) -> Path:
    preview = dataclasses.replace(PREVIEW, prompt=prompt)
    found = save_preview(folder, index, preview, torch.zeros(1, 2, 2, 2, 2), [movie(16, 2 * index)])
    if final:
        write_mp4(found / "final.mp4", [movie(final, 2 * index + 1, frames)], 8)
    return found


def places(picture: np.ndarray, part: np.ndarray) -> list[tuple[int, int]]:
    """The places (y, x) where a picture holds exactly this part."""
    height, width = part.shape[:2]
    starts = np.argwhere((picture[: 1 - height, : 1 - width] == part[0, 0]).all(-1))
    found = [(y, x) for y, x in starts.tolist() if (picture[y : y + height, x : x + width] == part).all()]
    assert found, "it is not in the picture"
    return found


def enlarged(frame: np.ndarray, times: int) -> np.ndarray:
    return frame.repeat(times, 0).repeat(times, 1)


def shown(picture: Path, folder: Path, moments: Sequence[int], scale: int = 2) -> list[tuple[int, int]]:
    """The places of the frames of a preview, and of its final video."""
    pixels = np.asarray(Image.open(picture))
    found = []
    for name, times in (("preview.mp4", 2 * scale), ("final.mp4", scale)):
        frames = read_video(folder / name).frames
        for moment in moments:
            (place,) = places(pixels, enlarged(frames[moment], times))
            found.append(place)
    return found


def test_frames_of_both_videos_side_by_side(tmp_path: Path) -> None:
    folders = [save(tmp_path, k) for k in range(2)]
    out = tmp_path / "new" / "samples.png"
    assert write_picture(folders, out, frames=3, scale=2) == out
    image = Image.open(out)
    assert (image.format, image.mode) == ("PNG", "RGB")
    for folder in folders:
        found = shown(out, folder, [0, 4, 8])
        assert len({y for y, _ in found}) == 1  # frames are in one row, in order, without overlap
        gaps = np.diff([x for _, x in found])
        assert (gaps > 64).all()
        assert gaps[2] > gaps[0]  # the gap between two videos is wider than the gap between frames
    assert [p.name for p in out.parent.iterdir()] == ["samples.png"]


def test_white_ground_with_words(tmp_path: Path) -> None:
    folder = save(tmp_path, 0)
    out = write_picture([folder], tmp_path / "a.png", scale=2)
    pixels = np.asarray(Image.open(out))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all()
    found = shown(out, folder, [0, 4, 8])
    top, left = found[0]
    above = pixels[:top].min(-1) < 160
    rows = np.flatnonzero(above.any(1))
    assert len(rows) > 15  # there is a line of headings, and a line of the prompt
    # The heading of each video is above its left side.
    heading = above[: rows[0] + 12]
    for x in (left, found[3][1]):
        assert heading[:, x : x + 20].any()


def test_the_prompt_makes_a_difference(tmp_path: Path) -> None:
    pictures = []
    for name, prompt in (("a", "a red square"), ("b", "a red circle"), ("c", "a red square")):
        out = write_picture([save(tmp_path / name, 0, prompt)], tmp_path / f"{name}.png")
        pictures.append(out.read_bytes())
    assert pictures[0] == pictures[2]
    assert pictures[0] != pictures[1]


def test_clips_are_evenly_chosen_from_folders_of_previews(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    folders = [save(videos, k) for k in range(6)]
    save(videos, 6, final=None)  # a preview without a final video
    out = write_picture([videos], tmp_path / "a.png", clips=3, frames=1, scale=2)
    for k in (0, 2, 5):
        shown(out, folders[k], [0])
    for k in (1, 3, 4):
        with pytest.raises(AssertionError, match="not in the picture"):
            shown(out, folders[k], [0])
    assert write_picture([videos], tmp_path / "all.png", clips=100, frames=1)


def test_two_columns_give_a_better_shape(tmp_path: Path) -> None:
    folders = [save(tmp_path, k) for k in range(6)]
    out = write_picture(folders, tmp_path / "a.png", frames=2, scale=2)
    firsts = [shown(out, folder, [0])[0] for folder in folders]
    assert (len({x for _, x in firsts}), len({y for y, _ in firsts})) == (2, 3)
    assert firsts[0][0] == firsts[1][0]  # clips are placed row by row
    assert 0.8 < Image.open(out).width / Image.open(out).height < 3
    alone = write_picture(folders[:2], tmp_path / "b.png", frames=8, scale=2)
    assert len({shown(alone, folder, [0])[0][1] for folder in folders[:2]}) == 1


def test_a_final_video_that_ends_earlier(tmp_path: Path) -> None:
    folder = save(tmp_path, 0, frames=5)
    out = write_picture([folder], tmp_path / "a.png", frames=3, scale=2)
    assert len(shown(out, folder, [0, 2, 4])) == 6


def test_fewer_frames_than_asked(tmp_path: Path) -> None:
    folder = save(tmp_path, 0, frames=1)
    out = write_picture([folder], tmp_path / "a.png", frames=3, scale=2)
    assert len(shown(out, folder, [0])) == 2


@pytest.mark.parametrize(
    "prompt", ["", "狐が走る", "half \udcff", "x" * 3000, "word " * 500, "line\nbreak\0"]
)
def test_any_prompt(tmp_path: Path, prompt: str) -> None:
    folder = save(tmp_path, 0, prompt)
    out = write_picture([folder], tmp_path / "a.png", scale=2)
    shown(out, folder, [0, 4, 8])
    assert Image.open(out).height < 220


def test_text_is_wrapped() -> None:
    font = ImageFont.load_default(14)
    assert _wrapped("a b", font, 100) == ["a b"]
    assert _wrapped("one two three", font, 60) == ["one two", "three"]
    long = _wrapped("one two three four five six", font, 60)
    assert len(long) == 2
    assert long[1].endswith("…")
    assert _wrapped("one two thr", font, 60)[-1] == "thr"
    for text in ("x" * 100, "y " + "x" * 100, "word " * 20):
        assert all(font.getlength(line) <= 60 for line in _wrapped(text, font, 60))


def test_errors_name_the_file(tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    with pytest.raises(ValueError, match="name a folder of previews"):
        write_picture([], out)
    with pytest.raises(ValueError, match="none: there is no such"):
        write_picture([tmp_path / "none"], out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no preview with a final\.mp4"):
        write_picture([tmp_path / "empty"], out)
    with pytest.raises(ValueError, match=r"0000-a-red-square/final\.mp4: there is no such file"):
        write_picture([save(tmp_path / "small", 0, final=None)], out)
    broken = save(tmp_path / "broken", 0)
    (broken / "preview.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"preview\.mp4 cannot be read as a video"):
        write_picture([broken], out)
    sizes = [save(tmp_path / "sizes", 0), save(tmp_path / "sizes", 1, final=64)]
    with pytest.raises(ValueError, match="3 frames of 16x16 and 32x32, 3 frames of 16x16 and 64x64"):
        write_picture(sizes, out)
    with pytest.raises(ValueError, match=r"a\.jpg: the picture is a PNG"):
        write_picture(sizes[:1], tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="frames is 0"):
        write_picture(sizes[:1], out, frames=0)
    assert not out.exists()
    assert not list(tmp_path.glob("_*"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(tmp_path / "videos", 0)
    out = tmp_path / "a.png"
    main([str(tmp_path / "videos"), "--out", str(out), "--frames", "2", "--scale", "2"])
    assert capsys.readouterr().out == f"{out}\n"
    assert len(shown(out, folder, [0, 8])) == 4
    with pytest.raises(SystemExit) as left:
        main([str(tmp_path / "none"), "--out", str(out)])
    assert left.value.code == 2
    assert "none: there is no such file or folder" in capsys.readouterr().err
