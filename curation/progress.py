"""Shows the progress of long work: a live line on a terminal, and plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console

from curation.sandbox.words import printable
from curation.store.rows import SourceRow

err = Console(stderr=True, highlight=False, soft_wrap=True)

_PLAIN_SECONDS = 10.0
_FAILURES_SHOWN = 5  # failed clips of one phase that are printed


class Stopped(Exception):
    """The build stopped at a limit that the user set, and can be resumed. The message says how."""


def complain(text: str) -> None:
    """Print a message for the user on standard error."""
    err.print("reelmill: " + "\n".join(map(printable, text.split("\n"))), markup=False)


class Progress:
    """Prints counts and rates of the current phase to standard error."""

    def __init__(self, console: Console | None = None):
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = self._console.is_terminal and sys.stderr.isatty()
        self._status = self._console.status("") if self._live else None
        self._phase = ""
        self._told = 0  # failed clips of the current phase that were reported
        self._began = 0.0
        self._shown = 0.0

    def start_measure(self, todo: int, done: int) -> None:
        self._total, self._sources, self._clips, self._seconds, self._failed = todo, 0, 0, 0.0, 0
        before = f" ({done} done before)" if done else ""
        self._start("measure", f"measure: {todo} sources{before}")

    def start_cut(self, clips: int) -> None:
        self._total, self._cut, self._bytes, self._seconds, self._failed = clips, 0, 0, 0.0, 0
        self._start("cut", f"cut: {clips} accepted clips")

    def start_caption(self, step: str, captioner: str, clips: int) -> None:
        self._total, self._captioned, self._failed = clips, 0, 0
        self._start(step, f"{step}: {clips} clips, by {captioner}")

    def start_render(self, todo: int, done: int) -> None:
        self._total, self._sources, self._seconds, self._failed = todo, 0, 0.0, 0
        before = f" ({done} done before)" if done else ""
        self._start("render", f"render: {todo} files{before}")

    def rendered(self, seconds: float) -> None:
        """Count one more rendered file, with its length in seconds of video."""
        self._sources += 1
        self._seconds += seconds
        self._show(last=self._sources == self._total)

    def captioned(self, failed: str | None) -> None:
        """Count one more clip. `failed` is the reason if the clip has no caption, else None."""
        self._captioned += 1
        if failed is not None:
            self._failed += 1
            self.failed(failed)
        self._show(last=self._captioned == self._total)

    def failed(self, text: str) -> None:
        """Report one failed clip. Only the first failures of a phase are printed."""
        self._told += 1
        if self._told <= _FAILURES_SHOWN:
            more = "; further failures are only counted" if self._told == _FAILURES_SHOWN else ""
            self._console.print(printable(f"failed: {self._phase}: {text}{more}"), markup=False)

    def clip(self) -> None:
        self._clips += 1
        self._show()

    def source(self, row: SourceRow) -> None:
        self._sources += 1
        self._seconds += row["duration_s"] or 0.0
        if row["status"] == "failed":
            self._failed += 1
            what = f"{row['stage']}: {row['error']}: {row['message']}"
            self._console.print(printable(f"failed: {row['uri']}: {what}"), markup=False)
        self._show(last=self._sources == self._total)

    def shard(self, rows: int, failed: int, size: int, seconds: float) -> None:
        self._cut += rows
        self._failed += failed
        self._bytes += size
        self._seconds += seconds
        self._show(last=self._cut + self._failed == self._total)

    def say(self, text: str) -> None:
        self._stop()
        self._console.print(printable(text), markup=False)

    def end(self, text: str) -> None:
        """Print the closing line of the current phase, such as the time that it took."""
        if text:
            self.say(f"{self._phase}: {text}")

    def close(self) -> None:
        self._stop()

    def _start(self, phase: str, text: str) -> None:
        self._stop()
        self._phase = phase
        self._told = 0
        self._began = self._shown = time.monotonic()
        self._console.print(text, markup=False)
        if self._status is not None:
            self._status.start()

    def _stop(self) -> None:
        if self._status is not None:
            self._status.stop()

    def _line(self) -> str:
        elapsed = max(time.monotonic() - self._began, 1e-3)
        failed = f", {self._failed} failed" if self._failed else ""
        if self._phase in ("caption", "rewrite"):
            speed = self._captioned / elapsed
            left = _span((self._total - self._captioned) / speed) if speed else "?"
            done = f"{self._captioned}/{self._total} clips{failed}, {speed:.1f} clips/s"
            return f"{self._phase}: {done}" + (f", {left} left" if self._captioned < self._total else "")
        rate = f"{self._seconds / elapsed:.1f}x real time"
        if self._phase == "render":
            return (
                f"render: {self._sources}/{self._total} files, {self._seconds / 60:.1f} min of video, {rate}"
            )
        if self._phase == "measure":
            done = f"{self._sources}/{self._total} sources{failed}, {self._clips} clips"
            if not self._seconds:  # scoring again does not read the lengths
                return f"measure: {done}"
            return f"measure: {done}, {self._seconds / 60:.1f} min of video, {rate}"
        done = f"{self._cut}/{self._total} clips{failed}, {self._bytes / 1e6:.1f} MB"
        return f"cut: {done}, {rate}"

    def _show(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if self._status is not None:
            self._status.update(self._line())
            if last:
                self._console.print(self._line(), markup=False)
        elif last or now - self._shown >= _PLAIN_SECONDS:
            self._shown = now
            self._console.print(self._line(), markup=False)


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
