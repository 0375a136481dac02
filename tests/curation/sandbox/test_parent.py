"""The decoding child: whatever happens inside it costs one source, in time, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
from av.audio.stream import AudioStream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from curation.config.load import load_config
from curation.config.schema import Config, Run
from curation.decode import video
from curation.sandbox import parent as child_module
from curation.sandbox.parent import Child
from curation.sandbox.protocol import Message, Reader, SourceFailed, write_message
from curation.sandbox.words import last_words
from tests import render
from tests.conftest import CHEAP
from tests.curation import helpers

MEMORY_MB = 1024
# Generous: the machine may be busy. Nothing waits this long unless something is wrong.
DEADLINE_S = 120.0


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.mp4"
    return render.write_video(path, render.scenes([20, 15], (96, 64), fps=10), fps=10)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some seconds of work, so that something can happen to the child in the middle of it."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    frames = [render.texture(k, 64, 96) for k in range(4)]
    return render.write_video(path, (frames[k // 40 % 4] for k in range(6000)), fps=10)


@pytest.fixture
def child() -> Iterator[Child]:
    with Child(MEMORY_MB) as started:
        yield started


def measured(
    child: Child, path: Path | str, config: Config, deadline_s: float = DEADLINE_S
) -> list[dict[str, Any]]:
    return [m.head for m in child.request(request(path, config), deadline_s)]


def request(path: Path | str, config: Config) -> dict[str, Any]:
    plain = config.model_dump(mode="json")
    return {"op": "measure", "uri": str(path), "source_id": "s", "config": plain}


def probe(child: Child, path: Path | str, deadline_s: float = DEADLINE_S) -> dict[str, Any]:
    (message,) = child.request({"op": "probe", "uri": str(path)}, deadline_s)
    return message.head


def process_of(child: Child) -> psutil.Process:
    assert child._process is not None
    return psutil.Process(child._process.pid)


def children() -> list[psutil.Process]:
    """Our decoding children that live, or were not reaped (other tests may have Ray's processes)."""
    found = []
    for p in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if p.status() == psutil.STATUS_ZOMBIE or "curation.decode" in p.cmdline():
                found.append(p)
    return found


def wait_until(true: Callable[[], bool], seconds: float = DEADLINE_S) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


# --- the protocol ---------------------------------------------------------------------------------

heads = st.dictionaries(
    st.text(max_size=8).filter(lambda k: k not in ("parts", "kind")),
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    max_size=5,
).map(lambda head: {"kind": "clip", **head})


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(heads, st.lists(st.binary(max_size=3000), max_size=4)), min_size=1, max_size=4))
def test_messages_arrive_as_they_were_sent(sent: list[tuple[dict[str, Any], list[bytes]]]) -> None:
    out = io.BytesIO()
    for head, parts in sent:
        write_message(out, Message(head, parts))
    read_end, write_end = os.pipe()
    try:
        # In odd pieces, from another thread: a pipe does not keep the limits of writes.
        writer = threading.Thread(target=_dribble, args=(write_end, out.getvalue()))
        writer.start()
        reader = Reader(read_end, max_bytes=1 << 20)
        for head, parts in sent:
            message = reader.message(time.monotonic() + DEADLINE_S)
            assert (message.head, message.parts) == (head, parts)
        writer.join()
        with pytest.raises(EOFError):
            reader.message(time.monotonic() + DEADLINE_S)
    finally:
        os.close(read_end)


def _dribble(fd: int, data: bytes) -> None:
    pieces = random.Random(len(data))
    while data:
        n = pieces.randint(1, 2000)
        os.write(fd, data[:n])
        data = data[n:]
    os.close(fd)


def test_one_child_answers_many_requests(child: Child, good: Path, cheap_config: Config) -> None:
    assert (probe(child, good)["width"], probe(child, good)["height"]) == (96, 64)
    pid = process_of(child).pid
    first = measured(child, good, cheap_config)
    assert [h["kind"] for h in first] == ["stage", "clip", "clip", "source"]
    again = measured(child, good, cheap_config)
    assert [h["clip_id"] for h in again if h["kind"] == "clip"] == [
        h["clip_id"] for h in first if h["kind"] == "clip"
    ]
    assert process_of(child).pid == pid


def test_what_a_library_prints_does_not_get_between_the_messages(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = tmp_path / "noisy.py"
    runner.write_text(
        "import os\n"
        "import curation.decode.__main__ as child, curation.decode.probe as probe\n"
        "plain = probe.run\n"
        "def run(request):\n"
        "    os.write(1, b'native noise')\n"
        "    print('python noise', flush=True)\n"
        "    yield from plain(request)\n"
        "probe.run = run\n"
        "child.main()\n"
    )
    run_instead(monkeypatch, str(runner))
    with Child(MEMORY_MB) as child:
        for _ in range(2):
            assert probe(child, good)["width"] == 96
            # Of the last request alone.
            assert os.pread(child._stderr.fileno(), 1000, 0) == b"native noisepython noise\n"


def test_last_words_are_the_same_on_every_run_distinct_and_bounded() -> None:
    written = (
        "[mov,mp4,m4a @ 0x55d0c0ffee00] moov atom not found\n"
        "[h264 @ 0x7f00c0ffee00] error at \x1b[31m 3\n"
        "[mov,mp4,m4a @ 0x1] moov atom not found\r\n\n"
    )
    words = "[h264] error at \\x1b[31m 3; [mov,mp4,m4a] moov atom not found"
    assert last_words(written) == words
    assert last_words("") == ""
    many = last_words("".join(f"complaint number {k}\n" for k in range(5000)))
    assert 450 < len(many) <= 500
    assert many.endswith("complaint number 4998; complaint number 4999")
    assert many.startswith("complaint number ")
    assert last_words("x" * 10_000) == "x" * 500


def test_a_message_is_one_line_that_can_be_stored() -> None:
    message = SourceFailed("open", "E", "two\nlines \udc80 \x00 \u202e" + "long" * 1000).message
    assert message.startswith("two lines \\udc80 \\x00 \\u202elong")
    assert message.isprintable()
    assert len(message.encode()) == 2000


@pytest.mark.parametrize(
    ("declared", "factor", "wanted"),
    [
        (None, 1.0, 60.0),
        (0.0, 1.0, 60.0),
        (-5.0, 1.0, 60.0),
        (float("nan"), 1.0, 60.0),
        (10.0, 1.0, 120.0),
        (10.0, 4.0, 300.0),
        (1e9, 1.0, 14400.0),
        (float("inf"), 1.0, 14400.0),
    ],
)
def test_the_deadline_grows_with_the_declared_duration_up_to_a_limit(
    declared: float | None, factor: float, wanted: float
) -> None:
    run = Run(deadline_seconds=60.0, deadline_per_second=6.0, deadline_max_seconds=14400.0)
    assert run.deadline_s(declared, factor) == wanted


def test_a_length_that_adds_nothing_adds_nothing() -> None:
    assert Run(deadline_per_second=0.0).deadline_s(float("inf")) == 60.0


def run_instead(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Children run `script` in place of the module."""
    plain = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        at = command.index("-m")
        return plain([*command[:at], script, *command[at + 2 :]], **options)

    monkeypatch.setattr(child_module.subprocess, "Popen", popen)


# --- faults ---------------------------------------------------------------------------------------


def test_an_unknown_operation_is_an_error_and_the_child_goes_on(child: Child, good: Path) -> None:
    with pytest.raises(SourceFailed) as failed:
        list(child.request({"op": "nonsense"}, DEADLINE_S))
    assert (failed.value.stage, failed.value.error) == ("nonsense", "KeyError")
    assert "nonsense" in failed.value.message
    pid = process_of(child).pid
    assert probe(child, good)["width"] == 96
    assert process_of(child).pid == pid


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_crash_names_the_signal_and_costs_one_source(
    child: Child, good: Path, long: Path, cheap_config: Config, how: signal.Signals
) -> None:
    messages = child.request(request(long, cheap_config), DEADLINE_S)
    assert next(messages).head["kind"] == "stage"
    broken = process_of(child)
    broken.send_signal(how)
    with pytest.raises(SourceFailed) as failed:
        list(messages)
    assert (failed.value.stage, failed.value.error) in [("open", "Crash"), ("measure", "Crash")]
    assert how.name in failed.value.message
    # Somebody has killed it, which says nothing about the source; or it crashed, as it would again.
    assert failed.value.transient == (how == signal.SIGKILL)
    assert not psutil.pid_exists(broken.pid)
    assert probe(child, good)["width"] == 96
    assert process_of(child).pid != broken.pid


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_a_crash_of_a_child_that_served_others_may_be_their_doing(
    child: Child, good: Path, long: Path, cheap_config: Config, used: bool
) -> None:
    if used:
        probe(child, good)
    messages = child.request(request(long, cheap_config), DEADLINE_S)
    next(messages)
    process_of(child).send_signal(signal.SIGSEGV)
    with pytest.raises(SourceFailed, match="SIGSEGV") as failed:
        list(messages)
    assert failed.value.transient == used


def test_a_child_that_died_between_requests_is_replaced(child: Child, good: Path) -> None:
    probe(child, good)
    before = process_of(child)
    before.kill()
    # A process whose main thread is gone is a zombie, but cannot be waited for until its last thread is.
    wait_until(lambda: os.waitid(os.P_PID, before.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None)
    assert probe(child, good)["width"] == 96
    assert not psutil.pid_exists(before.pid)


def test_the_last_words_of_a_child_that_cannot_start_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "av.py").write_text("raise ImportError('a decoder that does not load')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Child(4096) as child, pytest.raises(SourceFailed) as failed:
        probe(child, "x.mp4")
    assert failed.value.error == "Crash"
    assert "exit code 1" in failed.value.message
    assert "ImportError: a decoder that does not load" in failed.value.message


def test_a_hang_ends_at_its_deadline(child: Child, good: Path, long: Path, cheap_config: Config) -> None:
    probe(child, good)  # started, so that the deadline counts the hang alone
    stopped = process_of(child)
    stopped.suspend()
    began = time.monotonic()
    with pytest.raises(SourceFailed) as failed:
        measured(child, long, cheap_config, deadline_s=1.0)
    assert 0.9 < time.monotonic() - began < DEADLINE_S / 2
    assert (failed.value.error, failed.value.stage) == ("Timeout", "measure")
    assert failed.value.message == (
        "not finished after 1 s (run.deadline_seconds, run.deadline_per_second and "
        "run.deadline_max_seconds allow more)"
    )
    assert not failed.value.transient
    assert not psutil.pid_exists(stopped.pid)
    assert probe(child, good)["width"] == 96


def test_a_hang_in_the_middle_ends_at_the_deadline_that_the_child_set(
    child: Child, good: Path, long: Path, cheap_config: Config
) -> None:
    patience = {"deadline_seconds": 4.0, "deadline_per_second": 0.0}
    config = cheap_config.model_copy(update={"run": cheap_config.run.model_copy(update=patience)})
    probe(child, good)
    began = time.monotonic()
    messages = child.request(request(long, config), 3.0)
    while next(messages).head["kind"] != "clip":  # by then it has raised the deadline of 3 s to 4 s
        pass
    process_of(child).suspend()
    with pytest.raises(SourceFailed, match="not finished after 4 s"):
        list(messages)
    assert 3.8 < time.monotonic() - began < DEADLINE_S / 2


def test_a_flood_of_memory_fails_that_source_alone(tmp_path: Path, good: Path, cheap_config: Config) -> None:
    huge = tmp_path / "huge.png"
    huge.write_bytes(_png_of(20_000, 4_000))
    with Child(memory_mb=640) as child:
        for transient in (False, True):  # with a new child, and with one that has had other sources
            with pytest.raises(SourceFailed) as failed:
                measured(child, huge, cheap_config)
            assert failed.value.error in ("MemoryError", "Crash")
            assert failed.value.message
            assert failed.value.transient == transient
            assert probe(child, good)["width"] == 96


def _png_of(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def _framed(head: bytes) -> bytes:
    return len(head).to_bytes(4, "little") + head


@pytest.mark.parametrize(
    "answer",
    [
        b"\xff\xff\xff\xff and then nothing that is a message",
        b"\x05\x00\x00\x00{nope",
        b"\x02\x00\x00\x00{}",
        b"\x02\x00\x00\x00[]",
        _framed(b'{"kind": "clip", "parts": [4000000000000]}'),
        _framed(b'{"kind": "clip", "parts": [-1]}'),
        _framed(b'{"kind": "clip", "parts": [true]}'),
        _framed(b'{"kind": "clip", "parts": {}}'),
        _framed(b'{"kind": 5, "parts": []}'),
        _framed(b'{"kind": "error", "parts": []}'),
        _framed(b'{"kind": "deadline", "parts": [], "deadline_s": "1"}'),
        _framed(b"[" * 100_000),
    ],
    ids=[
        "length",
        "not JSON",
        "no kind",
        "no object",
        "huge part",
        "negative part",
        "part of no length",
        "no list of parts",
        "kind of no name",
        "error without a reason",
        "deadline of no number",
        "deep",
    ],
)
def test_an_answer_that_is_no_message_is_a_crash_and_no_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    """A decoder that writes over its own memory may send anything and live on."""
    script = tmp_path / "garbled.py"
    script.write_text(
        f"import os, sys, time\nsys.stdin.readline()\nos.write(1, {answer!r})\ntime.sleep(600)\n"
    )
    run_instead(monkeypatch, str(script))
    began = time.monotonic()
    with Child(MEMORY_MB) as child, pytest.raises(SourceFailed) as failed:
        probe(child, "x.mp4")
    assert failed.value.error == "Crash"
    assert time.monotonic() - began < DEADLINE_S / 2
    assert children() == []


def test_an_endless_deadline_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for what is sent, however long the child said that this may take."""
    script = tmp_path / "patient.py"
    heads = [{"kind": "deadline", "deadline_s": s} for s in (1e300, float("inf"), float("nan"))]
    sent = b"".join(_framed(json.dumps({**h, "parts": []}).encode()) for h in [*heads, {"kind": "done"}])
    script.write_text(
        f"import os, sys, time\nsys.stdin.readline()\nos.write(1, {sent[:-5]!r})\ntime.sleep(0.3)\n"
        f"os.write(1, {sent[-5:]!r})\ntime.sleep(600)\n"
    )
    run_instead(monkeypatch, str(script))
    with Child(MEMORY_MB) as child:
        assert list(child.request({"op": "probe", "uri": "x.mp4"}, DEADLINE_S)) == []


def test_a_flood_of_answers_ends_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "babbles.py"
    clip = _framed(json.dumps({"kind": "clip", "parts": [300_000]}).encode()) + bytes(300_000)
    script.write_text(f"import os, sys\nsys.stdin.readline()\nwhile True:\n    os.write(1, {clip!r})\n")
    run_instead(monkeypatch, str(script))
    with Child(MEMORY_MB, output_mb=1) as child:
        messages = child.request({"op": "measure", "stage": "open"}, DEADLINE_S)
        assert sum(len(next(messages).parts[0]) for _ in range(3)) == 900_000
        with pytest.raises(SourceFailed) as failed:
            next(messages)
        assert (failed.value.stage, failed.value.error) == ("open", "TooMuchOutput")
        assert failed.value.message == "more than 1 MB handed over (run.child_output_mb allows more)"
        assert not failed.value.transient
    assert children() == []


def test_a_flood_of_complaints_is_cut_off_and_costs_nothing(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "complains.py"
    script.write_text(
        "import os\n"
        "import curation.decode.__main__ as child, curation.decode.probe as probe\n"
        "plain = probe.run\n"
        "def run(request):\n"
        "    try:\n"
        "        for _ in range(80):\n"
        "            os.write(2, b'x' * (1 << 20))\n"
        "    except OSError:\n"
        "        pass\n"
        "    yield from plain(request)\n"
        "probe.run = run\n"
        "child.main()\n"
    )
    run_instead(monkeypatch, str(script))
    with Child(MEMORY_MB) as child:
        assert probe(child, good)["width"] == 96
        assert os.fstat(child._stderr.fileno()).st_size == 64 << 20
        with pytest.raises(SourceFailed, match=r"No such file or directory: x{500}$"):
            probe(child, "missing.mp4")


def test_a_child_that_closes_its_end_and_lives_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "closes.py"
    script.write_text("import os, sys, time\nsys.stdin.readline()\nos.close(1)\ntime.sleep(600)\n")
    run_instead(monkeypatch, str(script))
    monkeypatch.setattr(child_module, "_EXIT_SECONDS", 0.3)
    with Child(MEMORY_MB) as child, pytest.raises(SourceFailed, match="stopped answering"):
        probe(child, "x.mp4")
    assert children() == []


def test_the_time_of_who_takes_the_messages_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline that holds its workers back must not fail the sources that they are at."""
    script, ready = tmp_path / "waits.py", tmp_path / "ready"
    clip, done = (_framed(json.dumps({"kind": k, "parts": []}).encode()) for k in ("clip", "done"))
    script.write_text(
        f"import os, sys, time\nopen({str(ready)!r}, 'w')\nsys.stdin.readline()\nos.write(1, {clip!r})\n"
        f"time.sleep(1)\nos.write(1, {done!r})\nsys.stdin.readline()\n"
    )
    run_instead(monkeypatch, str(script))
    with Child(MEMORY_MB) as child:
        child._started()
        wait_until(ready.exists)  # its start does not count, either
        messages = child.request({"op": "measure"}, 3.0)
        next(messages)
        time.sleep(3.2)
        assert list(messages) == []


# --- what is left behind --------------------------------------------------------------------------


def test_an_interrupt_ends_the_child(child: Child, long: Path, cheap_config: Config) -> None:
    """Ctrl-C while the parent waits for the next message."""
    messages = child.request(request(long, cheap_config), DEADLINE_S)
    next(messages)
    busy = process_of(child)
    busy.suspend()  # so that there is no next message
    here = threading.get_ident()

    def interrupt() -> None:
        wait_until(lambda: _awaits_a_message(here))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        list(messages)
    thread.join()
    assert not psutil.pid_exists(busy.pid)
    assert children() == []


def _awaits_a_message(thread: int) -> bool:
    frame = sys._current_frames().get(thread)
    while frame is not None and frame.f_code is not Reader._take.__code__:
        frame = frame.f_back
    return frame is not None


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_child_inherits_no_descriptors(child: Child, good: Path) -> None:
    """Not even those that the parent made inheritable: else a dead parent's locks and pipes live on."""
    read_end, write_end = os.pipe()
    try:
        os.set_inheritable(read_end, True)
        os.set_inheritable(write_end, True)
        probe(child, good)
        folder = Path(f"/proc/{process_of(child).pid}/fd")
        links = {int(fd.name): os.readlink(fd) for fd in folder.iterdir()}
        assert os.readlink(f"/proc/self/fd/{read_end}") not in links.values()
    finally:
        os.close(read_end)
        os.close(write_end)
    # Input, what libraries print, complaints, answers; the source was closed.
    assert sorted(links) == [0, 1, 2, 3]
    assert links[1] == links[2]


def test_a_reader_that_loses_interest_ends_the_child(child: Child, long: Path, cheap_config: Config) -> None:
    messages = child.request(request(long, cheap_config), DEADLINE_S)
    next(messages)
    busy = process_of(child)
    messages.close()  # type: ignore[attr-defined]  # a generator
    assert not psutil.pid_exists(busy.pid)


def test_starting_and_stopping_leaks_nothing() -> None:
    before_fds, before_children = psutil.Process().num_fds(), len(children())
    for _ in range(30):
        with Child(MEMORY_MB) as child:
            child._started()
    assert psutil.Process().num_fds() == before_fds
    assert len(children()) == before_children


def test_faults_leak_nothing(good: Path) -> None:
    before = psutil.Process().num_fds()
    with Child(MEMORY_MB) as child:
        for _ in range(3):
            probe(child, good)
            process_of(child).kill()
            with contextlib.suppress(SourceFailed):
                probe(child, good)
    assert psutil.Process().num_fds() == before
    assert children() == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a hung child cannot be told")
@pytest.mark.parametrize("hangs", [False, True], ids=["at work", "hung"])
def test_the_child_dies_with_a_parent_that_is_killed(long: Path, cheap_config: Config, hangs: bool) -> None:
    program = (
        "import json, os, signal, sys\n"
        "from curation.sandbox.parent import Child\n"
        "child = Child(1024)\n"
        "messages = child.request(json.loads(sys.argv[1]), 600)\n"
        "next(messages)\n"
        f"{hangs} and os.kill(child._process.pid, signal.SIGSTOP)\n"
        "print(child._process.pid, flush=True)\n"
        "child._process.wait()\n"
    )
    command = [sys.executable, "-c", program, json.dumps(request(long, cheap_config))]
    folder = Path(__file__).parents[3]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=folder) as parent:
        assert parent.stdout is not None
        busy = psutil.Process(int(parent.stdout.readline()))
        assert busy.is_running()
        parent.kill()
    psutil.wait_procs([busy], timeout=DEADLINE_S)
    survived = _runs(busy)
    if survived:
        busy.kill()
    assert not survived


def _runs(process: psutil.Process) -> bool:
    """Where nobody reaps orphans, a dead one stays a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- broken files ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, good: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("broken")
    data = good.read_bytes()
    files: dict[str, bytes] = {
        "empty.mp4": b"",
        "random.mp4": np.random.default_rng(0).bytes(20_000),
        "random.mkv": np.random.default_rng(1).bytes(20_000),
        "truncated.mp4": data[: len(data) // 2],  # its index was at the end
        "concat.mp4": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "concat_video.mp4": f"ffconcat version 1.0\nfile {good}\n".encode(),
        "playlist.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{good}\n#EXT-X-ENDLIST\n".encode(),
        "text.png": b"this is no picture",
        "empty.jpg": b"",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "directory.mp4").mkdir()
    _write_audio(folder / "audio.mp4")
    names = [*files, "directory.mp4", "audio.mp4", "missing.mp4"]
    return {name: folder / name for name in names}


def _write_audio(path: Path) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=44100)
        assert isinstance(stream, AudioStream)
        for k in range(20):
            frame = av.AudioFrame(format="fltp", layout="stereo", samples=1024)
            frame.rate, frame.pts, frame.time_base = 44100, k * 1024, Fraction(1, 44100)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def test_each_broken_file_fails_with_a_reason_and_the_same_child_goes_on(
    child: Child, good: Path, broken: dict[str, Path], cheap_config: Config
) -> None:
    probe(child, good)
    pid = process_of(child).pid
    for name, path in broken.items():
        with pytest.raises(SourceFailed) as failed:
            measured(child, path, cheap_config)
        reason = failed.value
        assert reason.stage in ("open", "measure"), name
        assert reason.error not in ("Crash", "Timeout"), name
        assert len(reason.message) > 8, name
        assert "\n" not in reason.message, name
        assert "root:" not in reason.message, name  # of /etc/passwd
        kinds = [h["kind"] for h in measured(child, good, cheap_config)]
        assert kinds == ["stage", "clip", "clip", "source"], name
    assert process_of(child).pid == pid


def test_reasons_are_readable(child: Child, broken: dict[str, Path], cheap_config: Config) -> None:
    reasons = {}
    for name in broken.keys() - {"concat.mp4"}:
        with pytest.raises(SourceFailed) as failed:
            measured(child, broken[name], cheap_config)
        reasons[name] = (failed.value.error, failed.value.message)
    assert reasons["audio.mp4"] == ("NoVideo", "the file has no video stream")
    assert reasons["missing.mp4"] == ("FileNotFoundError", "No such file or directory")
    assert reasons["directory.mp4"][1] == "Is a directory"
    invalid = "Invalid data found when processing input"
    assert reasons["random.mp4"] == (
        "InvalidDataError",
        f"{invalid}: [mov,mp4,m4a,3gp,3g2,mj2] moov atom not found",
    )
    assert reasons["empty.mp4"] == ("NoVideo", "the file is empty")
    assert reasons["empty.jpg"] == ("NoVideo", "the file is empty")
    assert reasons["text.png"][0] == "NoVideo"
    assert reasons["text.png"][1].startswith("not a picture of a known kind (JPEG, PNG, WEBP, BMP, TIFF")


def test_reasons_are_the_same_whatever_was_read_before(
    child: Child, good: Path, broken: dict[str, Path], cheap_config: Config
) -> None:
    """Each file alone in a child of its own says what it said after others, and nothing of theirs."""
    names = ["truncated.mp4", "random.mkv", "text.png", "truncated.mp4"]
    one_after_the_other = [_reason(child, broken[name], cheap_config) for name in names]
    alone = []
    for name in names[:3]:
        with Child(MEMORY_MB) as fresh:
            alone.append(_reason(fresh, broken[name], cheap_config))
    assert one_after_the_other == [*alone, alone[0]]
    assert len(set(alone)) == 3


def _reason(child: Child, path: Path, config: Config) -> tuple[str, str, str]:
    with pytest.raises(SourceFailed) as failed:
        measured(child, path, config)
    return failed.value.stage, failed.value.error, failed.value.message


# --- what a file may make the decoders do ---------------------------------------------------------


_REFERRING = {"hls": "refers.m3u8", "concat": "refers.mp4", "mov": "refers.mov"}
# What makes them do it, where nothing keeps them from it.
_ALLOWED = {"hls": {"allowed_extensions": "ALL", "extension_picky": "0"}, "concat": {"safe": "0"}}
_ALLOWED["mov"] = {"enable_drefs": "1", "use_absolute_path": "1"}


def _refers_to(kind: str, target: Path) -> bytes:
    """A file in which there is little but the name of another one."""
    if kind == "hls":
        return f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n".encode()
    if kind == "concat":
        return f"ffconcat version 1.0\nfile '{target}'\n".encode()
    return _mov_that_refers_to(target)


def _mov_that_refers_to(target: Path) -> bytes:
    """The movie's index with an alias in place of its own data; the samples are in `target`."""
    data = target.read_bytes()
    path = str(target).encode()
    path += b"\0" * (len(path) % 2)
    record = bytes(10) + b"\1v" + bytes(26) + bytes(12) + b"\1f" + bytes(62) + bytes(16)
    record += bytes(4) + bytes(16)  # no way from here to there, but the path
    record += bytes((0, 2)) + len(path).to_bytes(2, "big") + path + b"\xff\xff\0\0"
    return _boxes(data, {b"url ": _box(b"alis", bytes(4) + record)}, without=b"mdat")


def _box(name: bytes, body: bytes) -> bytes:
    return (len(body) + 8).to_bytes(4, "big") + name + body


def _boxes(data: bytes, replaced: dict[bytes, bytes], without: bytes) -> bytes:
    """`data` with other boxes in place of some, at any depth."""
    out = b""
    while data:
        size, name = int.from_bytes(data[:4], "big"), data[4:8]
        body, data = data[8:size], data[size:]
        if name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
            body = _boxes(body, replaced, without)
        elif name == b"dref":
            body = body[:8] + _boxes(body[8:], replaced, without)
        if name != without:
            out += replaced.get(name, _box(name, body))
    return out


@pytest.mark.parametrize("kind", _REFERRING)
def test_a_file_cannot_have_another_one_opened(
    tmp_path: Path, good: Path, child: Child, cheap_config: Config, kind: str
) -> None:
    path = tmp_path / _REFERRING[kind]
    path.write_bytes(_refers_to(kind, good))
    with av.open(str(path), options=_ALLOWED[kind]) as container:
        assert len(list(container.decode(video=0))) == 35  # the other one's frames
    stage, error, _ = _reason(child, path, cheap_config)
    assert stage == "open"
    assert error in ("NoVideo", "InvalidDataError", "ArgumentError")


@pytest.mark.parametrize("kind", _REFERRING)
def test_even_a_demuxer_that_would_cannot_open_another_file(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The second lock: no protocol is open to a demuxer, should one that follows names get through."""
    path = tmp_path / _REFERRING[kind]
    path.write_bytes(_refers_to(kind, good))
    plain = av.open
    frames = []

    def careless(file: Any, mode: str, *, options: dict[str, str], **more: Any) -> Any:
        options = {**options, **_ALLOWED[kind]}
        if kind == "hls":  # it is known by its suffix
            file.name = str(path)
        # With a protocol it would work.
        file.seek(0)
        with plain(file, mode, options={**options, "protocol_whitelist": "file"}, **more) as container:
            frames.extend(container.decode(video=0))
        file.seek(0)
        return plain(file, mode, options=options, **more)

    monkeypatch.setattr(video, "_FORMATS", video._FORMATS + ",hls,concat")
    monkeypatch.setattr(video.av, "open", careless)
    with pytest.raises((video.NoVideo, av.error.FFmpegError)):
        video.Video(str(path))
    assert len(frames) == 35


def test_a_picture_cannot_start_a_program(
    tmp_path: Path, child: Child, cheap_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow hands PostScript to ghostscript, whatever the file's suffix."""
    path = tmp_path / "postscript.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    program, started = tmp_path / "gs", tmp_path / "started"
    program.write_text(f"#!/bin/sh\ntouch {started}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with Image.open(path) as image, contextlib.suppress(OSError):
        image.load()
    assert started.exists()  # it would
    started.unlink()
    with pytest.raises(SourceFailed, match="not a picture of a known kind"):
        measured(child, path, cheap_config)
    assert not started.exists()


def test_a_picture_that_claims_to_be_huge_is_refused(
    tmp_path: Path, child: Child, cheap_config: Config
) -> None:
    path = tmp_path / "bomb.png"
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IDAT"
    )
    reason = _reason(child, path, cheap_config)
    assert reason[1] == "NoVideo"
    assert "pixels, which are too many" in reason[2]


# --- errors that may pass -------------------------------------------------------------------------

_BROKEN_STORE = """
import os
import fsspec
import curation.decode.__main__ as child

ERRORS = {{
    "timeout": TimeoutError("the store is slow"),
    "reset": ConnectionResetError(104, "Connection reset by peer"),
    "io": OSError(5, os.strerror(5)),
    "denied": PermissionError(13, "Permission denied"),
}}

class File:
    def __init__(self, name):
        self.file, self.error = open({good!r}, "rb"), ERRORS[name.split("-")[1].split(".")[0]]
        self.fails_at = 3000 if name.startswith("late") else 0
        self.close, self.seek, self.tell = self.file.close, self.file.seek, self.file.tell

    def seekable(self):
        return True

    def read(self, n=-1):
        if self.tell() >= self.fails_at:
            raise self.error
        return self.file.read(min(n, 1000))

class Store(fsspec.AbstractFileSystem):
    protocol = "broken"

    def _open(self, path, mode="rb", **more):
        return File(path.split("/")[-1])

fsspec.register_implementation("broken", Store)
child.main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="numbers of errors")
def test_an_error_that_may_pass_says_so(
    tmp_path: Path, good: Path, cheap_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "store.py"
    script.write_text(_BROKEN_STORE.format(good=str(good)))
    monkeypatch.setenv("REELMILL_PROTOCOLS", "broken")
    run_instead(monkeypatch, str(script))
    found = {}
    with Child(MEMORY_MB) as child:
        for name in (
            "early-timeout",
            "late-timeout",
            "early-reset",
            "late-io",
            "early-denied",
            "late-denied",
        ):
            with pytest.raises(SourceFailed) as failed:
                measured(child, f"broken://{name}.mp4", cheap_config)
            found[name] = (failed.value.error, failed.value.message.split(":")[0], failed.value.transient)
            # What the store raised is told of its own source alone.
            assert probe(child, good)["width"] == 96
    assert found == {
        "early-timeout": ("TimeoutError", "the store is slow", True),
        "late-timeout": ("TimeoutError", "the store is slow", True),
        "early-reset": ("ConnectionResetError", "Connection reset by peer", True),
        "late-io": ("OSError", "Input/output error", True),
        "early-denied": ("PermissionError", "Permission denied", False),
        "late-denied": ("PermissionError", "Permission denied", False),
    }


# --- streams that change --------------------------------------------------------------------------

_Part = tuple[tuple[int, int], str]


def _joined(folder: Path, parts: list[_Part], between: bytes = b"") -> Path:
    """A transport stream of counted frames, 20 a second, that changes in the middle: after 2 s each."""
    data = b""
    for i, (size, pix_fmt) in enumerate(parts):
        frames = render.counted(render.scenes([40], size, fps=20), start=40 * i)
        times = [1 + 2 * i + k / 20 for k in range(40)]
        data += between * (i > 0)
        data += render.write_video(
            folder / "part.ts", frames, fps=20, pix_fmt=pix_fmt, pts=times
        ).read_bytes()
    path = folder / "joined.ts"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "second",
    [((160, 96), "yuv444p"), ((160, 96), "yuv420p10le")],
    ids=["4:4:4", "10-bit"],
)
def test_a_stream_that_changes_its_pixels_gives_clips_of_its_size(
    tmp_path: Path, cheap_config: Config, second: _Part
) -> None:
    path = _joined(tmp_path, [((160, 96), "yuv420p"), second])
    clips, source = helpers.measure(path, cheap_config)
    assert (source["width"], source["height"], source["frames"]) == (160, 96, 80)
    assert source["message"] is None
    seen = []
    for clip, (head, mp4) in zip(clips, helpers.cut(path, clips, cheap_config), strict=True):
        assert (head["kind"], head["width"], head["height"]) == ("clip", 160, 96)
        counters = [render.read_counter(f) for f in helpers.decode(mp4)]
        first = round((clip["start_s"] - 1) * 20)
        assert counters == list(range(first, first + clip["frames"]))
        seen += counters
    assert len(seen) > 60  # but for the trim


def test_a_hole_in_a_stream_is_stepped_over(tmp_path: Path, cheap_config: Config) -> None:
    """Of more bytes than ffmpeg searches for a new start: it gives up, and goes on when asked again."""
    same = ((160, 96), "yuv420p")
    path = _joined(tmp_path, [same, same], between=bytes(300_000))
    clips, source = helpers.measure(path, cheap_config)
    assert 70 <= source["frames"] <= 80
    assert source["duration_s"] == pytest.approx(4.0, abs=0.1)
    assert "broken packets were stepped over" in source["message"]
    seen: set[int] = set()
    for _, mp4 in helpers.cut(path, clips, cheap_config):
        seen |= {render.read_counter(f) for f in helpers.decode(mp4)}
    assert min(seen) < 10
    assert max(seen) > 70


def test_a_recording_that_was_joined_with_itself_is_read_to_its_end(tmp_path: Path) -> None:
    path = _joined(tmp_path, [((160, 96), "yuv420p")])
    path.write_bytes(path.read_bytes() * 2)
    with video.Video(str(path)) as opened:
        frames = list(opened.frames())
    assert [render.read_counter(f.rgb(160, 96)) for f in frames] == [*range(40), *range(40)]


@pytest.mark.parametrize(
    "sizes",
    [
        [(160, 96), (320, 192)],
        [(320, 192), (160, 96)],
        [(160, 96), (96, 160)],
        [(160, 96), (320, 192), (160, 96), (192, 192)],
    ],
    ids=["larger", "smaller", "other shape", "several"],
)
def test_each_clip_has_the_size_of_its_own_frames(tmp_path: Path, sizes: list[tuple[int, int]]) -> None:
    """Without a shot detector: the change of size alone ends a scene."""
    config = load_config(CHEAP, ["shots.detector=none"])
    path = _joined(tmp_path, [(size, "yuv420p") for size in sizes])
    clips, source = helpers.measure(path, config)
    assert (source["width"], source["height"], source["frames"]) == (*sizes[0], 40 * len(sizes))
    (w, h), (w2, h2) = sizes[:2]
    assert f"the size changes from {w}x{h} to {w2}x{h2} at 3.000 s" in source["message"]
    seen = []
    for clip, (head, mp4) in zip(clips, helpers.cut(path, clips, config), strict=True):
        counters = [render.read_counter(f) for f in helpers.decode(mp4)]
        first = round((clip["start_s"] - 1) * 20)
        assert counters == list(range(first, first + clip["frames"]))
        assert first // 40 == counters[-1] // 40  # one of the parts
        size = sizes[first // 40]
        assert (clip["width"], clip["height"]) == (head["width"], head["height"]) == size
        assert helpers.decode(mp4)[0].shape[1::-1] == size
        assert clip["scores"]["resolution.short_side"] == min(size)
        seen += counters
    assert len(seen) >= 40 * len(sizes) - 12 * len(sizes)  # but for the trim
    assert helpers.rescore(path, clips, config) == {c["clip_id"]: c["scores"] for c in clips}


def test_the_pixel_aspect_changes_with_the_size(tmp_path: Path, cheap_config: Config) -> None:
    data = b""
    for i, (size, sar) in enumerate([((160, 96), (4, 3)), ((192, 96), (1, 1))]):
        frames = render.counted(render.scenes([40], size, fps=20), start=40 * i)
        times = [1 + 2 * i + k / 20 for k in range(40)]
        data += render.write_video(tmp_path / "part.ts", frames, fps=20, sar=sar, pts=times).read_bytes()
    (tmp_path / "joined.ts").write_bytes(data)
    clips, _ = helpers.measure(tmp_path / "joined.ts", cheap_config)
    assert [(c["width"], c["height"]) for c in clips] == [(213, 96), (192, 96)]


def test_frames_without_timestamps_are_counted(tmp_path: Path, cheap_config: Config) -> None:
    """A bare H.264 stream has none: its frames say how long they last."""
    path = tmp_path / "bare.mp4"
    frames = render.counted(render.scenes([40, 40], (160, 96), fps=20))
    path.write_bytes(_bare(render.write_video(tmp_path / "timed.mp4", frames, fps=20)))
    clips, source = helpers.measure(path, cheap_config)
    assert (source["container"], source["frames"]) == ("h264", 80)
    assert source["duration_s"] == pytest.approx(4.0)
    for clip, (_, mp4) in zip(clips, helpers.cut(path, clips, cheap_config), strict=True):
        first = round(clip["start_s"] * 20)
        counters = [render.read_counter(f) for f in helpers.decode(mp4)]
        assert counters == list(range(first, first + clip["frames"]))


def _bare(timed: Path) -> bytes:
    """The H.264 stream of an mp4 without its container."""
    out = io.BytesIO()
    with av.open(str(timed)) as source, av.open(out, "w", "h264") as bare:
        stream = bare.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                bare.mux(packet)
    return out.getvalue()


def test_a_very_wide_picture(tmp_path: Path, cheap_config: Config) -> None:
    image = render.texture(0, 64, 16384)
    frames = (render.draw_counter(render.shifted(image, 8 * k), k) for k in range(15))
    path = render.write_video(tmp_path / "wide.mp4", frames, fps=20)
    (clip,), source = helpers.measure(path, cheap_config)
    assert (source["width"], source["height"], source["frames"]) == (16384, 64, 15)
    ((head, mp4),) = helpers.cut(path, [clip], cheap_config)
    assert (head["width"], head["height"]) == (16384, 64)
    first = round(clip["start_s"] * 20)
    counters = [render.read_counter(f) for f in helpers.decode(mp4)]
    assert counters == list(range(first, first + clip["frames"]))
