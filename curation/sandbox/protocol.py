"""The protocol between parent and child: messages over a pipe, and the failure of one source.

A message is a JSON head and binary parts of stated lengths. Parent and child both import this module, so the
module imports no decoder and no other room.
"""

from __future__ import annotations

import json
import os
import selectors
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from curation.sandbox.words import readable

WATCH_SECONDS = 0.05
_LENGTH = struct.Struct("<I")
_MAX_HEAD_BYTES = 16 << 20
_MAX_MESSAGE_BYTES = 1 << 30
MAX_MESSAGE_CHARS = 2000


class SourceFailed(Exception):
    """One source failed: `stage` names the step, `error` the kind of error, and `message` the reason.

    transient: the same request may succeed a moment later. message: one printable line.
    """

    def __init__(self, stage: str, error: str, message: str, *, transient: bool = False):
        self.stage = stage
        self.error = error
        self.message = readable(message)[:MAX_MESSAGE_CHARS]
        self.transient = transient
        super().__init__(self.message)


class Garbled(Exception):
    """The bytes from the pipe are not a message: a decoder has overwritten its own memory."""


class TooMuch(Exception):
    """The answer to one request is larger than allowed."""


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


class Reader:
    """Reads whole messages from a pipe, until a deadline and up to `max_bytes` in all.

    `message` raises `TimeoutError` after the deadline, `EOFError` at the end of the pipe, `Garbled` for bytes
    that are not a message, and `TooMuch` above `max_bytes`.
    """

    def __init__(self, fd: int, max_bytes: int, watch: Callable[[], None] = lambda: None):
        self._fd = fd
        self._watch = watch  # called several times a second; what it raises ends the reading
        self._left_bytes = max_bytes
        self._buffer = bytearray()

    def message(self, deadline: float) -> Message:
        (length,) = _LENGTH.unpack(self._take(_LENGTH.size, deadline))
        if length > _MAX_HEAD_BYTES:
            raise Garbled
        head, lengths = _parsed(self._take(length, deadline))
        size = sum(lengths)
        if size > _MAX_MESSAGE_BYTES:
            raise Garbled
        self._left_bytes -= length + size
        if self._left_bytes < 0:
            raise TooMuch
        return Message(head, [bytes(self._take(n, deadline)) for n in lengths])

    def _take(self, n: int, deadline: float) -> bytearray:
        with selectors.DefaultSelector() as selector:
            selector.register(self._fd, selectors.EVENT_READ)
            while len(self._buffer) < n:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError
                self._watch()
                if not selector.select(min(left, WATCH_SECONDS)):
                    continue
                data = os.read(self._fd, 1 << 20)
                if not data:
                    raise EOFError
                self._buffer += data
        taken = self._buffer[:n]
        del self._buffer[:n]
        return taken


# The fields that the head of each kind of message must have, because the reader uses them.
_FIELDS: dict[str, dict[str, Any]] = {
    "deadline": {"deadline_s": int | float},
    "error": {"error": str, "message": str, "transient": bool},
}


def _parsed(data: bytearray) -> tuple[dict[str, Any], list[int]]:
    """(the head of a message, the lengths of its parts in bytes)."""
    try:
        head = json.loads(data)
    except (ValueError, RecursionError):
        raise Garbled from None
    if not isinstance(head, dict) or not isinstance(head.get("kind"), str):
        raise Garbled
    lengths = head.pop("parts", None)
    if not isinstance(lengths, list) or not all(type(n) is int and n >= 0 for n in lengths):
        raise Garbled
    if any(not isinstance(head.get(name), of) for name, of in _FIELDS.get(head["kind"], {}).items()):
        raise Garbled
    return head, lengths
