"""Clips of the shards, decoded as training decodes them, in a process of their own."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from curation.store.rows import ShardRow

_DECODE_SECONDS = 120  # for one clip; they are seconds long
_MEMORY_BYTES = 16 << 30  # of addresses: decord maps every CUDA library that it finds
_MAX_ANSWER_BYTES = 1 << 16
# Widths at which decord may mistake the padding of rows for channels. Training reads such clips with PyAV.
_MISREAD_BY_DECORD = frozenset((*range(1, 64), 96, 144))


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


class Decoder:
    """Decodes clips in a child process: a decoder that crashes or hangs is then a finding about a clip."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def problem(self, mp4: bytes, row: ShardRow) -> str | None:
        """What is wrong with a video: it must decode to `frames` frames of `height` x `width`."""
        pipe = self._pipe or self._start()
        try:
            pipe.send((mp4, row["frames"], row["width"], row["height"]))
            if pipe.poll(_DECODE_SECONDS):
                return _problem(pipe.recv_bytes(_MAX_ANSWER_BYTES))
            message = f"does not decode within {_DECODE_SECONDS} s"
        except (EOFError, OSError, ValueError):  # no answer, or one that is none
            message = "crashes the decoder"
        self.stop()
        return message

    def _start(self) -> Connection:
        self._pipe, theirs = multiprocessing.Pipe()
        # Not `multiprocessing.Process`: forked, it has the locks of threads that are not there, and
        # spawned, it runs the caller's script a second time. -P and the package's own place: nothing in
        # the user's folder is imported by accident.
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "curation.audit.decoder", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)},
        )
        theirs.close()
        return self._pipe

    def stop(self) -> None:
        if self._pipe is not None and self.process is not None:
            self._pipe.close()
            self.process.kill()
            self.process.wait()
        self._pipe = self.process = None


def _problem(answer: bytes) -> str | None:
    """The child reads foreign bytes: of what it says, nothing but a text is taken."""
    problem = json.loads(answer)
    if not isinstance(problem, str | None):
        raise ValueError("neither a text nor null")
    return problem


def decode_clips(pipe: Connection) -> None:
    """The child: answers until the pipe is closed."""
    from decord import VideoReader  # noqa: F401  # what goes wrong here is shown

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # decord prints the content of what it cannot open
    while True:
        try:
            mp4, frames, width, height = pipe.recv()
        except EOFError:
            return
        pipe.send_bytes(json.dumps(decode_problem(mp4, frames, width, height)).encode())


def decode_problem(mp4: bytes, frames: int, width: int, height: int) -> str | None:
    """What is wrong with a video, as the library that training reads with sees it."""
    from av.error import FFmpegError
    from decord import DECORDError

    if mp4[4:8] != b"ftyp":
        return "is no mp4"
    shapes_of = _shapes_by_av if width in _MISREAD_BY_DECORD else _shapes_by_decord
    try:
        shapes = list(shapes_of(mp4))
    except (DECORDError, FFmpegError, RuntimeError, OSError, ValueError, IndexError, MemoryError) as error:
        return f"does not decode: {one_line(error)}"
    if len(shapes) != frames:
        return f"has {len(shapes)} frames of video, not {frames}"
    for shape in shapes:
        if shape != (height, width, 3):
            return f"decodes to {shape[1]}x{shape[0]}, not {width}x{height}"
    return None


def _shapes_by_decord(mp4: bytes) -> Iterator[tuple[int, ...]]:
    from decord import VideoReader

    reader = VideoReader(io.BytesIO(mp4), num_threads=1)
    return (tuple(reader[i].shape) for i in range(len(reader)))


def _shapes_by_av(mp4: bytes) -> Iterator[tuple[int, ...]]:
    import av

    with av.open(io.BytesIO(mp4), "r", format="mp4") as container:
        container.streams.video[0].codec_context.thread_count = 1
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24", threads=1).shape


if __name__ == "__main__":
    decode_clips(Connection(int(sys.argv[1])))
