"""The decoding child: whatever happens inside it costs one source, in time, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
from av.audio.stream import AudioStream
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import child as child_module
from curation.child import Child, Message, SourceFailed, _Reader, write_message
from curation.config import Config
from tests import render

MEMORY_MB = 1024
DEADLINE_S = 60.0


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
            if p.status() == psutil.STATUS_ZOMBIE or "curation.child" in p.cmdline():
                found.append(p)
    return found


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> None:
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


@settings(deadline=None, max_examples=50)
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
        reader = _Reader(read_end, max_bytes=1 << 20)
        for head, parts in sent:
            message = reader.message(time.monotonic() + 10)
            assert (message.head, message.parts) == (head, parts)
        writer.join()
        with pytest.raises(EOFError):
            reader.message(time.monotonic() + 10)
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
        "import curation.child as child, curation.probe as probe\n"
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
    assert not psutil.pid_exists(broken.pid)
    assert probe(child, good)["width"] == 96
    assert process_of(child).pid != broken.pid


def test_a_child_that_died_between_requests_is_replaced(child: Child, good: Path) -> None:
    probe(child, good)
    before = process_of(child)
    before.kill()
    wait_until(lambda: before.status() == psutil.STATUS_ZOMBIE)
    assert probe(child, good)["width"] == 96
    assert not psutil.pid_exists(before.pid)


def test_the_last_words_of_a_child_that_cannot_start_are_told() -> None:
    too_little = 200  # to load the decoder
    with Child(too_little) as child, pytest.raises(SourceFailed) as failed:
        probe(child, "x.mp4")
    assert failed.value.error == "Crash"
    assert "exit code 1" in failed.value.message
    assert "Error" in failed.value.message  # of the traceback


def test_a_hang_ends_at_its_deadline(child: Child, good: Path, long: Path, cheap_config: Config) -> None:
    probe(child, good)  # started, so that the deadline counts the hang alone
    stopped = process_of(child)
    stopped.suspend()
    began = time.monotonic()
    with pytest.raises(SourceFailed) as failed:
        measured(child, long, cheap_config, deadline_s=1.0)
    assert 0.9 < time.monotonic() - began < 4.0
    assert (failed.value.error, failed.value.stage) == ("Timeout", "measure")
    assert "1 s" in failed.value.message
    assert not psutil.pid_exists(stopped.pid)
    assert probe(child, good)["width"] == 96


def test_a_hang_in_the_middle_ends_at_the_deadline_that_the_child_set(
    child: Child, good: Path, long: Path, cheap_config: Config
) -> None:
    patience = {"deadline_seconds": 1.5, "deadline_per_second": 0.0}
    config = cheap_config.model_copy(update={"run": cheap_config.run.model_copy(update=patience)})
    probe(child, good)
    began = time.monotonic()
    messages = child.request(request(long, config), 0.5)
    next(messages)
    time.sleep(0.3)  # the deadline of 0.5 s was raised to 1.5 s, the work takes longer than that
    process_of(child).suspend()
    with pytest.raises(SourceFailed, match="not finished after 2 s"):
        list(messages)
    assert 1.3 < time.monotonic() - began < 5.0


def test_a_flood_of_memory_fails_that_source_alone(tmp_path: Path, good: Path, cheap_config: Config) -> None:
    huge = tmp_path / "huge.png"
    huge.write_bytes(_png_of(20_000, 4_000))
    with Child(memory_mb=640) as child:
        with pytest.raises(SourceFailed) as failed:
            measured(child, huge, cheap_config)
        assert failed.value.error in ("MemoryError", "Crash")
        assert failed.value.message
        assert probe(child, good)["width"] == 96


def _png_of(width: int, height: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "answer",
    [
        b"\xff\xff\xff\xff and then nothing that is a message",
        b"\x05\x00\x00\x00{nope",
        b"\x02\x00\x00\x00{}",
        b"\x02\x00\x00\x00[]",
        b'\x19\x00\x00\x00{"parts": [4000000000000]}',
    ],
    ids=["length", "not JSON", "no parts", "no object", "huge part"],
)
def test_an_answer_that_is_no_message_is_a_crash_and_no_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    """A decoder that writes over its own memory may send anything and live on."""
    script = tmp_path / "garbled.py"
    script.write_text(
        f"import os, sys, time\nsys.stdin.readline()\nos.write(1, {answer!r})\ntime.sleep(60)\n"
    )
    run_instead(monkeypatch, str(script))
    began = time.monotonic()
    with Child(MEMORY_MB) as child, pytest.raises(SourceFailed) as failed:
        probe(child, "x.mp4", 20.0)
    assert failed.value.error == "Crash"
    assert time.monotonic() - began < 15
    assert children() == []


def test_a_child_that_closes_its_end_and_lives_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "closes.py"
    script.write_text("import os, sys, time\nsys.stdin.readline()\nos.close(1)\ntime.sleep(60)\n")
    run_instead(monkeypatch, str(script))
    monkeypatch.setattr(child_module, "_EXIT_SECONDS", 0.3)
    with Child(MEMORY_MB) as child, pytest.raises(SourceFailed, match="stopped answering"):
        probe(child, "x.mp4", 20.0)
    assert children() == []


# --- what is left behind --------------------------------------------------------------------------


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
        "from curation.child import Child\n"
        "child = Child(1024)\n"
        "messages = child.request(json.loads(sys.argv[1]), 600)\n"
        "next(messages)\n"
        f"{hangs} and os.kill(child._process.pid, signal.SIGSTOP)\n"
        "print(child._process.pid, flush=True)\n"
        "child._process.wait()\n"
    )
    command = [sys.executable, "-c", program, json.dumps(request(long, cheap_config))]
    folder = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=folder) as parent:
        assert parent.stdout is not None
        busy = psutil.Process(int(parent.stdout.readline()))
        assert busy.is_running()
        parent.kill()
    psutil.wait_procs([busy], timeout=10)
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
    assert reasons["text.png"] == (
        "NoVideo",
        "not a picture of a known kind (JPEG, PNG, WEBP, BMP, TIFF)",
    )


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
