"""Preview folders are whole or absent, return the same bits, and have clear errors."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from generation.media import read_video
from generation.sample.preview_folder import (
    Preview,
    find_preview,
    is_preview,
    load_preview,
    load_request,
    previews_in,
    save_preview,
    slug,
    some_of,
)

PREVIEW = Preview(
    prompt="A red fox, running",
    negative_prompt="blurry",
    seed=3,
    frames=9,
    height=32,
    width=64,
    fps=8.0,
    sampling={"steps": 4, "guidance": 6.0, "guidance_ramp": "constant"},
    precision="fp32",
    weights_hash="w1",
    codec={"kind": "patch", "temporal": 4, "spatial": 8, "std": 0.5},
    codec_hash="c1",
    text_hash="t1",
    version="0.1.0",
)


def _latents(seed: int = 0) -> Tensor:
    return torch.randn((1, 6, 3, 4, 8), generator=torch.Generator().manual_seed(seed))


def _pieces() -> Iterator[np.ndarray]:
    for n in (1, 4, 4):
        yield np.full((n, 32, 64, 3), 100, np.uint8)


def _save(folder: Path, index: int = 0, preview: Preview = PREVIEW) -> Path:
    return save_preview(folder, index, preview, _latents(), _pieces())


def test_the_same_bits_come_back(tmp_path: Path) -> None:
    latents = _latents()
    latents[0, 0, 0, 0, :3] = torch.tensor([1e-42, -0.0, 3.4e38])  # subnormal, signed zero, huge
    folder = save_preview(tmp_path, 7, PREVIEW, latents, _pieces())
    assert folder == tmp_path / "0007-a-red-fox-running"
    assert sorted(p.name for p in folder.iterdir()) == ["latents.safetensors", "preview.json", "preview.mp4"]
    for path in (folder, *folder.iterdir()):
        preview, found = load_preview(path)
        assert preview == PREVIEW
        assert found.numpy().tobytes() == latents.numpy().tobytes()
        assert found.shape == latents.shape
    video = read_video(folder / "preview.mp4")
    assert video.frames.shape == (9, 32, 64, 3)
    assert video.fps == 8
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_views_and_gradients_are_saved_as_values(tmp_path: Path) -> None:
    latents = _latents().requires_grad_().transpose(3, 4)
    _, found = load_preview(save_preview(tmp_path, 0, PREVIEW, latents, _pieces()))
    assert torch.equal(found, latents)


def test_json_tells_what_is_there(tmp_path: Path) -> None:
    data = json.loads((_save(tmp_path) / "preview.json").read_text())
    assert data["prompt"] == "A red fox, running"
    assert data["latents"]["shape"] == [1, 6, 3, 4, 8]
    assert data["latents"]["dtype"] == "float32"
    assert data["version"] == "0.1.0"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("A red fox, running!", "a-red-fox-running"),
        ("Crème brûlée", "creme-brulee"),
        ("it's  a -- TEST", "its-a-test"),
        ("../../etc/passwd", "etc-passwd"),
        ("狐が走る", "preview"),
        ("", "preview"),
        ("\udcff\n\t", "preview"),
        ("x" * 300, "x" * 40),
        ("word " * 30, "word-word-word-word-word-word-word-word"),
    ],
)
def test_slug(prompt: str, expected: str) -> None:
    assert slug(prompt) == expected


@pytest.mark.parametrize(
    "prompt", ["狐が走る", "", "line\nbreak", "half \udcff surrogate", "a/b\\c\0d", "🦊" * 500]
)
def test_any_prompt(tmp_path: Path, prompt: str) -> None:
    preview = dataclasses.replace(PREVIEW, prompt=prompt)
    folder = _save(tmp_path, preview=preview)
    assert folder.name.startswith("0000-")
    assert load_preview(folder)[0] == preview
    assert find_preview(tmp_path, 0, preview) == folder


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    assert find_preview(tmp_path / "none", 0, PREVIEW) is None
    folder = _save(tmp_path)
    assert find_preview(tmp_path, 0, PREVIEW) == folder
    assert find_preview(tmp_path, 1, PREVIEW) is None
    # The version of the program does not count if the models are the same.
    assert find_preview(tmp_path, 0, dataclasses.replace(PREVIEW, version="9")) == folder
    # Files of a killed process are not a preview, and do not block a new preview.
    (tmp_path / "_0001-a-red-fox-running").mkdir()
    (tmp_path / "_0001-a-red-fox-running" / "preview.json").write_text("{")
    assert find_preview(tmp_path, 1, PREVIEW) is None
    assert sorted(p.name for p in (_save(tmp_path, 1)).iterdir()) == [
        "latents.safetensors",
        "preview.json",
        "preview.mp4",
    ]
    assert not (tmp_path / "_0001-a-red-fox-running").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "A red fox, running "},
        {"negative_prompt": ""},
        {"seed": 4},
        {"frames": 13},
        {"fps": 16.0},
        {"sampling": {"steps": 4, "guidance": 6.0, "guidance_ramp": "dynamic"}},
        {"precision": "bf16"},
        {"weights_hash": "w2"},
        {"codec_hash": "c2"},
        {"text_hash": "t2"},
    ],
)
def test_another_preview_is_not_taken_for_it(tmp_path: Path, change: dict[str, object]) -> None:
    other = dataclasses.replace(PREVIEW, **change)  # type: ignore[arg-type]
    folder = _save(tmp_path)
    before = (folder / "latents.safetensors").read_bytes()
    words = rf"0000-a-red-fox-running holds another preview \(other values of {next(iter(change))}\)"
    with pytest.raises(ValueError, match=words):
        find_preview(tmp_path, 0, other)
    with pytest.raises(ValueError, match=words):
        _save(tmp_path, preview=other)
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]
    assert (folder / "latents.safetensors").read_bytes() == before


def test_the_same_again_replaces_it(tmp_path: Path) -> None:
    folder = _save(tmp_path)
    (folder / "final.mp4").write_bytes(b"of the first one")
    assert save_preview(tmp_path, 0, PREVIEW, _latents(1), _pieces()) == folder
    assert torch.equal(load_preview(folder)[1], _latents(1))
    assert not (folder / "final.mp4").exists()


def test_five_digits(tmp_path: Path) -> None:
    folder = _save(tmp_path, 12345)
    assert folder.name.startswith("12345-")
    assert find_preview(tmp_path, 12345, PREVIEW) == folder
    assert find_preview(tmp_path, 2345, PREVIEW) is None


def test_finished_ones_in_their_order(tmp_path: Path) -> None:
    assert previews_in(tmp_path / "none") == []
    folders = [_save(tmp_path, index) for index in (9999, 2, 10000)]
    named = tmp_path / "without a number"
    shutil.copytree(folders[0], named)
    shutil.copytree(folders[0], tmp_path / "_0001-unfinished")
    (tmp_path / "0003-empty").mkdir()
    (tmp_path / "0004-file").write_text("")
    assert previews_in(tmp_path) == [folders[1], folders[0], folders[2], named]


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [
        (0, 3, []),
        (2, 3, [0, 1]),
        (3, 3, [0, 1, 2]),
        (9, 3, [0, 4, 8]),
        (100, 4, [0, 33, 66, 99]),
        (9, 1, [0]),
        (9, 0, []),
    ],
)
def test_some_of_many(count: int, most: int, expected: list[int]) -> None:
    assert some_of(range(count), most) == expected


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield np.zeros((1, 32, 64, 3), np.uint8)
        raise RuntimeError("the decoder gave up")

    with pytest.raises(RuntimeError, match="gave up"):
        save_preview(tmp_path, 0, PREVIEW, _latents(), broken())
    assert list(tmp_path.iterdir()) == []


def test_what_counts_as_a_preview(tmp_path: Path) -> None:
    folder = _save(tmp_path)
    (folder / "final.mp4").write_bytes(b"")
    shutil.copy(folder / "preview.mp4", tmp_path / "preview.mp4")
    assert is_preview(folder)
    assert is_preview(folder / "preview.mp4")
    assert is_preview(folder / "latents.safetensors")
    assert not is_preview(folder / "final.mp4")
    assert not is_preview(tmp_path / "preview.mp4")
    assert not is_preview(tmp_path)
    assert not is_preview(tmp_path / "none")


def _without_latents(folder: Path) -> None:
    (folder / "latents.safetensors").unlink()


def _truncated(folder: Path) -> None:
    file = folder / "latents.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _other_shape(folder: Path) -> None:
    save_file({"latents": _latents()[:, :, :2].contiguous()}, folder / "latents.safetensors")


def _other_type(folder: Path) -> None:
    save_file({"latents": _latents().double()}, folder / "latents.safetensors")


def _other_values(folder: Path) -> None:
    save_file({"latents": _latents(1)}, folder / "latents.safetensors")


def _other_name(folder: Path) -> None:
    save_file({"z": _latents()}, folder / "latents.safetensors")


def _edit(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = json.loads((folder / "preview.json").read_text())
        for name, value in changes.items():
            if value is None:
                del data[name]
            else:
                data[name] = value
        (folder / "preview.json").write_text(json.dumps(data))

    return change


def _no_json(folder: Path) -> None:
    (folder / "preview.json").write_text('{"prompt": ')


def _binary(folder: Path) -> None:
    (folder / "preview.json").write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_without_latents, r"latents\.safetensors is missing"),
        (_truncated, r"latents\.safetensors is broken"),
        (_other_shape, r"float32 \[1, 6, 2, 4, 8\], not float32 \[1, 6, 3, 4, 8\]"),
        (_other_type, r"float64 \[1, 6, 3, 4, 8\], not float32"),
        (_other_values, r"the values \(hash\) have changed"),
        (_other_name, r"no tensor `latents` but z"),
        (_no_json, r"preview\.json is not JSON"),
        (_binary, r"preview\.json is not JSON"),
        (_edit(seed=None), r"preview\.json lacks 'seed'"),
        (_edit(latents=None), r"preview\.json lacks 'latents'"),
        (_edit(frames="nine"), r"preview\.json: frames is 'nine'"),
        (_edit(format="reelmill preview 9"), r"its format is 'reelmill preview 9'"),
    ],
)
def test_damage(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    folder = _save(tmp_path)
    damage(folder)
    with pytest.raises(ValueError, match=words):
        load_preview(folder)


def test_no_preview(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        load_preview(tmp_path / "none")
    with pytest.raises(ValueError, match="is not a preview; give a folder with"):
        load_preview(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="is not a preview"):
        load_request(tmp_path / "clip.mp4")
