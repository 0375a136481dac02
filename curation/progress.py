"""Shows the progress of long work: a bar with the time left on a terminal, and plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from curation.sandbox.words import printable
from curation.store.rows import SourceRow

err = Console(stderr=True, highlight=False, soft_wrap=True)

_PLAIN_SECONDS = 10.0
_FAILURES_SHOWN = 5  # failed clips of one phase that are printed
_BAR_WIDTH = 20
_SPEED_SECONDS = 3600.0  # the time left follows the speed of this time: one source may take minutes


class Stopped(Exception):
    """The build stopped at a limit that the user set, and can be resumed. The message says how."""


def complain(text: str) -> None:
    """Print a message for the user on standard error."""
    err.print("reelmill: " + "\n".join(map(printable, text.split("\n"))), markup=False)


class Progress:
    """Prints counts and rates of the current phase to standard error.

    The bar is drawn below all other lines of the console. What others print on standard error or on this
    console during a phase comes above the bar.
    """

    def __init__(self, console: Console | None = None):
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        # An environment may ask for colours in a log file (FORCE_COLOR). Bars would fill the file.
        live = self._console.is_interactive and self._console.file.isatty()
        self._bars = _bars(self._console) if live else None
        self._bar: TaskID | None = None
        self._phase = ""
        self._unit = ""
        self._told = 0  # failed clips of the current phase that were reported
        self._began = 0.0
        self._shown = 0.0

    def start_measure(self, todo: int, done: int) -> None:
        self._start("measure", todo, "sources", f"measure: {todo} sources{_before(done)}")

    def start_cut(self, clips: int) -> None:
        self._start("cut", clips, "clips", f"cut: {clips} accepted clips")

    def start_caption(self, step: str, captioner: str, clips: int) -> None:
        self._start(step, clips, "clips", f"{step}: {clips} clips, by {captioner}")

    def start_render(self, todo: int, done: int) -> None:
        self._start("render", todo, "files", f"render: {todo} files{_before(done)}")

    def rendered(self, seconds: float) -> None:
        """Count one more rendered file, with its length in seconds of video."""
        self._done += 1
        self._seconds += seconds
        self._show(last=self._done == self._total)

    def captioned(self, failed: str | None) -> None:
        """Count one more clip. `failed` is the reason if the clip has no caption, else None."""
        self._done += 1
        if failed is not None:
            self._failed += 1
            self.failed(failed)
        self._show(last=self._done == self._total)

    def failed(self, text: str) -> None:
        """Report one failed clip. Only the first failures of a phase are printed."""
        self._told += 1
        if self._told <= _FAILURES_SHOWN:
            more = "; further failures are only counted" if self._told == _FAILURES_SHOWN else ""
            self.say(f"failed: {self._phase}: {text}{more}")

    def clip(self) -> None:
        self._clips += 1
        self._show()

    def source(self, row: SourceRow) -> None:
        self._done += 1
        self._seconds += row["duration_s"] or 0.0
        if row["status"] == "failed":
            self._failed += 1
            self.say(f"failed: {row['uri']}: {row['stage']}: {row['error']}: {row['message']}")
        self._show(last=self._done == self._total)

    def shard(self, rows: int, failed: int, size: int, seconds: float) -> None:
        self._done += rows + failed
        self._failed += failed
        self._bytes += size
        self._seconds += seconds
        self._show(last=self._done == self._total)

    def counted(self, phase: str, unit: str, done: int, total: int) -> None:
        """Show that a phase without a heading has done so many of `total` units. Its bar leaves no line, and
        work of some seconds prints no plain line."""
        if phase != self._phase:
            self._start(phase, total, unit)
        self._done = done
        self._show()

    def say(self, text: str) -> None:
        self._console.print(printable(text), markup=False)

    def end(self, text: str) -> None:
        """End the current phase and print its closing line, such as the time that it took."""
        self.close()
        if text:
            self.say(f"{self._phase}: {text}")

    def close(self) -> None:
        """Remove the bar, if there is one."""
        if self._bars is not None and self._bar is not None:
            self._bars.stop()
            self._bars.remove_task(self._bar)
            self._bar = None

    def _start(self, phase: str, total: int, unit: str, heading: str = "") -> None:
        self.close()
        self._phase, self._total, self._unit = phase, total, unit
        self._done = self._failed = self._clips = self._bytes = self._told = 0
        self._seconds = 0.0
        self._began = self._shown = time.monotonic()
        if heading:
            self.say(heading)
        if self._bars is not None:
            self._bar = self._bars.add_task(self._line(), total=total)
            self._bars.start()

    def _line(self) -> str:
        elapsed = max(time.monotonic() - self._began, 1e-3)
        failed = f", {self._failed} failed" if self._failed else ""
        done = self._done - self._failed if self._phase == "cut" else self._done
        line = f"{self._phase}: {done}/{self._total} {self._unit}{failed}"
        video = f"{self._seconds / 60:.1f} min of video"
        rate = f"{self._seconds / elapsed:.1f}x real time"
        if self._phase == "measure":
            line += f", {self._clips} clips"
            # Scoring again does not read the lengths.
            return f"{line}, {video}, {rate}" if self._seconds else line
        if self._phase == "render":
            return f"{line}, {video}, {rate}"
        if self._phase == "cut":
            return f"{line}, {self._bytes / 1e6:.1f} MB, {rate}"
        return f"{line}, {self._done / elapsed:.1f} {self._unit}/s"

    def _plain_line(self) -> str:
        """`_line` with the time left, if the line has a rate that tells it."""
        line = self._line()
        if not line.endswith("/s") or not 0 < self._done < self._total:
            return line
        seconds_each = (time.monotonic() - self._began) / self._done
        return f"{line}, {_span(seconds_each * (self._total - self._done))} left"

    def _show(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if self._bars is not None:
            if self._bar is not None:
                self._bars.update(self._bar, completed=self._done, description=self._line())
            if not last:
                return
            self.close()
        if last or now - self._shown >= _PLAIN_SECONDS:
            self._shown = now
            self._console.print(self._plain_line(), markup=False)


class _Words(ProgressColumn):
    """The line of counts. A narrow terminal shows its beginning."""

    def render(self, task: Task) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


def _bars(console: Console) -> Bars:
    fixed = Column(no_wrap=True)
    return Bars(
        BarColumn(_BAR_WIDTH, table_column=fixed),
        TimeRemainingColumn(table_column=fixed),
        TextColumn("left", style="progress.remaining"),
        _Words(),
        console=console,
        refresh_per_second=4,
        speed_estimate_period=_SPEED_SECONDS,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # a file or a pipe gets results alone
    )


def _before(done: int) -> str:
    return f" ({done} done before)" if done else ""


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
