"""Helpers that all workers share: checks for changed files, retries, and pictures for scorers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from curation.config.schema import Config
from curation.sandbox.protocol import SourceFailed
from curation.sources.identity import changed_since
from curation.store.rows import Shape
from curation.store.spent import told
from curation.store.transient import is_transient
from curation.tasks.cut import SourceFile
from curation.tasks.measure import MeasuredClip, StreamRow, stream_row
from filters.base import ClipInfo, Frames, Sampling


def note(text: str) -> StreamRow:
    """A row of the stream that holds a message to the user."""
    return stream_row("", note=text)


def spent_row(stage: str, worker: str, seconds: float) -> StreamRow:
    return stream_row("", spent=told(stage, worker, seconds))


def check_unchanged(source: SourceFile) -> None:
    """Raises `SourceFailed` when the file is not the file that was identified, or cannot be read."""
    uri = source["uri"]
    try:
        if not changed_since(uri, source["bytes"], source["mtime_or_etag"], source["fingerprint"]):
            return
    except (OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise SourceFailed("open", type(error).__name__, text, transient=is_transient(error)) from error
    message = "the file was changed after it was listed or measured: run the build again"
    raise SourceFailed("open", "Changed", message)


@dataclass
class _Attempt:
    number: int
    left: int
    wait_s: float

    def again(self, error: SourceFailed) -> bool:
        """Wait before the next attempt. False when no attempt is left, or the fault is permanent."""
        if not error.transient or not self.left:
            return False
        time.sleep(self.wait_s)
        return True


def retries(config: Config) -> Iterator[_Attempt]:
    """Yield the first attempt and its retries. Each retry waits twice as long as the retry before."""
    run = config.run
    for k in range(run.read_retries + 1):
        yield _Attempt(k, run.read_retries - k, run.retry_seconds * 2**k)


def clip_info(shape: Shape, frames: int) -> ClipInfo:
    duration_s = shape["end_s"] - shape["start_s"]
    return ClipInfo(duration_s, frames, shape["fps"], shape["width"], shape["height"])


def decoded_frames(clip: MeasuredClip, jpegs: Sequence[bytes], sampling: Sampling) -> Frames:
    images = []
    for jpeg in jpegs:
        flag = cv2.IMREAD_GRAYSCALE if sampling.color == "gray" else cv2.IMREAD_COLOR_RGB
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flag)
        assert image is not None
        assert (image.shape[1], image.shape[0]) == sampling.size(clip["width"], clip["height"])
        images.append(image)
    return Frames(clip_info(clip, clip["frames"]), images)
