"""Checkpoints on disk are whole or absent, whenever a process is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from generation import disk
from generation.train import checkpoint
from tests.generation.tiny_runs import ROOT, dataset, different, open_trainer, tiny, train

Tensors = dict[str, dict[str, torch.Tensor]]


def _tensors(value: float = 1.0) -> Tensors:
    w = torch.arange(6.0).reshape(2, 3) * value
    return {
        "model": {"a.weight": w, "b": w[0].clone()},
        "optimizer": {"a.weight/exp_avg": w.t(), "a.weight/step": torch.tensor(3.0)},
        "ema": {},
    }


def _save(folder: Path, step: int, keep_last: int = 3, **state: Any) -> Path:
    return checkpoint.save(folder, step, _tensors(step), {"step": step, **state}, keep_last)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = _save(tmp_path / "new" / "checkpoints", 12, position={"phase": 1, "epoch": 0, "index": 7})
    assert path.name == "step-0000012"
    found = checkpoint.load(path.parent, 12)
    assert found.state == {"step": 12, "position": {"phase": 1, "epoch": 0, "index": 7}}
    expected = _tensors(12)
    assert found.tensors.keys() == expected.keys()
    for part, named in expected.items():
        assert found.tensors[part].keys() == named.keys()
        assert all(torch.equal(found.tensors[part][n], t) for n, t in named.items())
    assert sorted(p.name for p in path.iterdir()) == [
        "ema.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


def test_the_newest_are_kept_in_numeric_order(tmp_path: Path) -> None:
    for step in (9, 99, 9_999_999, 10_000_000):
        _save(tmp_path, step, keep_last=3)
    assert checkpoint.steps(tmp_path) == [99, 9_999_999, 10_000_000]
    _save(tmp_path, 10_000_001, keep_last=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-10000001"]


def test_what_is_no_checkpoint_is_not_taken_for_one(tmp_path: Path) -> None:
    assert checkpoint.steps(tmp_path / "nowhere") == []
    _save(tmp_path, 3)
    for name in ("_step-0000004", "step-old", "step-0000005.bak"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-0000006").write_text("a file")
    assert checkpoint.steps(tmp_path) == [3]


def test_what_a_killed_process_left_is_removed_by_the_next_save(tmp_path: Path) -> None:
    _save(tmp_path, 3)
    for name in ("_step-0000004", "_step-0000009", "_old-step-0000003"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    _save(tmp_path, 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000003", "step-0000004"]
    checkpoint.load(tmp_path, 4)


def test_a_step_that_is_saved_again_replaces_the_old_one(tmp_path: Path) -> None:
    _save(tmp_path, 5, note="old")
    _save(tmp_path, 5, note="new")
    assert checkpoint.load(tmp_path, 5).state["note"] == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000005"]


_ENDLESS = """
import sys, itertools, torch
from pathlib import Path
from generation.train import checkpoint
tensors = {part: {str(k): torch.full((20000,), float(k)) for k in range(20)} for part in checkpoint.PARTS}
print("ready", flush=True)
for step in itertools.count(int(sys.argv[2])):
    checkpoint.save(Path(sys.argv[1]), step, tensors, {"step": step}, 2)
"""


def test_a_process_may_be_killed_at_any_moment(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    seen, unfinished = 0, 0
    for attempt in range(3):
        first = (checkpoint.steps(folder) or [0])[-1] + 1
        process = subprocess.Popen(
            [sys.executable, "-c", _ENDLESS, str(folder), str(first)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.25 + 0.013 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        steps = checkpoint.steps(folder)
        assert steps
        assert 1 <= len(steps) <= 3  # a third is left if the kill came before its removal
        for step in steps[-2:]:
            found = checkpoint.load(folder, step)
            assert found.state == {"step": step}
            assert all(
                torch.equal(named[str(k)], torch.full((20000,), float(k)))
                for named in found.tensors.values()
                for k in range(20)
            )
        seen = max(seen, steps[-1])
        unfinished += any(p.name.startswith("_") for p in folder.iterdir())
    assert seen > 4
    assert unfinished  # at least one process was killed while it wrote
    _save(folder, seen + 1)
    assert not [p for p in folder.iterdir() if p.name.startswith("_")]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", _truncate),
        ("model.safetensors", lambda path: path.write_bytes(b"")),
        ("optimizer.safetensors", Path.unlink),
        ("state.json", _truncate),
        ("state.json", lambda path: path.write_bytes(b"\xff\xfe")),
        ("state.json", Path.unlink),
    ],
)
def test_a_damaged_checkpoint_is_named_with_the_way_out(name: str, damage: Any, tmp_path: Path) -> None:
    path = _save(tmp_path, 5)
    damage(path / name)
    with pytest.raises(ValueError, match="cannot be read") as caught:
        checkpoint.load(tmp_path, 5)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("remove this folder to resume from the checkpoint before")


def test_a_small_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("old")
    disk.write_text(path, "nüw")
    assert path.read_text(encoding="utf-8") == "nüw"
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


# ---- in use by the trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data"), clips=12)


def test_a_training_keeps_as_many_as_it_is_told(data: Path, tmp_path: Path) -> None:
    config = tiny(train={"steps": 11, "checkpoint_every": 3, "keep_last": 2})
    folder = train(config, data, tmp_path).folder
    assert checkpoint.steps(folder / "checkpoints") == [9, 11]
    assert json.loads((folder / "weights" / "weights.json").read_text())["step"] == 11


def test_when_the_newest_is_damaged_and_removed_the_one_before_leads_to_the_same_end(
    data: Path, tmp_path: Path
) -> None:
    config = tiny(train={"steps": 10, "checkpoint_every": 4})
    straight = train(config, data, tmp_path / "straight")
    folder = train(config, data, tmp_path / "damaged", 8).folder / "checkpoints"
    newest = folder / "step-0000008"
    _truncate(newest / "model.safetensors")
    with pytest.raises(ValueError, match="step-0000008: the checkpoint cannot be read"):
        train(config, data, tmp_path / "damaged")
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    again = open_trainer(config, data, tmp_path / "damaged")
    assert again.resume() == 4
    # The weights were those of step 8. A resume exports the weights of its checkpoint.
    weights = again.folder / "weights"
    assert json.loads((weights / "weights.json").read_text())["step"] == 4
    saved = load_file(weights / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(saved[n], average) for n, average in again.ema.items())
    again.fit()
    assert different(straight.folder, again.folder) == []
