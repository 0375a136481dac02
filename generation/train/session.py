"""One training from its start to its end, in this process or in one of several that `torchrun` started."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generation.config import Config
from generation.lock import Lock
from generation.train import parallel, start
from generation.train.metrics import Metrics
from generation.train.open import open_stage
from generation.train.parallel import World, join
from generation.train.progress import TrainProgress
from generation.train.stage import Stage
from generation.train.trainer import Trainer


def train(task: Task, device: str | None, lock: Lock) -> None:
    """Train in this process (one of several under torchrun), up to the step `stop_at` or the last step.

    Raises `ValueError` for errors that the user can fix. Raises `KeyboardInterrupt` after a signal, when the
    checkpoint of the step is written.
    """
    world = join(device)
    progress = TrainProgress()
    try:
        with _only_one(task.folder, world, lock) as check, asked_to_stop() as asked:

            def is_to_stop() -> bool:
                check()
                return asked()

            say = progress.say if world.first else lambda text: None
            complete = train_as(task, world, progress.step if world.first else None, say, is_to_stop)
            if not complete and asked():
                raise KeyboardInterrupt
    finally:
        progress.close()


@contextlib.contextmanager
def _only_one(folder: Path, world: World, lock: Lock) -> Iterator[Callable[[], None]]:
    """One lock for all processes of a training. The first process holds it, and asks whether it still does
    with what this yields."""
    with contextlib.ExitStack() as stack:

        def take() -> Callable[[], None]:
            return stack.enter_context(lock(folder, "train"))

        yield parallel.together(take if world.first else lambda: lambda: None, world)


@dataclass(frozen=True)
class Task:
    """What is trained, on what, where and how far."""

    config: Config
    dataset: str
    run: Path
    stop_at: int | None
    new_data: bool
    check_memory: bool = True

    @property
    def folder(self) -> Path:
        return self.run / self.config.stage

    @property
    def last(self) -> int:
        return min(self.stop_at or self.config.steps, self.config.steps)


def train_as(
    task: Task,
    world: World,
    on_step: Callable[[Metrics], None] | None,
    say: Callable[[str], None],
    asked: Callable[[], bool],
) -> bool:
    """Train. Returns whether the training reached its last step."""
    trainer = _open(task, world, say)
    at = trainer.resume(task.new_data)
    parallel.together(lambda: start.tidy(task.run, task.config) if world.first else None, world)
    if at:
        say(f"resuming from step {at}")
    if at >= task.last:
        parallel.together(lambda: start.take_sampling(task.run, task.config) if world.first else None, world)
        say(f"{trainer.folder} is trained: {at} steps")
        return True
    # The run folder is made only now, so that a training that cannot start leaves no files.
    parallel.together(lambda: start.begin(task.run, task.config) if world.first else None, world)
    if task.stop_at and task.stop_at > task.last:
        say(f"the training ends at step {task.last}, where its phases end")
    trainer.fit(task.stop_at, on_step, asked, say)
    if trainer.step < task.last:
        say(f"stopped after step {trainer.step} of {task.last}; its checkpoint is kept")
    say(f"weights  {trainer.folder / 'weights'}")
    return trainer.step >= task.last


def _open(task: Task, world: World, say: Callable[[str], None]) -> Trainer:
    config, folder = task.config, task.folder

    def load() -> Stage[Any]:
        stage = open_stage(config, world.device, folder, world.size, say if task.check_memory else None)
        stage.check_data(task.dataset, world)
        for line in stage.notes():
            say(line)
        return stage

    def check() -> None:
        for line in start.check(task.run, config):
            say(f"changed since the last start: {line}")

    parallel.together(lambda: check() if world.first else None, world)
    stage = parallel.together(load, world)
    stage.set_up(world)
    return Trainer(config, stage, task.dataset, folder, world)


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether to stop.

    After the first Ctrl-C or SIGTERM the current step ends and is checkpointed. The second one raises
    `KeyboardInterrupt` immediately.
    """
    asked = False

    def stop(*_: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    is_main = threading.current_thread() is threading.main_thread()  # others get no signals
    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)} if is_main else {}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
