"""Decoding in child processes. If a clip crashes the decoder or hangs, only this clip is lost.

The parent talks to a child through a socket. A child ends when its parent ends. A child runs `python -m
generation.data.decode FD`. A child never imports torch or the parent's main module.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from socket import socketpair
from typing import Any, Protocol

import numpy as np

from generation.data.transform import Sample, apply

_START_TIMEOUT_S = 120.0  # a child imports numpy and the decoder, perhaps from a slow disk
_ATTEMPTS = 2
_READY = b"ready"


class BadClip(Exception):
    """A clip that cannot be decoded, even after several attempts. The text gives the reason."""


@dataclass(frozen=True)
class Job:
    """A clip that must be decoded to a sample."""

    row: Mapping[str, Any]  # clip_id, video, frames, width, height
    sample: Sample


class Decoder(Protocol):
    """Decodes clips. A future gives (3, T, H, W) uint8, or raises `BadClip`."""

    def submit(self, job: Job) -> Future[np.ndarray]: ...

    def close(self) -> None: ...


def open_decoder(workers: int, timeout_s: float) -> Decoder:
    """A decoder with `workers` child processes, or one in this process for 0. timeout_s: for each clip."""
    return _Pool(workers, timeout_s) if workers else _Here()


class _Here:
    """Decodes in this process, inside of `submit`. There is no time limit for a decoder that hangs."""

    def submit(self, job: Job) -> Future[np.ndarray]:
        future: Future[np.ndarray] = Future()
        found = _decoded(job)
        if isinstance(found, str):
            future.set_exception(BadClip(found))
        else:
            future.set_result(found)
        return future

    def close(self) -> None:
        pass


def _decoded(job: Job) -> np.ndarray | str:
    """The sample (3, T, H, W) uint8, or a text that says what is wrong with the clip."""
    from av.error import FFmpegError
    from decord import DECORDError

    bad = (DECORDError, FFmpegError, ValueError, TypeError, RuntimeError, IndexError, OSError, MemoryError)
    try:
        return apply(job.row, job.sample)
    except bad as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]


class _Pool:
    """Decodes in `workers` child processes. A thread drives each child, and replaces a dead or slow child."""

    def __init__(self, workers: int, timeout_s: float):
        self._timeout_s = timeout_s
        self._jobs: SimpleQueue[tuple[Job, Future[np.ndarray]] | None] = SimpleQueue()
        self._children: dict[int, _Child] = {}
        self._closed = False
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._serve, args=(k,), name=f"decode-{k}", daemon=True)
            for k in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> Future[np.ndarray]:
        assert not self._closed
        future: Future[np.ndarray] = Future()
        self._jobs.put((job, future))
        return future

    def close(self) -> None:
        """End all children, even in the middle of their work."""
        with self._lock:
            self._closed = True
            for child in self._children.values():
                child.kill()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self, k: int) -> None:
        while (item := self._jobs.get()) is not None:
            job, future = item
            if self._closed:
                future.cancel()
            elif future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._attempt(k, job))
                except Exception as error:  # raised again where the caller reads the future
                    future.set_exception(error)
        self._drop(k)

    def _attempt(self, k: int, job: Job) -> np.ndarray:
        wrong = ""
        for _ in range(_ATTEMPTS):
            child = self._child(k)
            try:
                found = child.decode(job, self._timeout_s)
            except _Lost as error:
                self._drop(k)
                found = str(error)
            if not isinstance(found, str):
                return found
            wrong = found
        raise BadClip(wrong)

    def _child(self, k: int) -> _Child:
        with self._lock:
            if self._closed:
                raise BadClip("the loader was closed")
            if k not in self._children:
                self._children[k] = _Child()
            child = self._children[k]
        child.await_ready()
        return child

    def _drop(self, k: int) -> None:
        with self._lock:
            child = self._children.pop(k, None)
        if child:
            child.close()


class _Lost(Exception):
    """The child died, or must be killed because it does not answer."""


class _Child:
    """The parent's end of one child."""

    def __init__(self) -> None:
        ours, theirs = socketpair()
        self._connection = Connection(ours.detach())
        with theirs:
            # Nothing is written to the child's standard input. Its end shows that the parent has ended.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "generation.data.decode", str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": _import_path()},
                process_group=0,  # only the parent handles a Ctrl-C on the terminal
            )
        self._ready = False

    def await_ready(self) -> None:
        """Wait until the child is ready. Raises `RuntimeError` if the child cannot start."""
        if self._ready:
            return
        try:
            self._ready = self._receive(_START_TIMEOUT_S) == _READY
        except _Lost as error:
            raise RuntimeError(
                f"a decoding process could not start: {error}; see its message above"
            ) from None

    def decode(self, job: Job, timeout_s: float) -> np.ndarray | str:
        """The sample (3, T, H, W) uint8, or a text that says what is wrong with the clip. Raises `_Lost`."""
        try:
            self._connection.send(job)
        except OSError as error:
            raise _Lost(self._ending()) from error
        head = self._receive(timeout_s)
        if head:
            return head.decode()
        sample = job.sample
        pixels = np.frombuffer(self._receive(timeout_s), np.uint8)
        return pixels.reshape(3, len(sample.indices), sample.height, sample.width)

    def _receive(self, timeout_s: float) -> bytes:
        try:
            if not self._connection.poll(timeout_s):
                raise _Lost(f"no result within {timeout_s:g} s")
            return self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise _Lost(self._ending()) from error

    def _ending(self) -> str:
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            return "the decoding process closed its socket"
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"the decoding process {how}"

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin
        self._process.stdin.close()
        self._connection.close()


def _import_path() -> str:
    """A PYTHONPATH with which the child finds this package, installed or not."""
    ours = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([ours, *filter(None, [os.environ.get("PYTHONPATH")])])


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    """The program of a child: decode jobs from the socket until the parent closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import av.error  # noqa: F401  # now, so that the time limit of the first clip does not include imports
    import decord  # noqa: F401

    with Connection(int(sys.argv[1])) as connection:
        connection.send_bytes(_READY)
        while True:
            try:
                job: Job = connection.recv()
            except EOFError:
                return
            found = _decoded(job)
            if isinstance(found, str):
                connection.send_bytes(found.encode() or b"unknown")
            else:
                connection.send_bytes(b"")
                connection.send_bytes(found.data.cast("B"))


if __name__ == "__main__":
    main()
