"""The training loop of all stages: one loop, and a step function of each stage.

All random draws of a step are keyed by (seed, phase, epoch, place in the plan), and the model keeps no other
state. So a training that is stopped and resumed several times ends with the same bits as a training that
never stopped. This holds on the CPU, where arithmetic is deterministic.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from generation import disk
from generation.config import Config
from generation.data.loader import Batch, Loader
from generation.device import peak_flops, uses_bf16
from generation.train import checkpoint, parallel
from generation.train.metrics import Metrics, Window
from generation.train.parallel import World
from generation.train.stage import Stage


class NotFinite(ArithmeticError):
    """The loss or the gradient is not finite. The message names the clips of the step."""


@dataclass
class Position:
    """The position in the data: the next micro-batch has number `index` in `epoch` of `phase`."""

    phase: int = 0
    epoch: int = 0
    index: int = 0


class Trainer:
    """Trains one stage. `fit` is the loop, and the other methods are its parts."""

    def __init__(self, config: Config, stage: Stage[Any], dataset: str, folder: Path, world: World):
        self.config, self.stage, self.dataset, self.folder, self.world = config, stage, dataset, folder, world
        self.model = stage.model
        self.trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        train = config.train
        self.optimizer = torch.optim.AdamW(
            self.trained.values(),
            lr=train.learning_rate,
            betas=train.betas,
            weight_decay=train.weight_decay,
        )
        averaged = [n for n in self.trained if train.ema_decay and stage.is_exported(n)]
        self.ema = {n: self.trained[n].detach().clone() for n in averaged}
        self.step = 0
        self.position = Position()
        self.loader: Loader | None = None
        self.bf16 = uses_bf16(train.precision, world.device)
        self._window = Window()

    # ---- the loop

    def fit(
        self,
        stop_at: int | None = None,
        on_step: Callable[[Metrics], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda text: None,
    ) -> bool:
        """Train up to the configured number of steps, or to `stop_at`. Returns whether training is complete.

        The last step always gets a checkpoint, and its weights are exported. Validation and samples of a step
        come before its checkpoint, so that a killed training makes them again. Raises `NotFinite` for a loss
        or gradient that is not finite, and `ValueError` when the data cannot be used.
        """
        from tensorboardX import SummaryWriter

        last = self.config.steps if stop_at is None else min(stop_at, self.config.steps)
        board = (
            SummaryWriter(
                str(self.folder / "tensorboard"),
                purge_step=self.step + 1,
                filename_suffix=f".{self.step}",  # so two starts within a second have two files
            )
            if self.world.first
            else None
        )
        batches: Iterator[Batch] = iter(())
        stopped = False
        self._window = Window()
        try:
            while self.step < last and not stopped:
                if self.loader is None or self._phase_at(self.step) != self.position.phase:
                    batches = self._open_phase(self._phase_at(self.step), say)
                train, rate = self.config.train, self.learning_rate
                loss, norm, bad = self._optimise(batches)
                self.step += 1
                self._log(loss, norm, rate, board, on_step, last)
                of_all = parallel.gathered((should_stop(), bad), self.world)
                stopped = any(stop for stop, _ in of_all)
                if stopped and self.step < last:
                    say(f"stopping after step {self.step} and saving its checkpoint")
                for text in (text for _, texts in of_all for text in texts):
                    say(text)
                if stopped:
                    self.save()  # first: whoever asked to stop may not wait for long
                if train.validate_every and (self.step % train.validate_every == 0 or self.step == last):
                    self._validate(board, say)
                if train.sample_every and self.step % train.sample_every == 0:
                    self._show(say)
                if not stopped and (self.step % train.checkpoint_every == 0 or self.step == last):
                    self.save()
        finally:
            if self.loader:
                self.loader.close()
                self.loader = None
            if board:
                board.close()
        return self.step >= self.config.steps

    def _phase_at(self, step: int) -> int:
        for k, phase in enumerate(self.config.phases):
            if step < phase.steps:
                return k
            step -= phase.steps
        return max(0, len(self.config.phases) - 1)

    def _open_phase(self, phase: int, say: Callable[[str], None]) -> Iterator[Batch]:
        if self.loader:
            self.loader.close()
        if phase != self.position.phase:
            self.position = Position(phase=phase)
        if len(self.config.phases) > 1:
            alone = ", the decoder alone" if self.config.phases[phase].decoder_only else ""
            say(f"phase {phase + 1} of {len(self.config.phases)}{alone}")
        self._settle(self.stage.begin_phase(phase))
        self.loader = self.stage.loader(self.dataset, self.config.phase(phase)[1], phase, self.world)
        for line in self.loader.table():
            say(line)
        return self.loader.batches(self.position.epoch, self.position.index)

    @torch.no_grad()
    def _settle(self, names: Sequence[str]) -> None:
        """Set frozen parameters to their averages, as the averages are exported.

        A second call changes nothing.
        """
        for name in names:
            if name in self.ema:
                self.trained[name].copy_(self.ema[name])
        if names:
            parallel.forget_gathered(self.model)

    def _optimise(self, batches: Iterator[Batch]) -> tuple[float, float, list[str]]:
        """One optimiser step. Returns loss and gradient norm over all processes, and notes on bad rows."""
        train = self.config.train
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        total = torch.zeros((), device=self.world.device)
        used: list[str] = []
        bad: list[str] = []
        for _ in range(train.accumulate):
            waiting = time.perf_counter()
            batch = next(batches)
            self._window.wait_s += time.perf_counter() - waiting
            used += batch.clip_ids
            bad += batch.bad
            prepared = self.stage.prepare(batch, self.position.phase, self.step)
            with self._autocast():
                losses = self.stage.losses(prepared)
            share = losses.sum() / (len(losses) * train.accumulate)
            share.backward()
            total += share.detach()
            self._count(prepared, losses)
            self.position.epoch, self.position.index = batch.epoch, batch.index + 1
        norm = self._clip()
        loss = float(parallel.mean(total, self.world))
        if not math.isfinite(loss) or not math.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            clips = sorted({c for ids in parallel.gathered(used, self.world) for c in ids})
            raise NotFinite(
                f"step {self.step + 1}: the loss is {loss} and the gradient's norm is {norm}; "
                f"nothing was updated. The clips of this step: {', '.join(clips)}. "
                "The last checkpoint is OK: resume with a lower train.learning_rate, or remove these clips"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._average()
        return loss, norm, bad

    def _clip(self) -> float:
        """Clip the gradients. Returns the norm of the exported part, or NaN if a norm is not finite.

        Parameters that are not exported (discriminators) are clipped as a group of their own.
        """
        norms = []
        for exported in (True, False):
            group = [p for n, p in self.trained.items() if self.stage.is_exported(n) == exported]
            if any(p.grad is not None for p in group):
                found = torch.nn.utils.clip_grad_norm_(group, self.config.train.clip_norm)
                norms.append(float(parallel.whole(found)))
        return norms[0] if all(map(math.isfinite, norms)) else math.nan

    @property
    def learning_rate(self) -> float:
        """A linear warm-up, then constant, then a linear decay that would reach 0 one step after the last."""
        train = self.config.train
        rising = (self.step + 1) / max(1, train.warmup_steps)
        falling = (self.config.steps - self.step) / max(1, train.decay_steps)
        return train.learning_rate * min(1.0, rising, falling)

    @torch.no_grad()
    def _average(self) -> None:
        """Update the exponential moving averages.

        The decay of step n, counted from 1, is min(ema_decay, (1 + n) / (10 + n)): the averages follow faster
        at the beginning.
        """
        if not self.ema:
            return
        decay = min(self.config.train.ema_decay, (2 + self.step) / (11 + self.step))
        for name, average in self.ema.items():
            average.lerp_(self.trained[name].detach(), 1 - decay)

    # ---- logs, validation and samples

    def _count(self, prepared: Any, losses: Tensor) -> None:
        times, flops = self.stage.times(prepared), self.stage.flops(prepared)
        self._window.add(times, losses.detach().tolist(), flops)

    def _log(
        self,
        loss: float,
        norm: float,
        rate: float,
        board: Any,
        on_step: Callable[[Metrics], None] | None,
        last: int,
    ) -> None:
        self._window.steps += 1
        parts = self.stage.parts()
        if self.world.first:
            line = {"step": self.step, "loss": loss, "grad_norm": norm, "learning_rate": rate, **parts}
            with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self.step % self.config.train.log_every and self.step != last:
            return
        peak = peak_flops(self.world.device)
        metrics = self._window.report(self.step, last, loss, norm, rate, self.world.size, peak, parts)
        if board:
            self._window.write(board, metrics)
        if on_step:
            on_step(metrics)
        self._window = Window()

    def _validate(self, board: Any, say: Callable[[str], None]) -> None:
        """Log the loss on held-out clips. Times and noise are fixed, so steps can be compared."""
        began = time.perf_counter()
        assert self.loader is not None
        losses = []
        for prepared in self.stage.validation(self.loader):
            # As in training, codec and text encoder have already run, outside of autocast.
            with torch.no_grad(), self._autocast():
                losses.append(self.stage.losses(prepared).mean())
        if losses:
            found = {
                "loss": float(parallel.mean(torch.stack(losses).mean(), self.world)),
                **self.stage.parts(),
            }
            if self.world.first:
                with (self.folder / "validation.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": self.step, **found}) + "\n")
                for name, value in found.items():
                    board.add_scalar(f"validation/{name}", value, self.step)
                say(f"step {self.step}: validation " + ", ".join(f"{n} {v:.4f}" for n, v in found.items()))
        self._window.began += time.perf_counter() - began

    def _show(self, say: Callable[[str], None]) -> None:
        """Make samples with the averaged weights. With one process, an error does not end the training."""
        began = time.perf_counter()
        assert self.loader is not None
        try:
            self._swap_average()
            path = self.folder / "samples" / f"step-{self.step:07d}.mp4"
            self.stage.show(self.loader, path, self._autocast, write=self.world.first)
        except Exception as error:
            if self.world.size > 1:  # else the other processes would wait for this process for ever
                raise
            say(f"step {self.step}: samples could not be made: {type(error).__name__}: {error}")
        finally:
            self._swap_average()
        self._window.began += time.perf_counter() - began

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.bf16)

    @torch.no_grad()
    def _swap_average(self) -> None:
        """Exchange averaged and trained weights. A second call restores them bit for bit."""
        for name, average in self.ema.items():
            kept = average.clone()
            average.copy_(self.trained[name].detach())
            self.trained[name].copy_(kept)
        parallel.forget_gathered(self.model)

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.trained[name].copy_(value)

    # ---- checkpoints and exported weights

    def save(self) -> None:
        """Write a checkpoint, and the weights for sampling. Averages are preferred if they are kept."""
        model = parallel.gathered_tensors(self.trained, self.world)
        moments = {f"{n}/{k}": v for n, p in self.trained.items() for k, v in self.optimizer.state[p].items()}
        optimizer = parallel.gathered_tensors(moments, self.world)
        ema = parallel.gathered_tensors(self.ema, self.world)
        if self.world.first:
            state = {
                "step": self.step,
                "position": vars(self.position),
                "dataset": self.loader.dataset_hash if self.loader else "",
                "world": self.world.size,
                "latents": self.stage.latents_hash,
            }
            tensors = {"model": model, "optimizer": optimizer, "ema": ema}
            checkpoint.save(
                self.folder / "checkpoints", self.step, tensors, state, self.config.train.keep_last
            )
        self._export({**model, **ema})

    def _export(self, weights: dict[str, Tensor]) -> None:
        """Write the weights for sampling. weights: whole tensors, on the first process."""
        frozen = {} if self.config.lora else self._not_trained()
        if self.world.first:
            self.stage.export({**frozen, **weights}, self.dataset, self.folder, self.step)
        parallel.wait(self.world)

    def _exported_step(self) -> int | None:
        path = self.folder / "weights" / "weights.json"
        return json.loads(path.read_text(encoding="utf-8"))["step"] if path.exists() else None

    def _not_trained(self) -> dict[str, Tensor]:
        state = {n: t for n, t in self.model.state_dict().items() if n not in self.trained}
        return parallel.gathered_tensors(state, self.world)

    def resume(self, new_data: bool = False) -> int:
        """Resume from the newest checkpoint, if there is one. Returns the step.

        Raises `ValueError` when the checkpoint cannot be read, when it belongs to another model, and when it
        was made with another dataset or another number of processes. With `new_data` the new dataset or
        number is accepted, and training resumes at the start of the next epoch. `start.begin` compares the
        configurations.
        """
        folder = self.folder / "checkpoints"
        saved = checkpoint.steps(folder)
        if not saved:
            self._truncate(0)
            return 0
        found = checkpoint.load(folder, saved[-1])
        state = found.state
        self.step = state["step"]
        self.position = Position(**state["position"])
        self._take_up(state, new_data)
        self.stage.check_latents_hash(state.get("latents", ""), self.folder)
        missing = self.trained.keys() ^ found.tensors["model"].keys()
        if missing:
            raise ValueError(
                f"{folder}: the checkpoint belongs to another model: only one of the two has "
                f"{', '.join(sorted(missing)[:4])}{' and more' if len(missing) > 4 else ''}"
            )
        self._put({n: parallel.placed(t, self.trained[n]) for n, t in found.tensors["model"].items()})
        for name, average in self.ema.items():
            average.copy_(parallel.placed(found.tensors["ema"][name], average))
        for name, tensor in found.tensors["optimizer"].items():
            parameter = self.trained[name.rpartition("/")[0]]
            key = name.rpartition("/")[2]
            value = parallel.placed(tensor, parameter) if key != "step" else tensor
            self.optimizer.state[parameter][key] = value
        self._truncate(self.step)
        if self._exported_step() != self.step:  # the process ended between checkpoint and export
            self._export({**found.tensors["model"], **found.tensors["ema"]})
        return self.step

    def _take_up(self, state: dict[str, Any], new_data: bool) -> None:
        _, data, _ = self.config.phase(self.position.phase)
        what = ""
        if state["dataset"] != self.stage.selection(self.dataset, data).hash:
            what = f"the dataset has changed since step {self.step} (its clips, captions or shards)"
        elif state["world"] != self.world.size:
            what = f"it was trained by {state['world']} processes, and now there are {self.world.size}"
        if what and not new_data:
            raise ValueError(
                f"{self.folder}: {what}; --new-data resumes with the change from the start of the next epoch"
            )
        if what:
            self.position.epoch, self.position.index = self.position.epoch + 1, 0

    def _truncate(self, step: int) -> None:
        """Remove the log lines after step `step`, the step of the checkpoint."""
        if not self.world.first:
            return
        for name in ("log.jsonl", "validation.jsonl"):
            path = self.folder / name
            if path.exists():
                lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
                kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
                disk.write_text(path, "".join(kept))


def losses_of(folder: Path) -> list[float]:
    """The loss of every step of a training, in order."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]
