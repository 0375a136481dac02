"""Driving the decoding child by hand, without Ray."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np

from curation.config.schema import Config
from curation.sandbox.parent import Child


def measure(
    path: Path | str, config: Config, source_id: str = "s"
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(clips, source) as the child reports them."""
    request = {
        "op": "measure",
        "uri": str(path),
        "source_id": source_id,
        "config": config.model_dump(mode="json"),
    }
    with Child(config.run.child_memory_mb) as child:
        heads = [m.head for m in child.request(request, config.run.deadline_seconds)]
    clips = [h for h in heads if h["kind"] == "clip"]
    (source,) = (h for h in heads if h["kind"] == "source")
    return clips, source


def rescore(path: Path | str, clips: list[dict[str, Any]], config: Config) -> dict[str, dict[str, Any]]:
    """clip_id -> the scores of all scorers without a model, computed again."""
    fields = ("clip_id", "start_s", "end_s", "frames", "fps", "width", "height")
    request = {
        "op": "rescore",
        "stage": "score",
        "uri": str(path),
        "clips": [{**{f: c[f] for f in fields}, "want": list(config.local_scorers)} for c in clips],
        "config": config.model_dump(mode="json"),
    }
    with Child(config.run.child_memory_mb) as child:
        heads = [m.head for m in child.request(request, config.run.deadline_seconds)]
    return {h["clip_id"]: h["scores"] for h in heads if h["kind"] == "scores"}


def cut(path: Path | str, clips: list[dict[str, Any]], config: Config) -> list[tuple[dict[str, Any], bytes]]:
    """(what was written, mp4) of each clip; failures come with empty bytes."""
    fields = ("clip_id", "start_s", "end_s", "frames", "fps")
    request = {
        "op": "cut",
        "stage": "open",
        "uri": str(path),
        "spans": [{f: c[f] for f in fields} for c in clips],
        "cut": config.cut.model_dump(),
        "run": config.run.model_dump(),
    }
    with Child(config.run.child_memory_mb) as child:
        messages = list(child.request(request, config.run.deadline_seconds))
    return [(m.head, m.parts[0] if m.parts else b"") for m in messages]


def decode(mp4: bytes) -> list[np.ndarray]:
    """Every frame, (H, W, 3) RGB."""
    with av.open(io.BytesIO(mp4)) as container:
        return [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
