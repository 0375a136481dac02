"""The real command over the fault corpus mixed with good videos: each bad file costs itself, and says so."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from curation.audit.accounting import accounting
from curation.audit.verify import verify
from curation.store.dataset import Dataset
from tests.faults import HOLE_BYTES, Fault, unlock, write_corpus
from tests.render import scenes, write_video

ROOT = Path(__file__).parents[2]
GOOD = 20
DEADLINE_SECONDS = 20
GRACE_SECONDS = 5  # to kill a child and to start another one
MAX_CLIP_SECONDS = 3
CONFIG = f"""
base: none
spans: {{min_seconds: 0.5, max_seconds: {MAX_CLIP_SECONDS}, trim_seconds: 0.1}}
filters: {{duration: {{}}, resolution: {{}}, motion: {{}}, quality: {{}}, borders: {{}}, transition: {{}}}}
rules:
  duration.seconds: {{min: 0.5, max: {MAX_CLIP_SECONDS}}}
  resolution.short_side: {{min: 16}}
cut: {{preset: ultrafast, crf: 30}}
run: {{deadline_seconds: {DEADLINE_SECONDS}, deadline_max_seconds: {DEADLINE_SECONDS}, child_memory_mb: 2048,
  retry_seconds: 0.05, object_store_mb: 256}}
"""

PR_CAPBSET_DROP = 24
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2


def _obey_permissions() -> None:
    """In the new process: what it executes is kept out by file modes, also as root."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "the test cannot give up root's rights")


@dataclass
class Run:
    """One build, and what was left of it."""

    dataset: Dataset
    code: int
    output: str
    processes: list[str]  # that outlived it
    temporary: list[str]  # files


def _descendants(mark: str) -> list[psutil.Process]:
    """Processes that inherited `mark` in their environment, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("REELMILL_TEST_MARK") == mark:
                found.append(process)
        except psutil.Error:  # it has ended, or it is somebody else's
            continue
    return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def _build(folder: Path, out: Path, config: Path) -> Run:
    mark = uuid.uuid4().hex
    # Ray's sockets need a short path, and its logs are no leak.
    scratch = Path(tempfile.mkdtemp(prefix="rm"))
    (scratch / "t").mkdir()
    environment = {
        **{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},  # a Ray of its own
        "REELMILL_TEST_MARK": mark,
        "TMPDIR": str(scratch / "t"),
        "RAY_TMPDIR": str(scratch / "r"),
    }
    command = [sys.executable, "-m", "jobs.build", str(folder), "--out", str(out), "--config", str(config)]
    try:
        ended = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=300,
            check=False,
            preexec_fn=_obey_permissions,
        )
        until = time.monotonic() + 10  # Ray's own processes notice that the driver is gone
        while (left := _descendants(mark)) and time.monotonic() < until:
            time.sleep(0.1)
        names = [" ".join(p.cmdline()) for p in left]
        temporary = [str(p.relative_to(scratch)) for p in (scratch / "t").rglob("*")]
        return Run(Dataset(str(out)), ended.returncode, ended.stdout, names, temporary)
    finally:
        for process in _descendants(mark):
            process.kill()
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass
class World:
    faults: list[Fault]
    good: Path  # the folder
    alone: Run
    mixed: Run
    before: dict[Path, Any]
    after: dict[Path, Any]
    corpus: Path

    def row(self, fault: Fault) -> dict[str, Any]:
        (row,) = (r for r in self.rows if r["uri"] == fault.uri)
        return row

    @property
    def rows(self) -> list[dict[str, Any]]:
        return list(self.mixed.dataset.rows("sources"))

    @property
    def bad_rows(self) -> dict[str, dict[str, Any]]:
        return {r["uri"]: r for r in self.rows if not self.is_good(r["uri"])}

    def is_good(self, uri: str) -> bool:
        return uri.startswith(f"{self.good}/")


def _state(folder: Path) -> dict[Path, Any]:
    """Every name below a folder with what `lstat` says of it."""
    found: dict[Path, Any] = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root, name)
            status = path.lstat()
            found[path] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    here = tmp_path_factory.mktemp("faults")
    good, corpus = here / "videos" / "good", here / "videos" / "corpus"
    good.mkdir(parents=True)
    for k in range(GOOD):
        # One scene of 2 s, or two: whole macroblocks, of which the encoder makes the same bytes each time.
        lengths = [24] if k % 2 else [20, 16]
        write_video(good / f"{k:02d}.mp4", scenes(lengths, (128, 96), fps=12, seed=2 * k), fps=12)
    faults = write_corpus(corpus)
    config = here / "small.yaml"
    config.write_text(CONFIG)
    try:
        before = _state(here / "videos")
        alone = _build(good, here / "alone", config)
        mixed = _build(here / "videos", here / "mixed", config)
        yield World(faults, good, alone, mixed, before, _state(here / "videos"), corpus)
    finally:
        unlock(corpus)
        shutil.rmtree(here / "videos")


def test_the_corpus_is_what_it_says(world: World, tmp_path: Path) -> None:
    assert len(world.faults) >= 390
    assert len({f.kind for f in world.faults}) == 32
    assert len({f.uri for f in world.faults}) == len(world.faults)
    expected = Counter(f.expect for f in world.faults)
    assert expected["fails"] >= 50
    assert expected["measures"] >= 50
    for fault in world.faults:
        assert fault.path.is_symlink() or fault.path.exists() or "locked" in fault.uri, fault
    again = write_corpus(world.corpus.parent / "again")
    try:
        for a, b in zip(world.faults, again, strict=True):
            assert (a.kind, a.expect) == (b.kind, b.expect)
            if a.kind != "playlist":  # they name their target by its whole path
                assert _digest(a.path) == _digest(b.path), a
    finally:
        unlock(world.corpus.parent / "again")
        shutil.rmtree(world.corpus.parent / "again")


def _digest(path: Path) -> str | None:
    if path.is_symlink() or not path.is_file() or path.stat().st_size == HOLE_BYTES:
        return None
    mode = path.stat().st_mode
    try:
        path.chmod(0o600)
        return hashlib.blake2b(path.read_bytes()).hexdigest()
    except PermissionError:  # its folder is locked
        return None
    finally:
        if os.access(path.parent, os.X_OK):
            path.chmod(mode)


def test_both_builds_end_well(world: World) -> None:
    for run in (world.alone, world.mixed):
        assert run.code == 0, run.output
        assert "Traceback" not in run.output
        assert accounting(run.dataset).check() == []
        assert verify(run.dataset) == []


def test_good_videos_give_the_same_clips_as_alone(world: World) -> None:
    def tables(run: Run) -> dict[str, dict[str, dict[str, Any]]]:
        clips = {c["clip_id"]: c for c in run.dataset.rows("clips") if world.is_good(c["uri"])}
        verdicts = {v["clip_id"]: v for v in run.dataset.verdicts() if v["clip_id"] in clips}
        shards = {s["clip_id"]: s for s in run.dataset.rows("shards") if world.is_good(s["uri"])}
        sources = {
            s["source_id"]: {k: v for k, v in s.items() if k != "seconds"}
            for s in run.dataset.rows("sources")
            if world.is_good(s["uri"])
        }
        return {"sources": sources, "clips": clips, "verdicts": verdicts, "shards": shards}

    alone, mixed = tables(world.alone), tables(world.mixed)
    assert len(alone["sources"]) == GOOD
    assert len(alone["clips"]) == len(alone["verdicts"]) == GOOD + GOOD // 2
    assert len(alone["shards"]) >= GOOD
    for table in alone:
        assert mixed[table] == alone[table], table


def test_every_name_has_one_row_and_there_are_no_others(world: World) -> None:
    rows = Counter(r["uri"] for r in world.rows)
    assert set(rows.values()) == {1}
    assert {u for u in rows if not world.is_good(u)} == {f.uri for f in world.faults}


def test_what_becomes_of_each_file_is_what_was_expected(world: World) -> None:
    rows = world.bad_rows
    status = {"fails": "failed", "measures": "measured"}
    wrong = [
        (f.uri, f.expect, rows[f.uri]["error"], rows[f.uri]["message"])
        for f in world.faults
        if f.expect != "either" and rows[f.uri]["status"] != status[f.expect]
    ]
    assert wrong == []
    originals = {
        f.uri: rows[str(f.copy_of)]["source_id"] if f.copy_of is not None else None for f in world.faults
    }
    assert {u: r["duplicate_of"] for u, r in rows.items()} == originals


# What a person cannot use: an errno alone, an object's address, a repr, a Python exception.
_NOISE = [
    r"\[Errno -?\d+\]",
    r"returned \d+",
    r"Fraction\(",
    r"^-?\d+$",
    r"\b(at|@) 0x[0-9a-f]+",
    r"<[\w.]+ object",
    r"^\w*(Error|Exception)\(",
    r"NoneType",
    r"has no attribute",
    r"Traceback",
    r"^assert",
    r"[^\x20-\x7e\x80-\U0010ffff]",
]


def test_every_failure_has_a_stage_and_a_readable_message(world: World) -> None:
    failed = [r for r in world.rows if r["status"] == "failed"]
    assert len(failed) >= 50
    wrong = [
        (r["uri"], r["stage"], r["error"], r["message"])
        for r in failed
        if r["stage"] not in ("read", "open", "measure")
        or not r["error"]
        or len(r["message"] or "") < 8
        or any(re.search(noise, r["message"]) for noise in _NOISE)
        or r["error"] in ("AttributeError", "TypeError", "AssertionError", "KeyError", "IndexError")
    ]
    assert wrong == []


def test_a_clip_that_failed_says_why_readably(world: World) -> None:
    failures = list(world.mixed.dataset.rows("failures"))
    wrong = [f for f in failures if len(f["message"]) < 8 or any(re.search(n, f["message"]) for n in _NOISE)]
    assert wrong == []


def test_accepted_clips_of_odd_files_are_inside_the_bounds(world: World) -> None:
    accepted = {v["clip_id"] for v in world.mixed.dataset.verdicts() if v["status"] == "accepted"}
    clips = [c for c in world.mixed.dataset.rows("clips") if c["clip_id"] in accepted and c["fps"]]
    lengths = [c["end_s"] - c["start_s"] for c in clips]
    assert len(lengths) > 100
    assert 0.5 - 1e-5 <= min(lengths) <= max(lengths) <= MAX_CLIP_SECONDS


@pytest.mark.parametrize("kind", ["name", "container", "codec", "pixels", "colour tags", "rotated", "copy"])
def test_sound_but_odd_files_become_clips(world: World, kind: str) -> None:
    reasons: dict[str, list[str | None]] = {}
    verdicts = {v["clip_id"]: v["reason"] for v in world.mixed.dataset.verdicts()}
    for clip in world.mixed.dataset.rows("clips"):
        reasons.setdefault(clip["uri"], []).append(verdicts[clip["clip_id"]])
    sound = [f for f in world.faults if f.kind == kind and f.expect == "measures" and f.copy_of is None]
    lost = {f.uri: reasons.get(f.uri) for f in sound if None not in reasons.get(f.uri, [])}
    # 18 frames at 25 per second, less what is trimmed, are shorter than the rule wants.
    short = {
        u for u, r in lost.items() if r == ["duration.seconds"] and world.bad_rows[u]["duration_s"] < 0.8
    }
    assert set(lost) == short
    assert len(sound) > len(short)


def test_no_source_takes_longer_than_its_deadline(world: World) -> None:
    # Whatever was opened says how long it took, also when it failed.
    opened = [r for r in world.rows if r["duplicate_of"] is None and r["stage"] != "read"]
    assert [r["uri"] for r in opened if r["seconds"] is None] == []
    late = [(r["uri"], r["seconds"]) for r in opened if r["seconds"] > DEADLINE_SECONDS + GRACE_SECONDS]
    assert late == []
    # Those that were killed at the deadline say so: few, or the corpus shows nothing of the rest.
    timeouts = [r["uri"] for r in world.rows if r["error"] == "Timeout"]
    assert len(timeouts) <= 3, timeouts


def test_nothing_is_left_behind(world: World) -> None:
    for run in (world.alone, world.mixed):
        assert run.processes == []
        assert run.temporary == []
        assert run.dataset.unfinished() == []
        names = {p.name for p in Path(run.dataset.location).iterdir()}
        assert not [n for n in names if n.startswith(("_", "."))], names


def test_the_sources_are_as_they_were_and_no_name_did_anything(world: World) -> None:
    assert world.after == world.before
    assert not (ROOT / "pwned").exists()
    assert not list(Path(world.mixed.dataset.location).rglob("pwned"))


def test_names_and_messages_stay_text_in_the_report_and_in_the_terminal(world: World) -> None:
    html = Path(world.mixed.dataset.location, "report.html").read_text(encoding="utf-8")
    assert "&lt;img src=x onerror=alert(3)&gt;" in html
    assert not re.search(r"<script>alert|<img src=x", html)
    for run in (world.alone, world.mixed):
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", run.output), run.output


def test_playlists_give_no_frame_of_what_they_point_at(world: World) -> None:
    scripts = [f for f in world.faults if f.kind == "playlist" and f.expect == "fails"]
    assert len(scripts) >= 10
    assert {world.row(f)["frames"] for f in scripts} == {None}
