"""The parent's side of the decoding child, the only process that parses foreign bytes.

A decoder may crash, hang, use too much memory or never stop sending. With a child process, such a fault
costs only one source. The parent sends a request as one line of JSON. The child answers with messages (a JSON
head, and binary parts of stated lengths) and ends with `done` or `error`. A child serves many requests and is
replaced after a fault.

The parent limits the child's resident memory, its time and the size of its answers. The kernel limits the
child's addresses and the size of the files that the child writes.
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

from curation.sandbox.memory import TooLarge, Watch
from curation.sandbox.protocol import Garbled, Message, Reader, SourceFailed, TooMuch
from curation.sandbox.words import last_words

_EXIT_SECONDS = 10.0  # between a dying child's last byte and its exit
_KILLED_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)  # an operator, or a kernel short of memory


class Child:
    """The child process. `request` yields messages as they arrive. A fault raises `SourceFailed`.

    Use a `Child` as a context manager, or call `stop`. The child ends with its parent: the kernel kills the
    child when the parent dies, and the child also ends when its standard input ends.

    Sources that the child served before may have used up or overwritten its memory. So a crash or a lack of
    memory after other sources is a transient failure: a new child must try the source again.
    """

    def __init__(self, memory_mb: int, output_mb: int = 16384):
        self._memory_mb = memory_mb
        self._output_mb = output_mb
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: Any = None
        self._served = 0  # requests that the running process has received

    def request(self, request: dict[str, Any], deadline_s: float) -> Iterator[Message]:
        """Send one request.

        deadline_s: seconds from now. After the child has read the length of the source, the child may send a
            later deadline, counted from the same start. The time that the caller takes between two messages
            does not count.

        Raises `SourceFailed` for a fault of the source. Raises `OSError` if this machine cannot start a
        process or make a temporary file.
        """
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        # The child shares the file descriptor and its offset, so the child now writes from the start again.
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
            watch = Watch(process.pid, self._memory_mb << 20)
            reader = Reader(process.stdout.fileno(), self._output_mb << 20, watch)
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
                    # The child caught the error and can serve more requests. After a lack of memory the
                    # child is replaced, because its decoder may be in a bad state.
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
        except TooLarge as error:
            reason = f"{error} MB of memory, more than {self._memory_mb} (run.child_memory_mb allows more)"
            raise self._failed(stage, "MemoryError", reason, served_others) from None
        except TooMuch:
            reason = f"more than {self._output_mb} MB handed over (run.child_output_mb allows more)"
            raise self._failed(stage, "TooMuchOutput", reason) from None
        except (EOFError, BrokenPipeError):
            raise self._crashed(process, stage, served_others) from None
        except Garbled:
            raise self._failed(stage, "Crash", "the decoder sent a broken message", served_others) from None
        finally:
            if not finished:
                self.stop()

    def _crashed(self, process: subprocess.Popen[bytes], stage: str, served_others: bool) -> SourceFailed:
        """The failure of a source whose child has ended, or has closed its end of the pipe."""
        transient = served_others
        try:
            code = process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:  # the child is still running
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
            # -P and this PYTHONPATH keep Python from importing a module from the user's folder by accident.
            paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "OPENCV_LOG_LEVEL": "SILENT",  # OpenCV's errors say the same as its log, without times of day
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
                start_new_session=True,  # only the driver handles a Ctrl-C at the terminal
            )
        return self._process

    def _failed(self, stage: str, error: str, message: str, transient: bool = False) -> SourceFailed:
        """The failure of a source, with the last words that the decoder wrote to standard error."""
        fd = self._stderr.fileno()
        size = os.fstat(fd).st_size
        # 1 MiB holds more lines than `last_words` uses. `pread` keeps the offset, which the child shares.
        tail = os.pread(fd, 1 << 20, max(0, size - (1 << 20)))
        words = last_words(tail.decode(errors="backslashreplace"))
        return SourceFailed(stage, error, f"{message}: {words}" if words else message, transient=transient)

    def stop(self) -> None:
        """Kill the child, wait for its end, and close its pipes and files."""
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
