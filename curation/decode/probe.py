"""Reads the headers and the first frame of a source, for `--dry-run`. Runs in the decoding child."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from curation.decode.video import Video
from curation.sandbox.protocol import Message


def run(request: dict[str, Any]) -> Iterator[Message]:
    with Video(request["uri"]) as video:
        yield Message({"kind": "info", **dataclasses.asdict(video.info)})
