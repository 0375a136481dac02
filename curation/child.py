"""The decoding child: the one place where foreign bytes are parsed.

A crash, a hang, a memory flood or an endless stream in a decoder then costs one source. The parent sends a
request as one line of JSON; the child answers with messages (a JSON head, and binary parts of stated
lengths) and ends with `done` or `error`. A child serves many requests and is replaced after a fault.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

_LENGTH = struct.Struct("<I")
_MAX_HEAD_BYTES = 16 << 20
_MAX_MESSAGE_BYTES = 1 << 30
_LAST_WORDS_BYTES = 2000
_EXIT_SECONDS = 10.0  # between a dying child's last byte and its exit


class SourceFailed(Exception):
    """One source could not be handled: `stage` and `error` name where and what, the text says why."""

    def __init__(self, stage: str, error: str, message: str):
        super().__init__(message)
        self.stage = stage
        self.error = error
        self.message = message


class _Garbled(Exception):
    """What came through the pipe is no message: a decoder has written over its own memory."""


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
    """

    def __init__(self, memory_mb: int):
        self._memory_mb = memory_mb
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: Any = None

    def request(self, request: dict[str, Any], deadline_s: float) -> Iterator[Message]:
        """Send one request. `deadline_s` is in seconds from now; a message whose head has `deadline_s`
        (the child has learnt how long the source is) sets a new one, counted from the same start.
        """
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        started = time.monotonic()
        stage = str(request.get("stage", request["op"]))
        finished = False
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            reader = _Reader(process.stdout.fileno())
            while True:
                message = reader.message(started + deadline_s)
                kind = message.head["kind"]
                stage = message.head.get("stage", stage)
                if kind == "deadline":
                    deadline_s = max(deadline_s, float(message.head["deadline_s"]))
                elif kind == "done":
                    finished = True
                    return
                elif kind == "error":
                    # The child caught it and goes on, but a decoder that ran out of memory is not trusted.
                    finished = message.head["error"] != "MemoryError"
                    raise SourceFailed(stage, message.head["error"], message.head["message"])
                else:
                    yield message
        except TimeoutError:
            raise SourceFailed(
                stage, "Timeout", f"not finished after {deadline_s:.0f} s{self._last_words()}"
            ) from None
        except (EOFError, BrokenPipeError):
            try:
                code = process.wait(_EXIT_SECONDS)
            except subprocess.TimeoutExpired:  # it lives, but has closed its end
                what = "stopped answering"
            else:
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
                what = f"died ({how})"
            raise SourceFailed(stage, "Crash", f"the decoder {what}{self._last_words()}") from None
        except _Garbled:
            raise SourceFailed(
                stage, "Crash", f"the decoder sent what is no message{self._last_words()}"
            ) from None
        finally:
            if not finished:
                self.stop()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self._stderr = tempfile.TemporaryFile()
            # -P and the package's own place: nothing in the user's folder is imported by accident.
            paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(p for p in paths if p),
            }
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "curation.child", str(self._memory_mb), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment,
                start_new_session=True,  # a Ctrl-C at the terminal is the driver's to handle
            )
        return self._process

    def _last_words(self) -> str:
        """The end of what the decoder wrote to its standard error."""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _LAST_WORDS_BYTES))
        text = self._stderr.read().decode(errors="replace").strip()
        return f": {text}" if text else ""

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
    """Whole messages from a pipe, within a deadline."""

    def __init__(self, fd: int):
        self._fd = fd
        self._buffer = bytearray()

    def message(self, deadline: float) -> Message:
        (length,) = _LENGTH.unpack(self._take(_LENGTH.size, deadline))
        if length > _MAX_HEAD_BYTES:
            raise _Garbled
        try:
            head = json.loads(self._take(length, deadline))
            lengths = head.pop("parts")
            size = sum(lengths)
        except (ValueError, AttributeError, KeyError, TypeError):
            raise _Garbled from None
        if size > _MAX_MESSAGE_BYTES:
            raise _Garbled
        return Message(head, [bytes(self._take(n, deadline)) for n in lengths])

    def _take(self, n: int, deadline: float) -> bytearray:
        with selectors.DefaultSelector() as selector:
            selector.register(self._fd, selectors.EVENT_READ)
            while len(self._buffer) < n:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise TimeoutError
                data = os.read(self._fd, 1 << 20)
                if not data:
                    raise EOFError
                self._buffer += data
        taken = self._buffer[:n]
        del self._buffer[:n]
        return taken


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone (elsewhere the end of stdin ends it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def _serve(out: BinaryIO) -> None:
    # Imported here: the parent's side must stay light and must not load a decoder.
    import av

    from curation import cut, measure, probe

    av.logging.set_libav_level(av.logging.ERROR)  # the encoder is chatty; a decoder's complaints are kept

    operations = {
        "probe": probe.run,
        "measure": measure.run,
        "cut": cut.run,
    }
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            for message in operations[request["op"]](request):
                write_message(out, message)
            write_message(out, Message({"kind": "done"}))
        except SourceFailed as error:
            head = {"kind": "error", "stage": error.stage, "error": error.error, "message": error.message}
            write_message(out, Message(head))
        except Exception as error:
            # A decoder can raise anything; whatever it is, it is this source's row.
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            write_message(out, Message({"kind": "error", "error": type(error).__name__, "message": text}))


def main() -> None:
    memory_mb, parent = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    out = cast(BinaryIO, os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # whatever a library prints must not get between the messages
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _serve(out)


if __name__ == "__main__":
    main()
