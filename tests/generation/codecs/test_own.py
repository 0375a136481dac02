"""A codec of one's own: by import path, trained on and sampled with, and run only if the user allowed it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from generation import allowed, config
from generation.codecs.open import open_codec
from tests.generation import tiny_runs

ROOT = Path(__file__).parents[3]
PATH = "unshuffle:Unshuffle"
MINE = """
import torch
from torch.nn import functional
from generation.codecs.own import OwnCodec

class Unshuffle(OwnCodec):
    def __init__(self, side=4):
        self.temporal, self.spatial, self.channels = 1, side, 3 * side**2

    def encode(self, video):
        return functional.pixel_unshuffle(video.transpose(1, 2), self.spatial).transpose(1, 2).float()

    def decode(self, latents, frames):
        return functional.pixel_shuffle(latents.transpose(1, 2), self.spatial).transpose(1, 2)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "unshuffle.py").write_text(MINE + "open(__file__ + '.imported', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv(allowed.VARIABLE, raising=False)
    yield tmp_path
    sys.modules.pop("unshuffle", None)


def settings(**changed: object) -> config.Codec:
    return config.Codec.model_validate({"kind": PATH, "temporal": 1, "spatial": 4, **changed})


def test_it_encodes_and_decodes(here: Path) -> None:
    allowed.allow(PATH)
    codec = open_codec(settings())
    video = torch.rand(2, 3, 5, 8, 12) * 2 - 1
    latents = codec.encode(video)
    assert latents.shape == (2, 48, 5, 2, 3)
    assert codec.grid(5, 8, 12) == (5, 2, 3)
    expected = functional.pixel_unshuffle(video[1, :, 3], 4)
    assert torch.equal(latents[1, :, 3], expected)
    assert torch.equal(torch.cat(list(codec.decode_stream(latents, 5)), dim=2), video)
    assert codec.hash == open_codec(settings()).hash
    assert codec.hash != open_codec(settings(spatial=2, own={"side": 2})).hash


def test_what_nobody_allowed_does_not_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=f"{allowed.VARIABLE}={PATH}"):
        open_codec(settings())
    allowed.allow("other:Codec")
    with pytest.raises(ValueError, match="somebody else's"):
        open_codec(settings())
    assert not (here / "unshuffle.py.imported").exists()
    monkeypatch.setenv(allowed.VARIABLE, f"other:Codec, {PATH}")
    open_codec(settings())
    assert (here / "unshuffle.py.imported").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"spatial": 8}, r"write codec\.temporal=1 and codec\.spatial=4"),
        ({"own": {"sides": 4}}, r"codec\.own: .*'sides'"),
        ({"kind": "no_such_module:Codec"}, "No module named"),
        ({"kind": "unshuffle:Other"}, "has no attribute"),
        ({"kind": "json:JSONDecoder"}, "does not derive from"),
    ],
)
def test_what_does_not_work_is_one_sentence(here: Path, changed: dict[str, object], message: str) -> None:
    made = settings(**changed)
    allowed.allow(made.kind)
    with pytest.raises(ValueError, match=message):
        open_codec(made)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "wavelet"}, "there are patch, slice, cogvideox"),
        ({"own": {"a": 1}}, "parameters of a codec of your own"),
    ],
)
def test_a_wrong_name_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.Codec.model_validate(values)


def test_a_codec_of_reelmill_looks_as_before() -> None:
    assert "own" not in config.Codec().model_dump()
    assert settings(own={"side": 4}).model_dump()["own"] == {"side": 4}


def test_a_run_is_trained_with_it_and_samples(here: Path) -> None:
    data = tiny_runs.dataset(here / "data", clips=12)
    tiny = tiny_runs.tiny(codec={"kind": PATH, "temporal": 1, "spatial": 4}, train={"steps": 2})
    (here / "c.json").write_text(tiny.model_dump_json())
    (here / "c.yaml").write_text((here / "c.json").read_text())

    def reelmill(*arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "jobs.cli", *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    train = ("train", "stage1", "--data", str(data), "--out", "run", "--config")
    assert allowed.VARIABLE in reelmill(*train, "c.json", code=2)  # perhaps of another person's run
    reelmill(*train, "c.yaml")  # a file of the user's own
    reelmill(
        "sample", "a red circle", "--run", "run", "--out", "made", "--preview-only"
    )  # the user trained this run here
    assert json.loads((here / "made/0000-a-red-circle/preview.json").read_text())["codec"]["kind"] == PATH
    (here / "run").rename(here / "theirs")
    assert allowed.VARIABLE in reelmill(
        "sample", "a blue square", "--run", "theirs", "--out", "made", "--preview-only", code=2
    )
