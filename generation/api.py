"""The commands as functions: a stage is trained, videos are made, a run is measured. The commands call them.

Progress goes to standard error. What the user can mend is a `ValueError` that names the remedy; options in
such messages are those of the command. One writer works in a folder at a time (`generation.lock`). Ctrl-C
ends a training after the current step, which is checkpointed, and then raises `KeyboardInterrupt`; the same
call goes on. Sampling and evaluation keep what is finished, too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from generation.config import Config
from generation.configuring import Over, apply_overrides, checked, stage_config, values_of
from generation.data.shards import clips as rows
from generation.data.shards import frames
from generation.evaluate.bars import Verdict
from generation.evaluate.parts import Evaluation
from generation.evaluate.settings import Settings
from generation.lock import Lock, alone
from generation.progress import evaluations, note
from generation.report.page import write_page
from generation.sample.enhance import check_final, enhance_file, enhance_previews
from generation.sample.execution import Execution
from generation.sample.options import Options
from generation.sample.preview_folder import is_preview
from generation.sample.previews import sample_previews
from generation.train.parallel import join
from generation.train.session import Task
from generation.train.session import train as run_here

__all__ = ("Evaluated", "enhance", "evaluate", "frames", "rows", "sample", "train")

Place = str | os.PathLike[str]
Size = tuple[int, int]  # width and height in pixels
Offload = Literal["none", "model", "block"]
Guidance = Literal["auto", "together", "apart"]


def train(
    stage: str,
    data: Place,
    out: Place,
    *,
    preset: str = "tiny",
    config: Over | None = None,
    set: Sequence[str] = (),
    steps: int | None = None,
    device: str | None = None,
    new_data: bool = False,
    lock: Lock = alone,
) -> Path:
    """Train a stage on the shards of a dataset, or resume its training. Returns its folder, OUT/STAGE.

    stage: vae, stage1 or stage2. config: a YAML file or plain values, laid over the preset. set: such as
    `train.learning_rate=1e-4`. steps: train up to this step. device: cpu or cuda; None: a GPU if there is
    one. new_data: resume with a changed dataset or number of processes. A script that `torchrun` starts
    several times calls this in each process: the model is then sharded over them.

    Raises `generation.train.trainer.NotFinite` when the loss is not a number.
    """
    settings = training_config(stage, preset, config, set, steps)
    task = Task(settings, _dataset(data), Path(os.path.abspath(out)), steps, new_data)
    run_here(task, device, lock)
    return task.folder


def training_config(
    stage: str, preset: str, config: Over | None, set: Sequence[str], steps: int | None
) -> Config:
    """The configuration of a training. `steps` also decides how many steps are planned, if there are no
    phases."""
    overrides = [set] if isinstance(set, str) else list(set)
    settings = stage_config(stage, preset, config, overrides)
    if steps and not settings.phases:
        settings = stage_config(stage, preset, config, [*overrides, f"train.steps={steps}"])
    return settings


def sample(
    prompts: str | Sequence[str],
    run: Place,
    out: Place,
    *,
    preview_only: bool = False,
    frames: int | None = None,
    size: Size | None = None,
    final_size: Size | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    negative_prompt: str | None = None,
    seed: int | None = None,
    enhance_steps: int | None = None,
    enhance_guidance: float | None = None,
    noise_step: int | None = None,
    device: str | None = None,
    offload: Offload = "none",
    guidance_batch: Guidance = "auto",
    compile: bool = False,
    lock: Lock = alone,
) -> list[Path]:
    """Make a video of each prompt: a preview, then the final one. Returns the final videos, or the previews.

    run: the folder of a trained run. frames: 4n + 1. steps, guidance: of Stage I; the `enhance_` ones and
    `noise_step` are of Stage II. Each prompt has a folder in `out`; what is there already is kept.
    """
    texts = [text.strip() for text in ([prompts] if isinstance(prompts, str) else prompts)]
    if not texts or not all(texts):
        raise ValueError("PROMPT: contains no prompt; write what the video is to show")
    if Path(out).is_file():
        raise ValueError(f"--out {out}: this is a file; name a folder")
    how, where = Execution(offload, guidance_batch, compile), chosen_device(device)
    folder = Path(os.path.abspath(run))
    first = Options(
        frames=frames,
        **_size(size),
        steps=steps,
        guidance=guidance,
        negative_prompt=negative_prompt,
        seed=seed,
    )
    # The preview contains the negative prompt.
    second = Options(
        **_size(final_size), steps=enhance_steps, guidance=enhance_guidance, noise_step=noise_step
    )
    if not preview_only:
        check_final(folder, first, second, where, how)
    with lock(Path(os.path.abspath(out)), "sample"), evaluations() as on_step:
        made = sample_previews(folder, texts, Path(out), first, where, on_step, note, how)
        if not preview_only:
            enhance_previews(folder, made, second, where, on_step, note, how)
    return [path / ("preview.mp4" if preview_only else "final.mp4") for path in made]


def enhance(
    source: Place,
    run: Place,
    out: Place | None = None,
    *,
    prompt: str | None = None,
    size: Size | None = None,
    frames: int | None = None,
    fps: float | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    noise_step: int | None = None,
    negative_prompt: str | None = None,
    seed: int | None = None,
    device: str | None = None,
    offload: Offload = "none",
    guidance_batch: Guidance = "auto",
    compile: bool = False,
    lock: Lock = alone,
) -> Path:
    """Make the final video from a preview, or a larger video from any video file, with Stage II.

    out: None means final.mp4 beside a preview. prompt: what the video shows; needed for a video file.
    frames: 4n + 1; None: all. fps: of a video file; None: its own. Returns the written file.
    """
    how = Execution(offload, guidance_batch, compile)
    if out and Path(out).is_dir():
        raise ValueError(f"--out {out}: this is a folder; name the file to write, such as {out}/final.mp4")
    options = Options(
        frames=frames,
        **_size(size),
        fps=fps,
        steps=steps,
        guidance=guidance,
        noise_step=noise_step,
        negative_prompt=negative_prompt,
        seed=seed,
    )
    with _alone_on(source, out, lock), evaluations() as on_step:
        return enhance_file(
            Path(os.path.abspath(run)),
            Path(source),
            Path(out) if out else None,
            options,
            prompt,
            chosen_device(device),
            on_step,
            how,
            note,
        )


@dataclass(frozen=True)
class Evaluated:
    """The result of an evaluation, and its files."""

    figures: dict[str, Any]  # by part
    notes: list[str]
    verdicts: list[Verdict]  # on the bars of the configuration
    file: Path  # evaluation.json
    page: Path  # evaluation.html
    vbench: Path | None  # the folder for VBench's tool

    @property
    def passed(self) -> bool:
        """Whether every bar is met."""
        return all(verdict.passed for verdict in self.verdicts)


def evaluate(
    run: Place,
    data: Place,
    *,
    held_out: Place | None = None,
    out: Place | None = None,
    parts: Sequence[str] = (),
    prompts: Sequence[str] | None = None,
    config: Over | None = None,
    set: Sequence[str] = (),
    vbench: Place | None = None,
    device: str | None = None,
    lock: Lock = alone,
) -> Evaluated:
    """Measure a run beside its controls, and compare the figures with bars.

    data: the dataset of the training. held_out: a dataset of other clips; None: the clips that training held
    out. out: None means RUN/evaluation. parts: of vae, stage1, stage2 and chain; none: all that the run has.
    prompts: None means captions of held-out clips. config: a YAML file or plain values, with attributes, bars
    and numbers. Raises `generation.evaluate.following.JudgeUnfit` when the judge does not know real clips.
    """
    folder = Path(os.path.abspath(run))
    with evaluations() as on_step:
        evaluation = Evaluation(
            run=folder,
            data=_dataset(data),
            held_out=_dataset(held_out) if held_out else None,
            out=Path(os.path.abspath(out)) if out else folder / "evaluation",
            settings=evaluation_settings(config, set),
            wanted=tuple(parts),
            prompts=prompts,
            device=chosen_device(device),
            say=note,
            on_step=on_step,
        )
        evaluation.check(bool(vbench))
        with lock(evaluation.out, "evaluate"):
            content, verdicts = evaluation.write()
            page = write_page(evaluation.out)
    copied = evaluation.export_vbench(Path(vbench)) if vbench else None
    file = evaluation.out / "evaluation.json"
    return Evaluated(content["figures"], content["notes"], verdicts, file, page, copied)


def evaluation_settings(config: Over | None, set: Sequence[str] = ()) -> Settings:
    """The settings of an evaluation. Raises `ValueError`."""
    data = values_of(config)
    apply_overrides(data, set)
    return checked(data, Settings)


def chosen_device(name: str | None) -> torch.device:
    """The device `name`, or the default device. Raises `ValueError` if the device does not exist."""
    return join(name).device


def _dataset(place: Place) -> str:
    location = os.fspath(place)
    return location if "://" in location else os.path.abspath(location)


def _size(size: Size | None) -> dict[str, Any]:
    if size is None:
        return {}
    width, height = size
    return {"width": width, "height": height}


def _alone_on(source: Place, out: Place | None, lock: Lock) -> AbstractContextManager[object]:
    """The lock of the one file that `enhance` writes: others of its folder may be made at the same time."""
    path = Path(os.path.abspath(source))
    if out:
        final = Path(os.path.abspath(out))
    elif is_preview(path):
        final = (path if path.is_dir() else path.parent) / "final.mp4"
    else:
        return nullcontext()  # it is refused
    return lock(final.parent, "enhance", f"_lease-{final.name}.json")
