"""Fetching ahead: a thread runs an iterator while the caller uses earlier items."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from queue import Empty, Full, Queue
from typing import TypeVar

T = TypeVar("T")


def ahead(source: Iterator[T], count: int, drop: Callable[[T], None]) -> Generator[T, None, None]:
    """The items of `source`, in order. A thread fetches up to `count` items ahead.

    Errors of `source` are raised here. Closing this generator ends the thread, and calls `drop` for every
    fetched item that was not used.
    """
    queue: Queue[tuple[T] | Exception | None] = Queue(count)
    stop = threading.Event()

    def put(item: tuple[T] | Exception | None) -> bool:
        while not stop.is_set():
            try:
                queue.put(item, timeout=0.1)
                return True
            except Full:
                continue
        return False

    def run() -> None:
        try:
            for item in source:
                if not put((item,)):
                    drop(item)
                    return
            put(None)
        except Exception as error:  # raised again in the caller's thread
            put(error)

    thread = threading.Thread(target=run, name="ahead", daemon=True)
    thread.start()
    try:
        while (found := queue.get()) is not None:
            if isinstance(found, Exception):
                raise found
            yield found[0]
    finally:
        stop.set()
        thread.join()
        while True:
            try:
                left = queue.get_nowait()
            except Empty:
                break
            if isinstance(left, tuple):
                drop(left[0])
