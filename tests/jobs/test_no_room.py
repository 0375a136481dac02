"""A full disk: a clear stop without corrupt files; the same command resumes when there is room."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from curation.audit.accounting import accounting
from curation.audit.verify import verify
from curation.commands.working import working
from curation.store.dataset import Dataset
from tests import render

ROOT = Path(__file__).parents[2]
CONFIG = """
base: none
spans: {min_seconds: 1, max_seconds: 1.5, trim_seconds: 0.1}
filters: {duration: {}, resolution: {}, quality: {}}
cut: {preset: ultrafast, crf: 10}
shards: {target_mb: 0.04}
run: {object_store_mb: 128}
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system, which can be enlarged."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def give_room(disk: Path, size_bytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size_bytes}", str(disk)], check=True)


def build(folder: Path, out: Path, config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs.build", str(folder), "--out", str(out), "--config", str(config)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def files(dataset: Dataset, table: str) -> dict[str, bytes]:
    return {p: dataset.read(f"{table}/{p}.parquet") for p in dataset.parts(table)}


@pytest.mark.sampled("long commands", keep=1)
def test_a_full_disk_stops_clearly_and_finished_work_stays(disk: Path, tmp_path: Path) -> None:
    folder = tmp_path / "footage"
    folder.mkdir()
    for k in range(8):
        video = render.scenes([45], (320, 192), fps=20, seed=k)
        render.write_video(folder / f"{k}.mp4", video, fps=20)
    (tmp_path / "c.yaml").write_text(CONFIG)
    whole = build(folder, tmp_path / "whole", tmp_path / "c.yaml")
    assert whole.returncode == 0, whole.stderr
    reference = Dataset(str(tmp_path / "whole"))
    sizes = {p: -(-p.stat().st_size // 4096) * 4096 for p in Path(reference.location).rglob("*.parquet")}
    shards = sum(size for p, size in sizes.items() if p.parent.name == "shards")
    assert len(reference.parts("shards")) >= 4
    # Room for everything except half of the shards (folders, lease and plan included).
    give_room(disk, sum(sizes.values()) - shards // 2 + 64_000)

    done = build(folder, disk / "d", tmp_path / "c.yaml")
    assert done.returncode == 3, done.stderr
    assert "no room left" in done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    stopped = Dataset(str(disk / "d"))
    assert not stopped.exists("_lease.json")
    assert stopped.unfinished() == []
    assert stopped.parts("shards")  # the build reached the shards
    # Existing files are complete: they can be read and equal the files of an unlimited build.
    for table in ("sources", "clips", "shards"):
        key = "source_id" if table == "sources" else "clip_id"
        expected = {r[key]: {k: v for k, v in r.items() if k != "seconds"} for r in reference.rows(table)}
        for row in stopped.rows(table):
            assert {k: v for k, v in row.items() if k != "seconds"} == expected[row[key]]
    again = build(folder, disk / "d", tmp_path / "c.yaml")
    assert (again.returncode, "no room left" in again.stderr) == (3, True)
    before = files(stopped, "clips"), files(stopped, "shards")

    give_room(disk, 50 << 20)
    done = build(folder, disk / "d", tmp_path / "c.yaml")
    assert done.returncode == 0, done.stderr
    assert "measure: 0 sources" in done.stderr  # committed sources are not measured again
    assert files(stopped, "clips").items() >= before[0].items()
    assert files(stopped, "shards").items() >= before[1].items()
    assert verify(stopped) == []
    assert accounting(stopped).lines() == accounting(reference).lines()
    shutil.rmtree(disk / "d")
    assert os.listdir(disk) == []


def test_unfinished_files_of_workers_take_no_room(tmp_path: Path) -> None:
    """If one worker finds no room, the unfinished file of another worker is removed."""
    dataset = Dataset(str(tmp_path / "d"))

    def work() -> None:
        with working(dataset, "build"):
            dataset.write("shards/shard-00000.parquet", b"finished")
            dataset.write("shards/_tmp-1234-shard-00001.parquet", b"not")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space"):
        work()
    assert dataset.parts("shards") == ["shard-00000"]
    assert dataset.unfinished() == []
    assert not dataset.exists("_lease.json")
