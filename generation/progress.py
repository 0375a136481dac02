"""What a command or a call says while it works: on standard error, a live line where that is a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console

err = Console(stderr=True, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """Print a remark."""
    err.print(text, markup=False)


@contextlib.contextmanager
def evaluations() -> Iterator[Callable[[str, int, int], None]]:
    """Yields a function (name, done, steps) that prints the progress of evaluations."""
    status = err.status("") if err.is_terminal else None

    def show(what: str, done: int, steps: int) -> None:
        line = f"{what}: {done}/{steps} evaluations"
        if status:
            status.update(line)
        elif done == steps:
            err.print(line, markup=False)

    with status or contextlib.nullcontext():
        yield show
