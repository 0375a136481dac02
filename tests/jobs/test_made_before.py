"""A dataset, a run and a preview that version 0.1.0 made are used by the commands of today."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner, Result

from curation.cluster import session
from jobs.cli import app
from tests.curation.inline import Inline

KEPT = Path(__file__).parents[1] / "data" / "made-by-0.1.0"
PLACE = Path("/tmp/reelmill-0.1.0")  # the tables name the videos by this path


def reelmill(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def clips_in(dataset: Path) -> dict[str, bytes]:
    rows = [row for p in (dataset / "shards").glob("*.parquet") for row in pq.read_table(p).to_pylist()]
    return {row["clip_id"]: row["video"]["bytes"] for row in rows}


@pytest.fixture
def made() -> Iterator[Path]:
    with PLACE.with_suffix(".lock").open("w") as lock:  # another run of the tests may use the place
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(PLACE, ignore_errors=True)
        shutil.copytree(KEPT, PLACE)
        yield PLACE
        shutil.rmtree(PLACE)


@pytest.fixture
def did(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inline]:
    """What the workers do; they work in this process, without Ray."""
    monkeypatch.setattr(session, "session", lambda _: nullcontext())
    with Inline() as counts:
        yield counts


def test_a_dataset_is_complete_and_correct(made: Path) -> None:
    before = content(made / "dataset")
    assert reelmill("status", made / "dataset").exit_code == 0
    assert reelmill("verify", made / "dataset", "--decode").exit_code == 0
    assert reelmill("export", made / "dataset", "--to", "files", "--out", made / "files").exit_code == 0
    exported = {p.stem: p.read_bytes() for p in (made / "files").glob("*.mp4")}
    assert exported == clips_in(KEPT / "dataset")
    assert len(exported) == 3
    assert content(made / "dataset") == before
    assert reelmill("report", made / "dataset").exit_code == 0
    assert (made / "dataset" / "report.html").stat().st_size > 10_000


def test_a_build_has_nothing_to_do(made: Path, did: Inline) -> None:
    dataset = made / "dataset"
    before = content(dataset)
    built = reelmill(
        "build", made / "corpus" / "videos", "--out", dataset, "--config", dataset / "dataset.json"
    )
    assert built.exit_code == 0, built.output
    assert not did.decodes
    assert not did.encoded
    assert not did.captioned
    after = content(dataset)
    other = {name for name in before if after.get(name) != before[name]}
    # Shards get the hashes of their clips, which stay as they are.
    assert other <= {"dataset.json"} | {name for name in before if name.startswith("shards/")}
    assert clips_in(dataset) == clips_in(KEPT / "dataset")
    assert after.keys() - before.keys() == {"report.html"}
    old, new = (json.loads(files["dataset.json"]) for files in (before, after))
    assert {k for k in old if old[k] != new.get(k)} <= {"reelmill_version", "schema_version"}


def test_a_rule_on_a_column_that_came_later_scores_once(made: Path, did: Inline) -> None:
    """The clips have all other columns of `quality`, which stay as they were measured."""
    dataset = made / "dataset"
    old = {row["clip_id"]: row for row in pq.read_table(dataset / "clips").to_pylist()}
    rule = ("--config", dataset / "dataset.json", "--set", "rules.quality.combing.max=0.15")
    built = reelmill("build", made / "corpus" / "videos", "--out", dataset, *rule)
    assert built.exit_code == 0, built.output
    new = {row["clip_id"]: row for row in pq.read_table(dataset / "clips").to_pylist()}
    assert {row["quality.combing"] for row in new.values()} == {0.0}
    assert {i: r["quality.contrast"] for i, r in new.items()} == pytest.approx(
        {i: r["quality.contrast"] for i, r in old.items()}, abs=1e-6
    )
    assert did.rescored
    assert not did.measured
    assert not did.encoded
    count = did.rescored.total()
    again = reelmill("build", made / "corpus" / "videos", "--out", dataset, *rule)
    assert again.exit_code == 0, again.output
    assert did.rescored.total() == count


def test_other_rules_encode_nothing_that_is_there(made: Path, did: Inline) -> None:
    dataset = made / "dataset"
    speeds = sorted(pq.read_table(dataset / "shards")["motion.speed"].to_pylist())
    cut_off = (speeds[0] + speeds[1]) / 2  # one clip is slower
    selected = reelmill("select", dataset, "--set", f"rules.motion.speed.min={cut_off}")
    assert selected.exit_code == 0, selected.output
    kept = clips_in(dataset)
    assert len(kept) == 2
    assert kept.items() <= clips_in(KEPT / "dataset").items()
    again = reelmill("select", dataset, "--set", "rules.motion.speed=null")
    assert again.exit_code == 0, again.output
    assert len(did.encoded) == 1
    assert clips_in(dataset).keys() == clips_in(KEPT / "dataset").keys()
    assert reelmill("verify", dataset).exit_code == 0


def test_a_run_samples_what_it_sampled_then(made: Path) -> None:
    """And enhances that preview. The numbers are those that version 0.1.0 wrote down."""
    name = "0000-a-red-circle"
    sampled = reelmill("sample", "a red circle", "--run", made / "run", "--out", made / "again")
    assert sampled.exit_code == 0, sampled.output
    old, new = (load_file(made / of / name / "latents.safetensors") for of in ("videos", "again"))
    assert old.keys() == new.keys()
    for key, latents in old.items():
        np.testing.assert_allclose(new[key], latents, atol=1e-4)
    then, now = (
        json.loads((f / name / "preview.json").read_text()) for f in (KEPT / "videos", made / "again")
    )
    del then["latents"]["hash"], now["latents"]["hash"]  # another processor rounds otherwise
    assert now == then
    (made / "videos" / name / "final.mp4").unlink()
    enhanced = reelmill("enhance", made / "videos" / name, "--run", made / "run")
    assert enhanced.exit_code == 0, enhanced.output
    assert (made / "videos" / name / "final.mp4").stat().st_size > 1000


def test_a_training_resumes(made: Path) -> None:
    resumed = reelmill("train", "stage1", "--data", made / "dataset", "--out", made / "run", "--steps", "3",
                       "--config", made / "run" / "stage1" / "config.json")  # fmt: skip
    assert resumed.exit_code == 0, resumed.output
    steps = [json.loads(line)["step"] for line in (made / "run/stage1/log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
