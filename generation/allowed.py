"""Which code a configuration may run: only what the user named.

A run's config.json may be somebody else's. The code that it names by import path is imported only if the
user allowed that path: in a configuration file of his own, in the environment variable REELMILL_CODE, or
because he trained that run on this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from generation.disk import write_text

VARIABLE = "REELMILL_CODE"  # import paths, with commas between them


def allow(path: str) -> None:
    """Let this process, and those that it starts, import the code at this path, if it is an import path."""
    if ":" not in path:
        return
    os.environ[VARIABLE] = ",".join(sorted({*_allowed(), path}))


def is_allowed(path: str) -> bool:
    return path in _allowed()


def _allowed() -> set[str]:
    return {path.strip() for path in os.environ.get(VARIABLE, "").split(",") if path.strip()}


def remember(run: Path, path: str) -> None:
    """Note in the user's own folder that this user trains `run` with the codec at this import path."""
    notes = _notes()
    if is_allowed(path) and notes.get(str(run.absolute())) != path:
        notes[str(run.absolute())] = path
        # If the note cannot be written, sampling asks for the variable.
        with contextlib.suppress(OSError):
            _file().parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_text(_file(), json.dumps(notes, indent=1))


def recall(run: Path, path: str) -> None:
    """Allow the codec of a run that this user trained on this machine."""
    if _notes().get(str(run.absolute())) == path:
        allow(path)


def _notes() -> dict[str, Any]:
    try:
        notes = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _file() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(base) / "reelmill" / "codecs-of-runs.json"
