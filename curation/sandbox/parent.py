"""The decoding child: the one place where foreign bytes are parsed.

A crash, a hang, a memory flood or an endless stream in a decoder then costs one source. The parent sends a
request as one line of JSON; the child answers with messages (a JSON head, and binary parts of stated
lengths) and ends with `done` or `error`. A child serves many requests and is replaced after a fault.

Limits: of memory and of what it writes to files (by the kernel), of time and of what it hands over (by the
parent).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from curation.store.transient import is_transient

if TYPE_CHECKING:  # the parent's side must stay light
    from curation.config.schema import Run

_LENGTH = struct.Struct("<I")
_MAX_HEAD_BYTES = 16 << 20
_MAX_MESSAGE_BYTES = 1 << 30
_MAX_STDERR_BYTES = 64 << 20  # a decoder complains of every block of every frame
_MAX_MESSAGE_CHARS = 2000
_MAX_WORDS_CHARS = 500
_MAX_WORDS_LINES = 2000  # of which the last words are made
_EXIT_SECONDS = 10.0  # between a dying child's last byte and its exit
_KILLED_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)  # an operator, or a kernel short of memory


class SourceFailed(Exception):
    """One source could not be handled: `stage` and `error` name where and what, the text says why.

    `transient`: the same request may succeed in a moment. `message` is one printable line.
    """

    def __init__(self, stage: str, error: str, message: str, *, transient: bool = False):
        self.stage = stage
        self.error = error
        self.message = readable(message)[:_MAX_MESSAGE_CHARS]
        self.transient = transient
        super().__init__(self.message)


def readable(text: str) -> str:
    """`text` on one line, with everything that does not print (and lone surrogates) as escapes."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """File names, too, may hold what moves the cursor or sets the title of a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def last_words(written: str) -> str:
    """What a decoder complained of at last: distinct complaints in the order of their last occurrence.

    The same on every run: ffmpeg puts an address into each line.
    """
    lines: dict[str, None] = {}
    for line in written.splitlines()[-_MAX_WORDS_LINES:]:
        complaint = readable(re.sub(r" (@|at) 0x[0-9a-f]+", "", line))
        if complaint:
            lines.pop(complaint, None)
            lines[complaint] = None
    words = ""
    for complaint in reversed(lines):
        longer = f"{complaint}; {words}" if words else complaint[:_MAX_WORDS_CHARS]
        if len(longer) > _MAX_WORDS_CHARS:
            break
        words = longer
    return words


def deadline_s(run: Run, declared_s: float | None, factor: float = 1.0) -> float:
    """Seconds that one source may take: `factor` times more for each second that its header declares.

    A header may declare anything, also nothing, infinity or less than zero.
    """
    length_s = declared_s if declared_s is not None and declared_s > 0 else 0.0
    wanted_s = run.deadline_seconds + factor * run.deadline_per_second * min(length_s, 1e12)
    return min(wanted_s, run.deadline_max_seconds)


class _Garbled(Exception):
    """What came through the pipe is no message: a decoder has written over its own memory."""


class _TooMuch(Exception):
    """One request's answer is larger than it may be."""


@dataclass
class Message:
    head: dict[str, Any]
    parts: list[bytes] = field(default_factory=list)


def write_message(out: BinaryIO, message: Message) -> None:
    head = json.dumps({**message.head, "parts": [len(p) for p in message.parts]}).encode()
    out.write(_LENGTH.pack(len(head)) + head)
    for part in message.parts:
        out.write(part)
    out.flush()


class Child:
    """Parent's side. `request` yields messages as they come; a fault raises `SourceFailed`.

    Use as a context manager, or call `stop`. The child dies with its parent's thread of control: it is
    told by the kernel when the parent dies, and it ends when its standard input does.

    A child that has served other sources may be short of memory, or have its memory overwritten, because of
    them. So what it crashes on, or has no memory for, is a transient failure: a new child will tell.
    """

    def __init__(self, memory_mb: int, output_mb: int = 16384):
        self._memory_mb = memory_mb
        self._output_mb = output_mb
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: Any = None
        self._served = 0  # requests of the process that runs

    def request(self, request: dict[str, Any], deadline_s: float) -> Iterator[Message]:
        """Send one request. `deadline_s` is in seconds from now; a message whose head has `deadline_s`
        (the child has learnt how long the source is) sets a new one, counted from the same start. The time
        that the caller takes between two messages does not count.

        An `OSError` (no process, no temporary file can be made) is this machine's fault, not the source's.
        """
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        # The child shares the descriptor and its offset: it writes from the start again.
        self._stderr.seek(0)
        self._stderr.truncate()
        served_others = self._served > 0
        self._served += 1
        started = time.monotonic()
        stage = str(request.get("stage", request["op"]))
        finished = False
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            reader = _Reader(process.stdout.fileno(), self._output_mb << 20)
            while True:
                message = reader.message(started + deadline_s)
                kind = message.head["kind"]
                stage = str(message.head.get("stage", stage))
                if kind == "deadline":
                    deadline_s = max(deadline_s, float(message.head["deadline_s"]))
                elif kind == "done":
                    finished = True
                    return
                elif kind == "error":
                    # The child caught it and goes on, but a decoder that ran out of memory is not trusted.
                    finished = message.head["error"] != "MemoryError"
                    transient = message.head["transient"] or (served_others and not finished)
                    raise self._failed(stage, message.head["error"], message.head["message"], transient)
                else:
                    given = time.monotonic()
                    yield message
                    started += time.monotonic() - given
        except TimeoutError:
            reason = f"not finished after {deadline_s:.0f} s (run.deadline_seconds, run.deadline_per_second"
            raise self._failed(
                stage, "Timeout", f"{reason} and run.deadline_max_seconds allow more)"
            ) from None
        except _TooMuch:
            reason = f"more than {self._output_mb} MB handed over (run.child_output_mb allows more)"
            raise self._failed(stage, "TooMuchOutput", reason) from None
        except (EOFError, BrokenPipeError):
            transient = served_others
            try:
                code = process.wait(_EXIT_SECONDS)
            except subprocess.TimeoutExpired:  # it lives, but has closed its end
                what = "stopped answering"
            else:
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                what = f"died ({how})"
                transient = served_others or -code in _KILLED_FROM_OUTSIDE
            raise self._failed(stage, "Crash", f"the decoder {what}", transient) from None
        except _Garbled:
            raise self._failed(stage, "Crash", "the decoder sent what is no message", served_others) from None
        finally:
            if not finished:
                self.stop()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self._served = 0
            self._stderr = tempfile.TemporaryFile()
            # -P and the package's own place: nothing in the user's folder is imported by accident.
            paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "OPENCV_LOG_LEVEL": "SILENT",  # what it raises says the same, without times of day
                "PYTHONPATH": os.pathsep.join(p for p in paths if p),
            }
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "curation.sandbox.parent",
                    str(self._memory_mb),
                    str(os.getpid()),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment,
                start_new_session=True,  # a Ctrl-C at the terminal is the driver's to handle
            )
        return self._process

    def _failed(self, stage: str, error: str, message: str, transient: bool = False) -> SourceFailed:
        """With what the decoder wrote to its standard error at last."""
        fd = self._stderr.fileno()
        size = os.fstat(fd).st_size
        # More than the lines that count. Read without moving the offset, which is the child's too.
        tail = os.pread(fd, 1 << 20, max(0, size - (1 << 20)))
        words = last_words(tail.decode(errors="backslashreplace"))
        return SourceFailed(stage, error, f"{message}: {words}" if words else message, transient=transient)

    def stop(self) -> None:
        """Kill the child, reap it, and close what was open."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Reader:
    """Whole messages from a pipe, within a deadline, and `max_bytes` of them."""

    def __init__(self, fd: int, max_bytes: int):
        self._fd = fd
        self._left_bytes = max_bytes
        self._buffer = bytearray()

    def message(self, deadline: float) -> Message:
        (length,) = _LENGTH.unpack(self._take(_LENGTH.size, deadline))
        if length > _MAX_HEAD_BYTES:
            raise _Garbled
        head, lengths = _parsed(self._take(length, deadline))
        size = sum(lengths)
        if size > _MAX_MESSAGE_BYTES:
            raise _Garbled
        self._left_bytes -= length + size
        if self._left_bytes < 0:
            raise _TooMuch
        return Message(head, [bytes(self._take(n, deadline)) for n in lengths])

    def _take(self, n: int, deadline: float) -> bytearray:
        with selectors.DefaultSelector() as selector:
            selector.register(self._fd, selectors.EVENT_READ)
            while len(self._buffer) < n:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                if not selector.select(min(left, 60.0)):  # weeks at once are more than it takes
                    continue
                data = os.read(self._fd, 1 << 20)
                if not data:
                    raise EOFError
                self._buffer += data
        taken = self._buffer[:n]
        del self._buffer[:n]
        return taken


# What each kind of message must carry: its reader relies on it.
_FIELDS: dict[str, dict[str, Any]] = {
    "deadline": {"deadline_s": int | float},
    "error": {"error": str, "message": str, "transient": bool},
}


def _parsed(data: bytearray) -> tuple[dict[str, Any], list[int]]:
    """A head, and the lengths of the message's parts."""
    try:
        head = json.loads(data)
    except (ValueError, RecursionError):
        raise _Garbled from None
    if not isinstance(head, dict) or not isinstance(head.get("kind"), str):
        raise _Garbled
    lengths = head.pop("parts", None)
    if not isinstance(lengths, list) or not all(type(n) is int and n >= 0 for n in lengths):
        raise _Garbled
    if any(not isinstance(head.get(name), of) for name, of in _FIELDS.get(head["kind"], {}).items()):
        raise _Garbled
    return head, lengths


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone (elsewhere the end of stdin ends it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def _serve(out: BinaryIO) -> None:
    # Imported here: the parent's side must not load a decoder.
    import av
    import cv2

    from curation.decode import cut, measure, probe, rescore, segments

    # Complaints go to standard error: from there the parent takes a decoder's last words. (The encoder is
    # chatty below this level.) Python's warnings name places in files, and come once per process.
    av.logging.restore_default_callback()
    av.logging.set_libav_level(av.logging.ERROR)
    warnings.simplefilter("ignore")

    operations = {
        "probe": probe.run,
        "measure": measure.run,
        "rescore": rescore.run,
        "look": segments.look,
        "score": segments.score,
        "cut": cut.run,
    }
    for line in sys.stdin.buffer:
        request = json.loads(line)
        with contextlib.suppress(Exception):
            av.error.err_check(0)  # raises what a reader of the last source raised when nobody looked
        try:
            for message in operations[request["op"]](request):
                write_message(out, message)
            write_message(out, Message({"kind": "done"}))
        except SourceFailed as error:
            write_message(out, _error(error.error, error.message, error.transient, stage=error.stage))
        except Exception as error:
            # A decoder can raise anything; whatever it is, it is this source's row.
            name = type(error).__name__
            if isinstance(error, cv2.error):
                name = "MemoryError" if error.code == cv2.Error.StsNoMem else "OpenCVError"
            text = getattr(error, "strerror", None) or str(error) or name
            # Errors of reading are Python's own, as reading is; ffmpeg gives such numbers (EIO, EAGAIN) to
            # damage, which stays.
            transient = is_transient(error) and not isinstance(error, av.error.FFmpegError)
            write_message(out, _error(name, text, transient))


def _error(error: str, message: str, transient: bool, **head: str) -> Message:
    text = message[:_MAX_MESSAGE_CHARS]
    return Message({"kind": "error", "error": error, "message": text, "transient": transient, **head})


def main() -> None:
    memory_mb, parent = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    out = cast(BinaryIO, os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # whatever a library prints must not get between the messages
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Nothing here writes files but standard error. (Python ignores SIGXFSZ: a write just fails.)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_STDERR_BYTES, _MAX_STDERR_BYTES))
    _serve(out)


if __name__ == "__main__":
    main()
