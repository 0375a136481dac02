"""`ray job submit … -- python -m jobs.build …` from S3 to S3 on a cluster whose nodes share no disk."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pytest

from benchmarks.footage import loop
from curation.audit.accounting import accounting
from curation.audit.verify import verify
from curation.store.dataset import Dataset
from tests import render
from tests.jobs import left_behind
from tests.jobs.clusters import ROOT, Cluster, checkout, s3_server, wait
from tests.killing import rows_of

SOURCES = 24
CONFIG = """
base: none
spans: {min_seconds: 1, max_seconds: 2, trim_seconds: 0.1}
filters: {duration: {}, resolution: {}, motion: {}, "colour:Colourfulness": {}}
rules: {duration.seconds: {min: 1}}
shards: {target_mb: 1}
run: {object_store_mb: 128}
"""
FOOTAGE = "s3://reelmill/footage"


@dataclass
class Place:
    environment: dict[str, str]  # makes s3:// use the server on this machine
    working_dir: Path
    expected: dict[str, Any]  # rows of a build on this machine


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Footage on S3, and the rows of a build on this machine."""
    folder = tmp_path_factory.mktemp("cluster")
    with s3_server(folder) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        fs = fsspec.filesystem("s3")
        fs.mkdir("reelmill")
        frames = [render.texture(k, 120, 208) for k in range(4)]
        for i in range(SOURCES):
            shown = (frames[(k // 50 + i) % 4] for k in range(700 + 10 * i))
            fs.put(str(render.write_video(folder / f"{i}.mp4", shown, fps=25)), f"{FOOTAGE}/{i}.mp4")
            fs.pipe(
                f"{FOOTAGE}/{i}.txt", f"pictures, of which each stays for two seconds, number {i}".encode()
            )
        working_dir = checkout(folder / "working")
        (working_dir / "c.yaml").write_text(CONFIG)
        # A filter of the user's own, which travels in the working directory.
        shutil.copy(ROOT / "examples" / "colourfulness.py", working_dir / "colour.py")
        found = Place(environment, working_dir, {})
        found.expected |= built_here(found, str(folder / "local"))
        yield found


def built_here(place: Place, out: str) -> dict[str, Any]:
    """The rows of a build on this machine."""
    command = [sys.executable, "-m", "jobs.build", FOOTAGE, "--out", out]
    environment = left_behind.environment("local", **place.environment)
    command += ["--config", str(place.working_dir / "c.yaml")]
    subprocess.run(command, cwd=place.working_dir, env=environment, check=True)
    return rows_of(Dataset(out))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(2) as cluster:
        yield cluster


def submit(cluster: Cluster, place: Place, out: str) -> subprocess.Popen[str]:
    arguments = (FOOTAGE, "--out", out, "--config", "c.yaml")
    return cluster.submit("build", *arguments, working_dir=place.working_dir, env=place.environment)


def check(place: Place, out: str) -> None:
    """All rows exist once and equal the rows of a build on one machine."""
    dataset = Dataset(out)
    assert accounting(dataset).check() == []
    assert accounting(dataset).accepted >= 10 * SOURCES
    shards = dataset.tables("shards", ["colourfulness.value"])
    assert all(table["colourfulness.value"].null_count == 0 for _, table in shards)
    assert verify(dataset, decode=True) == []
    assert rows_of(dataset) == place.expected
    assert dataset.unfinished() == []


@pytest.mark.sampled("cluster", keep=1)
def test_rows_equal_the_rows_of_a_build_on_one_machine(place: Place, cluster: Cluster) -> None:
    out = "s3://reelmill/whole"
    printed = wait(submit(cluster, place, out))
    assert f"sources {SOURCES} = measured {SOURCES} + failed 0" in printed
    check(place, out)


def test_only_needed_files_are_sent_to_the_cluster(cluster: Cluster) -> None:
    packages = {"curation", "filters", "captioning", "generation", "jobs"}
    for node in cluster.nodes:
        assert packages <= node.working_dir()
        assert node.working_dir().isdisjoint({"tests", "docs", "benchmarks", "README.md", ".ci"})


@pytest.mark.sampled("cluster", keep=1)
def test_a_node_dies(place: Place, cluster: Cluster) -> None:
    for attempt in range(4):  # on a busy machine the work may be done before the node is struck
        out = f"s3://reelmill/struck-{attempt}"
        job = submit(cluster, place, out)
        until_measured(out, 1, job)
        if len(Dataset(out).parts("sources")) < SOURCES:
            break
        wait(job)
    cluster.nodes[1].kill()
    printed = wait(job)
    assert f"sources {SOURCES} = measured {SOURCES} + failed 0" in printed
    check(place, out)


def until_measured(out: str, parts: int, job: subprocess.Popen[str]) -> None:
    left_behind.until(lambda: len(Dataset(out).parts("sources")) >= parts or job.poll() is not None, 120)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_node_joins_and_takes_over_from_one_that_dies(place: Place, tmp_path: Path) -> None:
    """Sources are longer here, because a join takes time. The rules reject all clips, so no clip is cut."""
    fs = fsspec.filesystem("s3")
    for i in range(SOURCES):
        fs.get(f"{FOOTAGE}/{i}.mp4", str(tmp_path / "once.mp4"))
        loop(tmp_path / "once.mp4", tmp_path / "long.mp4", 900)
        fs.put(str(tmp_path / "long.mp4"), f"s3://reelmill/longer/{i}.mp4")
    local, out = tmp_path / "local", "s3://reelmill/taken-over"
    arguments = ["s3://reelmill/longer", "--set", "rules.duration.seconds.min=3"]
    config = place.working_dir / "c.yaml"
    command = [sys.executable, "-m", "jobs.build", *arguments, "--config", str(config), "--out", str(local)]
    environment = left_behind.environment("local", **place.environment)
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    with Cluster(2) as cluster:
        given = [*arguments, "--config", "c.yaml", "--out", out]
        job = cluster.submit("build", *given, working_dir=place.working_dir, env=place.environment)
        until_measured(out, 1, job)
        joined = cluster.join()
        left_behind.until(lambda: joined.decodes or job.poll() is not None, 300)
        cluster.nodes[1].kill()
        assert len(Dataset(out).parts("sources")) < SOURCES, "there was no work left to do"
        wait(job, 900)
    assert accounting(Dataset(out)).check() == []
    assert rows_of(Dataset(out)) == rows_of(Dataset(str(local)))
    assert accounting(Dataset(out)).clips > 10_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_other_commands_are_jobs_as_well(place: Place, cluster: Cluster, tmp_path: Path) -> None:
    """Commands that write outside a dataset write to the disk of the head, where drivers run."""

    def job(module: str, *arguments: object) -> str:
        given = list(map(str, arguments))
        process = cluster.submit(module, *given, working_dir=place.working_dir, env=place.environment)
        return wait(process, 900)

    out, run = "s3://reelmill/whole", tmp_path / "run"
    wait(submit(cluster, place, out))  # already done if all tests of this file run
    before = accounting(Dataset(out)).accepted
    job("select", out, "--set", "rules.duration.seconds.min=1.5")
    assert 0 < accounting(Dataset(out)).accepted < before
    assert "no caption changed" in job("caption", out)
    tiny = ["--preset", "tiny", "--set", "train.steps=4", "--set", "train.validate_every=4"]
    for stage in ("stage1", "stage2"):
        job("train", stage, "--data", out, "--out", run, *tiny)
    job("sample", "pictures, number 3", "--run", run, "--out", tmp_path / "videos")
    assert len(list((tmp_path / "videos").rglob("final.mp4"))) == 1
    short = [f"{step}.config.data.fps=8" for step in ("vae", "stage1", "stage2", "lossless")]
    sets = [word for setting in short for word in ("--set", setting)]
    job("recipe", "--data", out, "--out", tmp_path / "cooked", "--level", "smoke", *sets)
    assert (tmp_path / "cooked" / "recipe.html").is_file()
