"""Training of a stage: in this process, or in N workers of Ray Train."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from curation.child import printable
from generation.config import Config
from generation.parallel import join
from generation.steps import open_stage
from generation.trainer import Metrics, Trainer

_PLAIN_SECONDS = 10.0


class TrainProgress:
    """Steps, loss, rates and time left: a live line on a terminal, plain lines elsewhere."""

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
        line = (
            f"step {m.step}/{m.steps}: loss {m.loss:.4f}, {m.samples_per_s:.2f} samples/s, "
            f"data wait {m.data_wait:.0%}{mfu}, {days}{left} left"
        )
        if self._status:
            self._status.update(line)
        if m.step == m.steps or (not self._status and time.monotonic() - self._shown >= _PLAIN_SECONDS):
            self._shown = time.monotonic()
            self._console.print(line, markup=False)

    def say(self, text: str) -> None:
        self._console.print(printable(text), markup=False)

    def close(self) -> None:
        if self._status:
            self._status.stop()


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or SIGTERM lets the step end and be checkpointed; the second one ends at once."""
    asked = False

    def stop(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    config: Config,
    dataset: str,
    run: Path,
    *,
    stop_at: int | None = None,
    device: str | None = None,
    new_data: bool = False,
    check_memory: bool = True,
) -> None:
    """Train in this process (one of several, if it was started so), up to `stop_at` or the end.

    Raises `ValueError` for what the user can mend; `KeyboardInterrupt` when it was stopped by a signal, after
    the step's checkpoint was written.
    """
    world = join(device)
    progress = TrainProgress()
    say = progress.say if world.first else lambda text: None
    try:
        with _asked_to_stop() as asked:
            began = _open(config, dataset, run, world, say, check_memory)
            at = began.resume(new_data)
            if at:
                say(f"going on from step {at}")
            if at >= min(stop_at or config.steps, config.steps):
                say(f"{began.folder} is trained: {at} steps")
                return
            complete = began.fit(stop_at, progress.step if world.first else None, asked, say)
            if not complete and asked():
                raise KeyboardInterrupt
            say(f"weights  {began.folder / 'weights'}")
    finally:
        progress.close()


def _open(
    config: Config, dataset: str, run: Path, world: Any, say: Callable[[str], None], check_memory: bool
) -> Trainer:
    from generation import parallel
    from generation import run as runs

    folder = run / config.stage
    if world.first:
        folder = runs.begin(run, config)
    parallel.wait(world)
    stage = open_stage(config, world.device, folder)
    if check_memory:
        say(stage.check_memory(world))
    stage.place(world)
    return Trainer(config, stage, dataset, folder, world)


def train_on_ray(
    config: Config, dataset: str, run: Path, workers: int, *, stop_at: int | None, new_data: bool, gpus: bool
) -> None:
    """Train with N workers of Ray Train, sharded (FSDP2). A worker that dies is replaced, three times.

    `dataset` and `run` must be seen by all workers: on a cluster, in a folder that they share.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "dataset": dataset,
            "run": str(run),
            "stop_at": stop_at,
            "new_data": new_data,
            "device": "cuda" if gpus else "cpu",
        },
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=gpus),
        run_config=ray.train.RunConfig(
            name=config.stage,
            storage_path=str(run / "_ray"),
            failure_config=ray.train.FailureConfig(max_failures=3),
        ),
    )
    trainer.fit()


def _worker(given: dict[str, Any]) -> None:
    if given["device"] == "cpu":
        torch.set_num_threads(1)
    train(
        Config.model_validate(given["config"]),
        given["dataset"],
        Path(given["run"]),
        stop_at=given["stop_at"],
        device=given["device"],
        new_data=given["new_data"],
    )
