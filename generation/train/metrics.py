"""The metrics of a training, gathered between two reports: losses, rates and the time left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

TIME_BINS = 8


@dataclass(frozen=True)
class Metrics:
    """The metrics of a step, to be shown as progress. Rates are means since the last report."""

    step: int
    steps: int
    loss: float
    grad_norm: float
    learning_rate: float
    samples_per_s: float
    data_wait: float  # fraction of the time, waiting for data
    tflops_per_s: float  # of one process
    mfu: float | None  # fraction of the device's peak; None: the peak is unknown
    seconds_left: float
    parts: dict[str, float]  # named parts of the last step's loss, if it has parts


@dataclass
class Window:
    """Sums over the steps of this process since the last report."""

    began: float = field(default_factory=time.perf_counter)
    steps: int = 0
    samples: int = 0
    wait_s: float = 0.0
    flops: float = 0.0
    bin_sum: list[float] = field(default_factory=lambda: [0.0] * TIME_BINS)
    bin_count: list[int] = field(default_factory=lambda: [0] * TIME_BINS)

    def add(self, at: Sequence[float], losses: Sequence[float], flops: float) -> None:
        """Add a micro-batch. at: times in [0, 1) or empty; losses: of each sample; flops: of its passes."""
        self.samples += len(losses)
        self.flops += flops
        for t, loss in zip(at, losses if at else (), strict=True):
            k = min(TIME_BINS - 1, int(t * TIME_BINS))
            self.bin_sum[k] += loss
            self.bin_count[k] += 1

    def report(
        self,
        step: int,
        last: int,
        loss: float,
        norm: float,
        rate: float,
        world: int,
        peak: float | None,
        parts: dict[str, float],
    ) -> Metrics:
        """The metrics of `world` processes like this process. peak: of its device, in FLOP/s."""
        seconds = max(1e-9, time.perf_counter() - self.began)
        return Metrics(
            step=step,
            steps=last,
            loss=loss,
            grad_norm=norm,
            learning_rate=rate,
            samples_per_s=self.samples * world / seconds,
            data_wait=self.wait_s / seconds,
            tflops_per_s=self.flops / seconds / 1e12,
            mfu=self.flops / seconds / peak if peak else None,
            seconds_left=(last - step) * seconds / max(1, self.steps),
            parts=parts,
        )

    def write(self, board: Any, metrics: Metrics) -> None:
        """Write the metrics, and the loss by time, to TensorBoard."""
        names = ("loss", "grad_norm", "learning_rate", "samples_per_s", "data_wait", "tflops_per_s", "mfu")
        for name in names:
            value = getattr(metrics, name)
            if value is not None:
                board.add_scalar(f"train/{name}", value, metrics.step)
        for name, value in metrics.parts.items():
            board.add_scalar(f"parts/{name}", value, metrics.step)
        for k, count in enumerate(self.bin_count):
            if count:
                mean = self.bin_sum[k] / count
                board.add_scalar(f"loss_by_time/{k / TIME_BINS:.3f}", mean, metrics.step)
