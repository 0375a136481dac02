"""The progress of a training on standard error: steps, loss, rates and remaining time."""

from __future__ import annotations

import time

from rich.console import Console

from generation.train.metrics import Metrics

_PLAIN_SECONDS = 10.0


class TrainProgress:
    """Prints steps, loss, rates and remaining time: one live line on a terminal, otherwise plain lines."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._status = self._console.status("") if self._console.is_terminal else None
        self._shown = 0.0
        if self._status:
            self._status.start()

    def step(self, m: Metrics) -> None:
        mfu = f", MFU {m.mfu:.0%}" if m.mfu is not None else f", {m.tflops_per_s:.3g} TFLOP/s"
        left = time.strftime("%H:%M:%S", time.gmtime(m.seconds_left % 86400))
        days = f"{int(m.seconds_left // 86400)} d " if m.seconds_left >= 86400 else ""
        parts = "".join(f", {name} {value:.4g}" for name, value in m.parts.items())
        line = (
            f"step {m.step}/{m.steps}: loss {m.loss:.4f}{parts}, {m.samples_per_s:.2f} samples/s, "
            f"data wait {m.data_wait:.0%}{mfu}, {days}{left} left"
        )
        if self._status:
            self._status.update(line)
        if m.step == m.steps or (not self._status and time.monotonic() - self._shown >= _PLAIN_SECONDS):
            self._shown = time.monotonic()
            self._console.print(line, markup=False)

    def say(self, text: str) -> None:
        self._console.print(_printable(text), markup=False)

    def close(self) -> None:
        if self._status:
            self._status.stop()


def _printable(text: str) -> str:
    """`text` with escapes for characters that could move the cursor of a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
