"""Trains a stage in this process, or in N workers of Ray Train."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from curation.progress import Stopped
from curation.sandbox.words import printable
from generation.config import Config
from generation.train import parallel, start
from generation.train.metrics import Metrics
from generation.train.open import open_stage
from generation.train.parallel import World, join
from generation.train.stage import Stage
from generation.train.trainer import NotFinite, Trainer
from jobs.common import is_for_the_user, one_writer

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
        self._console.print(printable(text), markup=False)

    def close(self) -> None:
        if self._status:
            self._status.stop()


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
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

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _only_one(folder: Path, world: World) -> Iterator[Callable[[], None]]:
    """One lease for all processes of a training. The first process holds it, and asks whether it still does
    with what this yields."""
    with contextlib.ExitStack() as stack:

        def take() -> Callable[[], None]:
            return stack.enter_context(one_writer(folder, "train")).check

        yield parallel.together(take if world.first else lambda: lambda: None, world)


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
    """Train in this process (one of several under torchrun), up to the step `stop_at` or the last step.

    Raises `ValueError` for errors that the user can fix. Raises `KeyboardInterrupt` after a signal, when the
    checkpoint of the step is written.
    """
    world = join(device)
    progress = TrainProgress()
    task = _Task(config, dataset, run, stop_at, new_data, check_memory)
    try:
        with _only_one(run / config.stage, world) as check, _asked_to_stop() as asked:

            def is_to_stop() -> bool:
                check()
                return asked()

            say = progress.say if world.first else lambda text: None
            complete = _train(task, world, progress.step if world.first else None, say, is_to_stop)
            if not complete and asked():
                raise KeyboardInterrupt
    finally:
        progress.close()


@dataclass(frozen=True)
class _Task:
    config: Config
    dataset: str
    run: Path
    stop_at: int | None
    new_data: bool
    check_memory: bool = True

    @property
    def last(self) -> int:
        return min(self.stop_at or self.config.steps, self.config.steps)


def _train(
    task: _Task,
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


def _open(task: _Task, world: World, say: Callable[[str], None]) -> Trainer:
    config, folder = task.config, task.run / task.config.stage

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


# ---- on Ray

_RETRIES = 3
_SECONDS = 0.3  # the driver asks the foreman at this interval


def train_on_ray(
    config: Config,
    dataset: str,
    run: Path,
    workers: int,
    *,
    stop_at: int | None,
    new_data: bool,
    gpus: bool,
    check: Callable[[], None],
) -> None:
    """Train with N workers of Ray Train, sharded (FSDP2).

    If a worker dies, all workers resume from the newest checkpoint, up to three times. All workers must see
    `dataset` and `run`: on a cluster, in a shared folder. The caller holds the lease: `check` raises when
    this command may not continue. Raises the errors of `train`, but `Stopped` instead of `NotFinite`, and
    `RuntimeError` if workers die too often.
    """
    import ray

    task = _Task(config, dataset, run, stop_at, new_data)
    actor: Any = ray.remote(_Foreman)
    foreman = actor.options(num_cpus=0, max_concurrency=4).remote(task, workers, gpus, os.getcwd())
    progress = TrainProgress()
    try:
        with _asked_to_stop() as asked:
            for _ in range(_RETRIES + 1):
                attempt = foreman.fit.remote(foreman)
                heard = _Heard()
                # The loop does not wait until Ray has ended the attempt, which takes many more seconds.
                while heard.complete is None and heard.wrong is None:
                    over, _ = ray.wait([attempt], timeout=_SECONDS)
                    check()
                    heard = ray.get(foreman.listen.remote(asked()))
                    _show(heard.told, progress)
                    if over:
                        break
                if heard.wrong:
                    kind, text = heard.wrong
                    raise Stopped(text) if kind == NotFinite.__name__ else ValueError(text)
                if heard.complete:
                    return
                if heard.complete is False or asked():
                    raise KeyboardInterrupt
                reason = ray.get(attempt)
                progress.say(f"a worker was lost ({reason}); resuming from the newest checkpoint")
            raise RuntimeError(f"workers were lost {_RETRIES + 1} times; the last reason: {reason}")
    finally:
        progress.close()
        shutil.rmtree(_storage(task), ignore_errors=True)


def _show(told: list[Metrics | str], progress: TrainProgress) -> None:
    for what in told:
        if isinstance(what, Metrics):
            progress.step(what)
        else:
            progress.say(what)


def _storage(task: _Task) -> Path:
    """A folder for Ray Train, which all nodes must see."""
    return task.run / task.config.stage / "_ray"


@dataclass
class _Heard:
    """Messages of the workers since the last call."""

    told: list[Metrics | str] = field(default_factory=list)
    complete: bool | None = None  # whether the workers reached the last step; None: they still work
    wrong: tuple[str, str] | None = None  # type and text of an error that the user can fix and a retry cannot


class _Foreman:
    """An actor between the workers and the driver. The driver has the terminal and gets the signals.

    The actor also runs Ray Train. In the driver Ray would react to a Ctrl-C and lose the last steps.
    """

    def __init__(self, task: _Task, workers: int, gpus: bool, folder: str) -> None:
        self._task, self._workers, self._gpus, self._folder = task, workers, gpus, folder
        self._lock = threading.Lock()  # each call runs in its own thread
        self._heard = _Heard()
        self._stop = False

    def fit(self, me: Any) -> str:
        """Run one attempt. Returns the reason of a failure, or an empty text."""
        import ray
        import ray.train
        from ray.train.torch import TorchConfig, TorchTrainer

        cpus = ray.cluster_resources().get("CPU", 1.0)
        share = min(
            1.0, int(1000 * cpus / self._workers) / 1000
        )  # more workers than CPUs can be started, too
        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "task": self._task,
                "device": "cuda" if self._gpus else "cpu",
                "folder": self._folder,
                "foreman": me,
            },
            torch_config=TorchConfig(backend="nccl" if self._gpus else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=self._workers,
                use_gpu=self._gpus,
                resources_per_worker={"CPU": share, **({"GPU": 1.0} if self._gpus else {})},
            ),
            # `train_on_ray` makes further attempts. Ray would also repeat attempts with wrong input.
            run_config=ray.train.RunConfig(
                name=f"{self._task.config.stage}-{uuid.uuid4().hex[:8]}",
                storage_path=str(_storage(self._task)),
                failure_config=ray.train.FailureConfig(max_failures=0),
            ),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return lines[-1] if lines else type(error).__name__
        return ""

    def listen(self, stop: bool) -> _Heard:
        """Called by the driver, which passes on whether the workers have to stop. Returns the messages."""
        with self._lock:
            self._stop = stop
            heard = self._heard
            self._heard = _Heard(complete=heard.complete, wrong=heard.wrong)
            return heard

    def is_asked(self) -> bool:
        return self._stop

    def tell(self, what: Metrics | str) -> None:
        with self._lock:
            self._heard.told.append(what)

    def end(self, complete: bool) -> None:
        with self._lock:
            self._heard.complete = complete

    def fail(self, kind: str, text: str) -> None:
        with self._lock:
            self._heard.wrong = self._heard.wrong or (kind, text)


def _worker(given: dict[str, Any]) -> None:
    """The function that runs in a thread of each worker."""
    import ray

    if given["device"] == "cpu":
        torch.set_num_threads(1)
    with contextlib.suppress(OSError):
        os.chdir(given["folder"])  # models may be named by relative paths
    foreman = given["foreman"]
    world = join(given["device"])

    def tell(what: Metrics | str) -> None:
        if world.first:
            foreman.tell.remote(what)

    def asked() -> bool:
        return world.first and bool(ray.get(foreman.is_asked.remote()))

    try:
        complete = _train(given["task"], world, tell, tell, asked)
        if world.first:
            ray.get(foreman.end.remote(complete))
    except (ValueError, NotFinite) as error:
        if is_for_the_user(error):
            ray.get(foreman.fail.remote(type(error).__name__, str(error)))
        raise
