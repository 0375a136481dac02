"""What parent and child say to each other: messages over a pipe, and the failure of one source.

A message is a JSON head and binary parts of stated lengths. It imports no decoder, and nothing of the other
rooms: both sides load it.
"""

from __future__ import annotations

import json
import os
import selectors
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:  # the parent's side must stay light
    pass

from curation.sandbox.words import readable

_LENGTH = struct.Struct("<I")
_MAX_HEAD_BYTES = 16 << 20
_MAX_MESSAGE_BYTES = 1 << 30
MAX_MESSAGE_CHARS = 2000


class SourceFailed(Exception):
    """One source could not be handled: `stage` and `error` name where and what, the text says why.

    `transient`: the same request may succeed in a moment. `message` is one printable line.
    """

    def __init__(self, stage: str, error: str, message: str, *, transient: bool = False):
        self.stage = stage
        self.error = error
        self.message = readable(message)[:MAX_MESSAGE_CHARS]
        self.transient = transient
        super().__init__(self.message)


class Garbled(Exception):
    """What came through the pipe is no message: a decoder has written over its own memory."""


class TooMuch(Exception):
    """One request's answer is larger than it may be."""


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
    """Whole messages from a pipe, within a deadline, and `max_bytes` of them."""

    def __init__(self, fd: int, max_bytes: int):
        self._fd = fd
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
                if not selector.select(min(left, 60.0)):  # weeks at once are more than it takes
                    continue
                data = os.read(self._fd, 1 << 20)
                if not data:
                    raise EOFError
                self._buffer += data
        taken = self._buffer[:n]
        del self._buffer[:n]
        return taken


# What each kind of message must carry: its reader relies on it.
_FIELDS: dict[str, dict[str, Any]] = {
    "deadline": {"deadline_s": int | float},
    "error": {"error": str, "message": str, "transient": bool},
}


def _parsed(data: bytearray) -> tuple[dict[str, Any], list[int]]:
    """A head, and the lengths of the message's parts."""
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
