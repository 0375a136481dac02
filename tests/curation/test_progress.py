"""Progress is a bar on a terminal, and plain lines in log files, in Ray jobs and in CI."""

from __future__ import annotations

import io
import re
import sys
import warnings
from contextlib import closing
from typing import Any

import pytest
from rich.console import Console

from curation import progress
from curation.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    # The bar is drawn when a test asks for it: its thread would draw at moments of its own.
    monkeypatch.setattr("rich.live._RefreshThread.run", lambda _: None)
    return clock


def console_on(file: io.StringIO, clock: Clock, width: int = 120) -> Console:
    plain = {"highlight": False, "soft_wrap": True, "_environ": {}}
    return Console(file=file, force_terminal=True, width=width, get_time=clock, **plain)


def screen(written: str) -> list[str]:
    """The lines that a terminal shows after it was sent this text."""
    lines, row, column = [""], 0, 0
    for code, text in re.findall(r"(\x1b\[[?\d;]*[A-Za-z]|\r|\n)|([^\x1b\r\n]+)", written):
        if text:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
        elif code == "\r":
            column = 0
        elif code == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif code.endswith("A"):
            row -= int(code[2:-1])
        elif code == "\x1b[2K":
            lines[row] = ""
    return [line.rstrip() for line in lines if line.strip()]


def drawn_now(shown: Progress) -> None:
    """A terminal's bar is drawn again some times in a second."""
    assert shown._bars is not None
    shown._bars.refresh()


def source(number: int, failed: bool = False) -> Any:
    return {
        "uri": f"{number}.mp4",
        "status": "failed" if failed else "measured",
        "duration_s": 60.0,
        "stage": "decode",
        "error": "Crash",
        "message": "the decoder ended",
    }


def measured(shown: Progress, clock: Clock, sources: int) -> None:
    for number in range(sources):
        clock.now += 6.0
        shown.clip()
        shown.source(source(number, failed=number == 1))


# --- on a terminal --------------------------------------------------------------------------------


def test_a_terminal_shows_a_bar_with_counts_rate_and_time_left(clock: Clock) -> None:
    file = Terminal()
    with closing(Progress(console_on(file, clock))) as shown:
        shown.start_measure(10, done=3)
        measured(shown, clock, 4)
        shown.say("a line above")
        drawn_now(shown)
        *above, bar = screen(file.getvalue())
        assert above == [
            "measure: 10 sources (3 done before)",
            "failed: 1.mp4: decode: Crash: the decoder ended",
            "a line above",
        ]
        drawn, rest = bar.split(" ", 1)
        assert len(drawn) == 20
        assert drawn.count("━") + drawn.count("╸") + drawn.count("╺") == 20
        # 4 of 10 sources, one in 6 s: 36 s are left. 4 min of video in 24 s.
        assert rest == (
            "0:00:36 left measure: 4/10 sources, 1 failed, 4 clips, 4.0 min of video, 10.0x real time"
        )


def test_the_bar_goes_when_a_phase_ends_and_its_last_line_stays(clock: Clock) -> None:
    file = Terminal()
    with closing(Progress(console_on(file, clock))) as shown:
        shown.start_cut(6)
        for _ in range(2):
            clock.now += 5
            shown.shard(rows=2, failed=1, size=3_000_000, seconds=20.0)
        shown.end("took 10 s")
        shown.start_caption("caption", "endpoint", 2)
        shown.captioned(None)
        drawn_now(shown)
        assert [" left " in line for line in screen(file.getvalue())] == [False] * 4 + [True]  # one bar
        shown.captioned("Timeout: no answer")
        shown.end("")
    assert screen(file.getvalue()) == [
        "cut: 6 accepted clips",
        "cut: 4/6 clips, 2 failed, 6.0 MB, 4.0x real time",
        "cut: took 10 s",
        "caption: 2 clips, by endpoint",
        "failed: caption: Timeout: no answer",
        "caption: 2/2 clips, 1 failed, 2000.0 clips/s",
    ]
    assert file.getvalue().count("\x1b[?25l") == file.getvalue().count("\x1b[?25h")  # the cursor is back


def test_what_stops_in_the_middle_leaves_no_bar(clock: Clock) -> None:
    file = Terminal()
    with closing(Progress(console_on(file, clock))) as shown:
        shown.start_measure(10, done=0)
        measured(shown, clock, 1)
    assert screen(file.getvalue()) == ["measure: 10 sources"]
    assert file.getvalue().count("\x1b[?25l") == file.getvalue().count("\x1b[?25h")


def test_warnings_stand_above_the_bar_and_are_not_torn(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the commands, which share the console, and those of libraries on standard error."""
    file = Terminal()
    monkeypatch.setattr(progress, "err", console_on(file, clock))
    monkeypatch.setattr(sys, "stderr", file)
    with closing(Progress(progress.err)) as shown:
        shown.start_measure(10, done=0)
        measured(shown, clock, 1)
        progress.complain("the dataset is free in 50 s")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_: print(f"Warning: {message}", file=sys.stderr)
            warnings.warn("a library warns", stacklevel=1)
        print("a decoder complains", file=sys.stderr)
        drawn_now(shown)
        assert screen(file.getvalue())[:4] == [
            "measure: 10 sources",
            "reelmill: the dataset is free in 50 s",
            "Warning: a library warns",
            "a decoder complains",
        ]
        assert "measure: 1/10 sources" in screen(file.getvalue())[4]
    assert len(screen(file.getvalue())) == 4


def test_a_narrow_terminal_shows_the_bar_on_one_line(clock: Clock) -> None:
    file = Terminal()
    with closing(Progress(console_on(file, clock, width=60))) as shown:
        shown.start_measure(10, done=0)
        measured(shown, clock, 4)
        drawn_now(shown)
        bar = screen(file.getvalue())[-1]
    assert re.search(r"0:00:36 left measure: 4/10 so.*…$", bar)
    assert len(bar) <= 60


def test_a_command_without_a_heading_leaves_nothing(clock: Clock) -> None:
    file = Terminal()
    with closing(Progress(console_on(file, clock))) as shown:
        for done in range(4):
            shown.counted("export", "shards", done, 8)
            clock.now += 2
        drawn_now(shown)
        assert screen(file.getvalue())[-1].endswith(" 0:00:10 left export: 3/8 shards, 0.5 shards/s")
    assert screen(file.getvalue()) == []


def test_results_on_standard_output_stay_results(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output is a pipe or a file here, and standard error a terminal."""
    with closing(Progress(console_on(Terminal(), clock))) as shown:
        shown.start_measure(2, done=0)
        measured(shown, clock, 1)
        print("OK")
        measured(shown, clock, 1)
    assert capsys.readouterr().out == "OK\n"


def test_lines_on_standard_output_of_the_same_terminal_stand_above_the_bar(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Terminal()
    monkeypatch.setattr(sys, "stdout", file)
    with closing(Progress(console_on(file, clock))) as shown:
        shown.start_measure(10, done=0)
        measured(shown, clock, 1)
        print("a library says something")
        drawn_now(shown)
        *above, bar = screen(file.getvalue())
    assert above == ["measure: 10 sources", "a library says something"]
    assert "measure: 1/10 sources" in bar


# --- elsewhere ------------------------------------------------------------------------------------


@pytest.mark.parametrize("colours", [False, True], ids=["a log file", "a log file with FORCE_COLOR"])
def test_elsewhere_plain_lines_come_every_ten_seconds(clock: Clock, colours: bool) -> None:
    file = io.StringIO()
    console = console_on(file, clock) if colours else Console(file=file, highlight=False, soft_wrap=True)
    with closing(Progress(console)) as shown:
        shown.start_measure(4, done=0)
        measured(shown, clock, 4)
        shown.end("took 24 s")
        shown.start_caption("caption", "endpoint", 3)
        for wait in (5, 6, 1):
            clock.now += wait
            shown.captioned(None)
        shown.end("took 12 s")
    assert file.getvalue().splitlines() == [
        "measure: 4 sources",
        "measure: 1/4 sources, 2 clips, 1.0 min of video, 5.0x real time",
        "failed: 1.mp4: decode: Crash: the decoder ended",
        "measure: 3/4 sources, 1 failed, 4 clips, 3.0 min of video, 7.5x real time",
        "measure: 4/4 sources, 1 failed, 4 clips, 4.0 min of video, 10.0x real time",
        "measure: took 24 s",
        "caption: 3 clips, by endpoint",
        "caption: 2/3 clips, 0.2 clips/s, 6 s left",
        "caption: 3/3 clips, 0.2 clips/s",
        "caption: took 12 s",
    ]


def test_a_dumb_terminal_gets_plain_lines(clock: Clock) -> None:
    file = Terminal()
    with closing(Progress(Console(file=file, force_terminal=True, _environ={"TERM": "dumb"}))) as shown:
        shown.start_measure(1, done=0)
        measured(shown, clock, 1)
    assert "━" not in file.getvalue()


def test_elsewhere_a_command_without_a_heading_prints_only_when_it_takes_long(clock: Clock) -> None:
    file = io.StringIO()
    with closing(Progress(Console(file=file, soft_wrap=True))) as shown:
        for done in range(4):
            shown.counted("export", "shards", done, 4)
            clock.now += 4
    assert file.getvalue().splitlines() == ["export: 3/4 shards, 0.2 shards/s, 4 s left"]
