"""The decoding child: the one place where foreign bytes are parsed.

A crash, a hang, a memory flood or an endless stream in a decoder then costs one source. The parent sends a
request as one line of JSON; the child answers with messages (a JSON head, and binary parts of stated
lengths) and ends with `done` or `error`. A child serves many requests and is replaced after a fault.

Limits: of memory and of what it writes to files (by the kernel), of time and of what it hands over (by the
parent).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from curation.sandbox.protocol import Garbled, Message, Reader, SourceFailed, TooMuch
from curation.sandbox.words import last_words

_EXIT_SECONDS = 10.0  # between a dying child's last byte and its exit
_KILLED_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)  # an operator, or a kernel short of memory


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
            reader = Reader(process.stdout.fileno(), self._output_mb << 20)
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
        except TooMuch:
            reason = f"more than {self._output_mb} MB handed over (run.child_output_mb allows more)"
            raise self._failed(stage, "TooMuchOutput", reason) from None
        except (EOFError, BrokenPipeError):
            raise self._crashed(process, stage, served_others) from None
        except Garbled:
            raise self._failed(stage, "Crash", "the decoder sent what is no message", served_others) from None
        finally:
            if not finished:
                self.stop()

    def _crashed(self, process: subprocess.Popen[bytes], stage: str, served_others: bool) -> SourceFailed:
        """The child has ended, or has closed its end of the pipe."""
        transient = served_others
        try:
            code = process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:  # it lives
            what = "stopped answering"
        else:
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            what = f"died ({how})"
            transient = served_others or -code in _KILLED_FROM_OUTSIDE
        return self._failed(stage, "Crash", f"the decoder {what}", transient)

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
                    "curation.decode",
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
