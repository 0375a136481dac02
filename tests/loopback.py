"""A server on this machine that notes whatever reaches it, and gives out a few files."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Loopback:
    """`with Loopback({"/a.mp4": data}) as server`: its `address`, and the requests that it `got`."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self.got: list[str] = []
        served, got = dict(files or {}), self.got

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                got.append(f"{self.command} {self.path} {self.headers.get('Authorization', '')}".strip())
                data = served.get(self.path.split("?")[0])
                self.send_response(404 if data is None else 200)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data or b"")

            do_GET = do_HEAD = do_POST = _answer

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Loopback:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
