"""`--dry-run`: honest counts and plausible numbers, and nothing is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from curation.audit.estimate import estimate
from curation.config.load import load_config
from curation.config.schema import Config
from curation.sources.listing import list_sources
from curation.store.dataset import Dataset
from tests import render
from tests.conftest import CHEAP


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of 18 seconds together."""
    folder = tmp_path_factory.mktemp("footage")
    grounds = [render.texture(k, 90, 160) for k in range(2)]
    for name, frames in (("a.mp4", 100), ("b.mkv", 80)):
        render.write_video(folder / name, (grounds[k // 40 % 2] for k in range(frames)), fps=10)
    return folder


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(CHEAP, ["run.deadline_seconds=30", "spans.min_seconds=1"])


def lines(footage: Path, out: Path, config: Config) -> list[str]:
    return list(estimate(Dataset(str(out)), list_sources([str(footage)]), config))


def number(lines: list[str], pattern: str) -> float:
    (found,) = (m for m in (re.search(pattern, line) for line in lines) if m)
    return float(found.group(1))


def tree(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in [folder, *folder.rglob("*")]}


def test_counts_are_right_and_numbers_plausible(footage: Path, tmp_path: Path, config: Config) -> None:
    out = tmp_path / "d"
    before = tree(footage)
    told = lines(footage, out, config)
    assert not out.exists()
    assert tree(footage) == before
    assert list(tmp_path.iterdir()) == []
    text = "\n".join(told)
    assert "2 sources named: 2 to measure, 0 done before" in text
    assert "2 new" in text
    assert "from 2 of 2 sources" in text
    assert number(told, r"about ([\d.]+) s of video") == pytest.approx(18, abs=1)
    assert number(told, r"\(([\d.]+)x real time each") > 1  # of 160x90: any machine
    assert 0 <= number(told, r"measuring: about ([\d.]+) s") < 60
    assert 0 <= number(told, r"at most about ([\d.]+) MB") < 100
    assert "could not be read" not in text


def test_hours_scale_from_the_sample_to_all(footage: Path, tmp_path: Path, config: Config) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    data = (footage / "a.mp4").read_bytes()
    for k in range(40):  # each its own content, or they would be duplicates
        (folder / f"{k:02d}.mp4").write_bytes(data + bytes([k]))
    told = lines(folder, tmp_path / "d", config)
    assert any("40 to measure" in line for line in told)
    assert any("from 16 of 40 sources" in line for line in told)
    assert number(told, r"about ([\d.]+) min of video") == pytest.approx(400 / 60, abs=0.1)


def test_what_cannot_be_read_is_mentioned(footage: Path, tmp_path: Path, config: Config) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a.mp4").write_bytes((footage / "a.mp4").read_bytes())
    (folder / "torn.mp4").write_bytes(b"no video")
    told = lines(folder, tmp_path / "d", config)
    assert any(line.startswith("1 of 2 sampled sources could not be read") for line in told)
    assert number(told, r"about ([\d.]+) s of video") == pytest.approx(10, abs=1)


def test_nothing_but_unreadable_files_gives_no_invented_numbers(tmp_path: Path, config: Config) -> None:
    (tmp_path / "torn.mp4").write_bytes(b"no video")
    told = lines(tmp_path, tmp_path / "d", config)
    assert any("1 of 1 sampled sources could not be read" in line for line in told)
    assert not any("about" in line for line in told)


def test_a_folder_that_is_there_stays_as_it_is(footage: Path, tmp_path: Path, config: Config) -> None:
    out = tmp_path / "d"
    Dataset(str(out)).write("dataset.json", b'{"schema_version": 1, "config": {}}')
    Dataset(str(out)).write("_tmp-1234-x", b"litter")
    before = tree(out)
    lines(footage, out, config)
    assert tree(out) == before
