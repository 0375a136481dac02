"""A real HTTP server with the OpenAI-compatible protocol. A script decides its answers and its faults."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import select
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

_CELLS = 16  # cells of a numbered picture: 4 x 4 bits


@dataclass(frozen=True)
class Asked:
    """One request as the server received it."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    attempt: int  # the number of earlier requests with the same message

    @property
    def content(self) -> Any:
        return self.body["messages"][0]["content"]

    @property
    def text(self) -> str:
        content = self.content
        return content if isinstance(content, str) else content[-1]["text"]

    @property
    def pictures(self) -> list[np.ndarray]:
        """The decoded pictures. Other content than JPEG data URLs is an error."""
        if isinstance(self.content, str):
            return []
        found = []
        for part in self.content[:-1]:
            kind, data = part["image_url"]["url"].split(",", 1)
            assert part["type"] == "image_url"
            assert kind == "data:image/jpeg;base64"
            picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
            assert (picture.format, picture.mode) == ("JPEG", "RGB")
            found.append(np.asarray(picture))
        return found

    @property
    def numbers(self) -> list[int]:
        return [number_in(picture) for picture in self.pictures]


@dataclass(frozen=True)
class Reply:
    """The server's reaction to a request. The default is a good answer."""

    text: str | None = "A grey cat sleeps on a red chair."
    status: int = 200
    finish: str = "stop"
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    raw: bytes | None = None  # this body instead of a completion
    fate: str = "answer"  # or drop (no answer), reset, half (the connection ends within the body), never

    def body(self, model: str) -> bytes:
        if self.raw is not None:
            return self.raw
        if self.status != 200:
            return json.dumps({"error": {"message": self.text or "no", "code": None}}).encode()
        message = {"role": "assistant", "content": self.text}
        choice = {"index": 0, "message": message, "finish_reason": self.finish}
        return json.dumps(
            {"object": "chat.completion", "model": model, "system_fingerprint": "fp-1", "choices": [choice]}
        ).encode()


class ChatServer:
    """A running server. `asked`: the requests; `most`: the largest number of requests at the same time.

    A request counts from the moment when it has been read until just before its answer is sent, or until its
    client has left. The server counts, so the number is exact. Answers wait until `hold` requests are open or
    one second has passed, so that the client certainly reaches its limit.
    """

    def __init__(self, script: Callable[[Asked], Reply] | None = None, hold: int = 0) -> None:
        self.script = script or (lambda asked: Reply())
        self.asked: list[Asked] = []
        self.most = 0
        self._hold = hold
        self._changed = threading.Condition()
        self._inside: set[socket.socket] = set()
        self._seen: dict[str, int] = {}
        self._closing = threading.Event()
        owner = self

        class Handler(_Handler):
            server_ = owner

        self._http = _HTTP(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def enter(self, connection: socket.socket, path: str, headers: Mapping[str, str], body: bytes) -> Asked:
        value = json.loads(body)
        message = hashlib.sha256(json.dumps(value["messages"]).encode()).hexdigest()
        with self._changed:
            self._inside = {c for c in self._inside if not _gone(c)} | {connection}
            self.most = max(self.most, len(self._inside))
            asked = Asked(path, headers, value, self._seen.get(message, 0))
            self._seen[message] = asked.attempt + 1
            self.asked.append(asked)
            self._changed.notify_all()
            if self._hold:
                self._changed.wait_for(lambda: self.most >= self._hold, timeout=1.0)
        return asked

    def leave(self, connection: socket.socket) -> None:
        with self._changed:
            self._inside.discard(connection)

    def wait(self, connection: socket.socket, seconds: float | None) -> bool:
        """False if the client leaves during the wait, or the server closes."""
        step, waited = 0.05, 0.0
        while seconds is None or waited < seconds:
            if self._closing.is_set():
                return False
            left = step if seconds is None else min(step, seconds - waited)
            if select.select([connection], [], [], left)[0]:
                return False
            waited += left
        return True


class _HTTP(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


class _Handler(BaseHTTPRequestHandler):
    server_: ChatServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = self.server_.enter(self.connection, self.path, dict(self.headers), body)
        try:
            reply = self.server_.script(asked)
            never = reply.fate == "never"
            stayed = self.server_.wait(self.connection, None if never else reply.delay_s)
        finally:
            self.server_.leave(self.connection)
        if not stayed or reply.fate in ("drop", "reset"):
            if reply.fate == "reset":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()
            self.close_connection = True
            return
        said = reply.body(asked.body["model"])
        head = [
            f"HTTP/1.1 {reply.status} Told",
            f"Content-Length: {len(said)}",
            "Content-Type: application/json",
        ]
        head += [f"{name}: {value}" for name, value in reply.headers.items()]
        if reply.fate == "half":
            said, self.close_connection = said[: len(said) // 2], True
        self.wfile.write("\r\n".join([*head, "", ""]).encode() + said)

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, ValueError, OSError):
            self.close_connection = True

    def finish(self) -> None:
        try:
            super().finish()
        except (ConnectionError, ValueError, OSError):
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Print no log."""


def _gone(connection: socket.socket) -> bool:
    """Whether the client has closed the connection."""
    try:
        readable = select.select([connection], [], [], 0)[0]
        return bool(readable) and connection.recv(1, socket.MSG_PEEK) == b""
    except (OSError, ValueError):
        return True


def numbered(number: int, side: int = 64) -> np.ndarray:
    """A picture that encodes a 16-bit number, readable after any JPEG compression."""
    bits = np.array([(number >> k) & 1 for k in range(_CELLS)], np.uint8).reshape(4, 4)
    grey = np.kron(bits * 200 + 25, np.ones((side // 4, side // 4), np.uint8))
    return np.repeat(grey[:, :, None], 3, axis=2)


def number_in(picture: np.ndarray) -> int:
    cells = picture[:, :, 0].reshape(4, picture.shape[0] // 4, 4, picture.shape[1] // 4).mean(axis=(1, 3))
    return sum(1 << k for k, bit in enumerate((cells > 128).ravel()) if bit)
