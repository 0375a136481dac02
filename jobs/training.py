"""Trains a stage in N workers of Ray Train."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from curation.progress import Stopped
from generation.config import Config
from generation.train.metrics import Metrics
from generation.train.parallel import join
from generation.train.progress import TrainProgress
from generation.train.session import Task, asked_to_stop, train_as
from generation.train.trainer import NotFinite
from jobs.common import is_for_the_user

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

    task = Task(config, dataset, run, stop_at, new_data)
    actor: Any = ray.remote(_Foreman)
    foreman = actor.options(num_cpus=0, max_concurrency=4).remote(task, workers, gpus, os.getcwd())
    progress = TrainProgress()
    try:
        with asked_to_stop() as asked:
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


def _storage(task: Task) -> Path:
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

    def __init__(self, task: Task, workers: int, gpus: bool, folder: str) -> None:
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
        complete = train_as(given["task"], world, tell, tell, asked)
        if world.first:
            ray.get(foreman.end.remote(complete))
    except (ValueError, NotFinite) as error:
        if is_for_the_user(error):
            ray.get(foreman.fail.remote(type(error).__name__, str(error)))
        raise
