"""The folder of videos for VBench's tool."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from generation.evaluate.vbench import export_vbench


def _videos(folder: Path, count: int) -> list[Path]:
    """Files that contain their number, in folders as sampling makes them."""
    paths = [folder / f"prompt-{k}" / "final.mp4" for k in range(count)]
    for k, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"video %d" % k)
    return paths


def _found(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def _prompt(name: str) -> str:
    """The prompt that VBench reads from a file name."""
    return re.sub(r"-\d+$", "", Path(name).stem)


def test_names_are_prompts_and_count_their_repeats(tmp_path: Path) -> None:
    prompts = ["a red ball", "a dog. It runs.", "a red ball", "a 1800s house-0", "a red ball"]
    videos = _videos(tmp_path, 5)
    out = export_vbench(tmp_path / "deep" / "out", videos, prompts)
    assert out == tmp_path / "deep" / "out"
    assert _found(out) == {
        "a red ball-0.mp4": b"video 0",
        "a dog. It runs.-0.mp4": b"video 1",
        "a red ball-1.mp4": b"video 2",
        "a 1800s house-0-0.mp4": b"video 3",
        "a red ball-2.mp4": b"video 4",
    }
    assert {_prompt(name) for name in _found(out)} == set(prompts)
    assert all(video.is_file() for video in videos)


@pytest.mark.parametrize("prompt", ["", ".", "..", "\n", "*?:", "éè 猫", "_", "-"])
def test_odd_prompts_have_their_file(prompt: str, tmp_path: Path) -> None:
    out = export_vbench(tmp_path / "out", _videos(tmp_path, 1), [prompt])
    assert _found(out) == {f"{prompt}-0.mp4": b"video 0"}


def test_a_prompt_that_begins_as_files_aside_do_keeps_its_video(tmp_path: Path) -> None:
    out = export_vbench(tmp_path / "out", _videos(tmp_path, 3), ["_a", "a", "_vbench"])
    assert _found(out) == {"_a-0.mp4": b"video 0", "a-0.mp4": b"video 1", "_vbench-0.mp4": b"video 2"}


def test_existing_files_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a-0.mp4").write_bytes(b"older")
    (out / "notes.txt").write_bytes(b"mine")
    export_vbench(out, _videos(tmp_path, 1), ["a"])
    assert _found(out) == {"a-0.mp4": b"video 0", "notes.txt": b"mine"}


def test_videos_that_would_be_scored_too_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "b-0.mp4").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"out holds 1 other videos \(b-0.mp4 …\).* name an empty folder"):
        export_vbench(out, _videos(tmp_path, 1), ["a"])
    assert _found(out) == {"b-0.mp4": b"other"}


@pytest.mark.parametrize(
    "prompt",
    ["either/or", "a\0b", "half \ud83d", "w" * 250, "猫" * 84],
    ids=["slash", "nul", "half a character", "long", "long in bytes"],
)
def test_prompts_that_name_no_file_are_told_before_anything_is_copied(prompt: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"prompt '{re.escape(repr(prompt)[1:20])}.*VBench names files"):
        export_vbench(tmp_path / "out", _videos(tmp_path, 2), ["fine", prompt])
    assert not (tmp_path / "out").exists()


def test_the_longest_name_that_can_be(tmp_path: Path) -> None:
    out = export_vbench(tmp_path / "out", _videos(tmp_path, 1), ["w" * 249])
    assert [len(name) for name in _found(out)] == [255]


def test_a_video_that_is_not_there_is_told_before_anything_is_copied(tmp_path: Path) -> None:
    videos = [*_videos(tmp_path, 1), tmp_path / "missing.mp4"]
    with pytest.raises(ValueError, match=r"missing\.mp4: there is no such file"):
        export_vbench(tmp_path / "out", videos, ["a", "b"])
    assert not (tmp_path / "out").exists()


def test_a_copy_that_fails_leaves_nothing_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(source: Path, target: Path) -> None:
        target.write_bytes(b"vid")
        raise OSError("no room left")

    out = tmp_path / "out"
    out.mkdir()
    (out / "a-0.mp4").write_bytes(b"older")
    monkeypatch.setattr("shutil.copyfile", half)
    with pytest.raises(OSError, match="no room left"):
        export_vbench(out, _videos(tmp_path, 1), ["a"])
    assert _found(out) == {"a-0.mp4": b"older"}
