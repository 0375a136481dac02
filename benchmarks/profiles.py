"""Profiles as text: the functions that take most of the time."""

from __future__ import annotations

import cProfile
import io
import pstats
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_LINES = 15


def profiled(work: Callable[[], T], title: str, file: Path | None) -> T:
    """Run `work` and return its result. A profile, sorted by own time, is appended to `file` if given."""
    if file is None:
        return work()
    profile = cProfile.Profile()
    result = profile.runcall(work)
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(_LINES)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    shown = [line for line in lines if line and not line.startswith(("   Ordered by", "   List reduced"))]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.write(f"{title}\n\n" + "\n".join(shown) + "\n\n")
    return result
