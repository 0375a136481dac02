"""Decoding processes: their results, their failures, and that no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest

import generation
from generation.config import Bucket, Data
from generation.data.ahead import ahead
from generation.data.decode import BadClip, Job, open_decoder
from generation.data.loader import Loader
from generation.data.transform import Sample
from tests.generation import synthetic


@pytest.fixture(scope="module")
def mp4() -> bytes:
    (what,) = synthetic.contents(1)
    return synthetic.encode(synthetic.render_clip(what, 17, 64, 48, 8), 8)


def job(mp4: bytes, **changed: object) -> Job:
    row = {"clip_id": "c", "video": {"bytes": mp4}, "frames": 17, "width": 64, "height": 48, **changed}
    return Job(row, Sample(0, "c", None, 0, (0, 8, 16, 16), (0.0, 0.0, 64.0, 48.0), 24, 32))


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "generation.data.decode" in p.cmdline()]


def test_a_child_gives_what_this_process_gives(mp4: bytes) -> None:
    here, there = open_decoder(0, 60), open_decoder(2, 60)
    expected = here.submit(job(mp4)).result()
    found = [there.submit(job(mp4)) for _ in range(5)]
    assert expected.shape == (3, 4, 24, 32)
    assert all(np.array_equal(f.result(), expected) for f in found)
    assert np.array_equal(expected[:, 2], expected[:, 3])
    there.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_wrong_with_a_clip_is_said(mp4: bytes, workers: int) -> None:
    decoder = open_decoder(workers, 60)
    bad = {
        "its row says 18": job(mp4, frames=18),
        "its row says 64x50": job(mp4, height=50),
        "Error": job(mp4[:300]),
        "rror": job(b""),
    }
    for text, wrong in bad.items():
        with pytest.raises(BadClip, match=text):
            decoder.submit(wrong).result()
    assert decoder.submit(job(mp4)).result().shape == (3, 4, 24, 32)
    decoder.close()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("head", [b"", b"AAAAftypmp42"])
def test_the_content_of_a_clip_is_not_printed(
    head: bytes, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    decoder = open_decoder(workers, 60)
    with pytest.raises(BadClip):
        decoder.submit(job(head + b"\x1b[2JEVIL" * 100)).result()
    decoder.close()
    assert "EVIL" not in capfd.readouterr().err


def test_a_child_that_dies_is_replaced(mp4: bytes) -> None:
    decoder = open_decoder(1, 60)
    decoder.submit(job(mp4)).result()
    (child,) = children()
    child.kill()
    assert decoder.submit(job(mp4)).result().shape == (3, 4, 24, 32)
    (other,) = children()
    assert other.pid != child.pid
    decoder.close()


def test_a_child_that_hangs_is_replaced(mp4: bytes) -> None:
    decoder = open_decoder(1, 2.0)
    decoder.submit(job(mp4)).result()
    (child,) = children()
    child.suspend()
    assert decoder.submit(job(mp4)).result().shape == (3, 4, 24, 32)
    assert not child.is_running()
    decoder.close()


class Bomb:
    """An object that runs code when a process unpickles it: in the child."""

    def __init__(self, function: Callable[..., object], *arguments: object):
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("bomb", "said"),
    [
        (Bomb(time.sleep, 1000), "no result within 1 s"),
        (Bomb(os.abort), "was killed by signal 6"),
        (Bomb(os._exit, 3), "ended with exit code 3"),
    ],
)
def test_a_clip_that_always_hangs_or_crashes_costs_itself(mp4: bytes, bomb: Bomb, said: str) -> None:
    decoder = open_decoder(1, 1.0)
    before, bad, after = (decoder.submit(j) for j in (job(mp4), job(mp4, extra=bomb), job(mp4)))
    with pytest.raises(BadClip, match=said):
        bad.result()
    assert np.array_equal(before.result(), after.result())
    decoder.close()
    assert not children()


def test_close_ends_all_in_the_middle_of_their_work(mp4: bytes) -> None:
    decoder = open_decoder(2, 60)
    futures: list[Future[np.ndarray]] = [decoder.submit(job(mp4)) for _ in range(50)]
    futures[0].result()
    assert children()
    decoder.close()
    assert not children()
    for future in futures:
        assert future.done()


def test_a_child_that_cannot_start_is_nobodys_clip(mp4: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    decoder = open_decoder(1, 60)
    with pytest.raises(RuntimeError, match=r"could not start: .* exit code 1"):
        decoder.submit(job(mp4)).result()
    decoder.close()


# ---- with a loader

DATA = Data(fps=8, buckets=(Bucket(frames=9, height=48, width=64),), workers=2, validation_fraction=0)


def test_a_closed_loader_leaves_nothing_behind(tmp_path: Path) -> None:
    synthetic.write_dataset(tmp_path, 24)
    threads = threading.active_count()
    loader = Loader.open(tmp_path, DATA, 2, seed=0)
    batches = loader.batches()
    next(batches)
    assert len(children()) == 2
    loader.close()
    assert not children()
    assert threading.active_count() == threads
    assert list(batches) == []


def test_a_loader_may_change_its_place(tmp_path: Path) -> None:
    synthetic.write_dataset(tmp_path, 24)
    with Loader.open(tmp_path, DATA, 2, seed=0) as loader:
        first = [b.clip_ids for b in islice(loader.batches(), 6)]
        assert [b.clip_ids for b in islice(loader.batches(0, 3), 3)] == first[3:]


def test_children_end_with_their_parent(tmp_path: Path) -> None:
    synthetic.write_dataset(tmp_path, 24)
    script = f"""
        import os, time
        from tests.generation.data.test_decode import DATA, children
        from generation.data.loader import Loader
        loader = Loader.open({str(tmp_path)!r}, DATA, 2, seed=0)
        next(loader.batches())
        print(*(c.pid for c in children()), flush=True)
        time.sleep(100)
    """
    root = Path(generation.__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=root, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(p) and psutil.Process(p).status() != "zombie" for p in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---- fetching ahead


def test_items_come_in_order_and_at_most_so_many_ahead() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for k in range(10):
            made.append(k)
            yield k

    items = ahead(source(), 2, lambda item: None)
    assert next(items) == 0
    time.sleep(0.3)
    assert len(made) <= 4  # one taken, two in the queue, one held by the thread
    assert list(items) == list(range(1, 10))


def test_an_error_is_raised_in_its_place() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    items = ahead(source(), 5, lambda item: None)
    assert next(items) == 1
    with pytest.raises(ValueError, match="no more"):
        next(items)


def test_what_nobody_took_is_dropped() -> None:
    dropped: list[int] = []
    threads = threading.active_count()
    items = ahead(iter(range(100)), 3, dropped.append)
    assert next(items) == 0
    time.sleep(0.2)
    items.close()
    assert threading.active_count() == threads
    assert sorted(dropped) == list(range(1, len(dropped) + 1))
    assert len(dropped) in (3, 4)
