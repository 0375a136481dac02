"""The rows that travel between workers, and what all workers do around their work."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from curation.config.schema import Config
from curation.sandbox.protocol import SourceFailed
from curation.sources.identity import changed_since
from curation.store.spent import told
from curation.store.transient import is_transient
from filters.base import ClipInfo, Frames, Sampling

Row = dict[str, Any]

STREAM = pa.schema(
    [
        ("part", pa.string()),
        ("kind", pa.string()),  # clip, source, group, note or spent
        ("data", pa.string()),  # JSON: the row, but for what is binary
        ("thumbnail", pa.binary()),
        ("jpegs", pa.list_(pa.binary())),  # frames for model-backed scorers
        ("embedding", pa.list_(pa.float32())),
    ]
)
LOOKS = pa.schema(
    [
        ("source_id", pa.string()),
        ("index", pa.int32()),
        ("head", pa.string()),  # JSON; null: it failed
        ("arrays", pa.list_(pa.binary())),
        ("error", pa.string()),
        ("spent", pa.string()),  # JSON: `spent.told`
    ]
)


def stream_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=STREAM)


def note(text: str) -> Row:
    """A row of the stream that says something to the user."""
    return {"part": "", **stream_row("note", {"text": text})}


def spent_row(stage: str, worker: str, seconds: float) -> Row:
    return {"part": "", **stream_row("spent", told(stage, worker, seconds))}


def source_row(
    source: dict[str, Any], measured: dict[str, Any], config: Config, attempt: int
) -> dict[str, Any]:
    """The row of the stream that says how a source was measured."""
    hashes = {"config_hash": config.spans_hash(), "attempt": attempt}
    return stream_row("source", {**source, **measured, **hashes})


def check_unchanged(source: dict[str, Any]) -> None:
    """Raises `SourceFailed` when another file is there than the one that was identified."""
    uri = source["uri"]
    try:
        if not changed_since(uri, source["bytes"], source["mtime_or_etag"], source["fingerprint"]):
            return
    except (OSError, ValueError) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise SourceFailed("open", type(error).__name__, text, transient=is_transient(error)) from error
    message = "the file was changed after it was listed or measured: run the build again"
    raise SourceFailed("open", "Changed", message)


def fault(error: SourceFailed) -> dict[str, str]:
    return {"stage": error.stage, "error": error.error, "message": error.message}


@dataclass
class _Attempt:
    number: int
    left: int
    wait_s: float

    def again(self, error: SourceFailed) -> bool:
        """Wait, and go on to the next attempt; False when there is none, or the fault will not pass."""
        if not error.transient or not self.left:
            return False
        time.sleep(self.wait_s)
        return True


def retries(config: Config) -> Iterator[_Attempt]:
    """The first one, and the retries after faults that may pass; each waits twice as long."""
    run = config.run
    for k in range(run.read_retries + 1):
        yield _Attempt(k, run.read_retries - k, run.retry_seconds * 2**k)


def stream_row(
    kind: str, data: dict[str, Any], jpegs: Sequence[bytes] = (), thumbnail: bytes | None = None
) -> dict[str, Any]:
    return {
        "kind": kind,
        "data": json.dumps(data),
        "thumbnail": thumbnail,
        "jpegs": list(jpegs),
        "embedding": None,
    }


def split_jpegs(jpegs: list[bytes], counts: dict[str, int]) -> dict[str, list[bytes]]:
    """The JPEGs by the scorer that asked for them."""
    rest = iter(jpegs)
    return {name: [next(rest) for _ in range(n)] for name, n in counts.items()}


def clip_info(clip: dict[str, Any]) -> ClipInfo:
    duration = clip["end_s"] - clip["start_s"]
    return ClipInfo(duration, clip["frames"], clip["fps"], clip["width"], clip["height"])


def decoded_frames(clip: dict[str, Any], jpegs: list[bytes], sampling: Sampling) -> Frames:
    images = []
    for jpeg in jpegs:
        flag = cv2.IMREAD_GRAYSCALE if sampling.color == "gray" else cv2.IMREAD_COLOR_RGB
        image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flag)
        assert image is not None
        assert (image.shape[1], image.shape[0]) == sampling.size(clip["width"], clip["height"])
        images.append(image)
    return Frames(clip_info(clip), images)
