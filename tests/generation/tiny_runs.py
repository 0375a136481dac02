"""Trainings of a very small model, for the tests of the trainer: 20 steps take a second."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from generation.config import Config
from generation.train import checkpoint, start
from generation.train.open import open_stage
from generation.train.parallel import World
from generation.train.trainer import Trainer, losses_of
from tests.generation import synthetic

ROOT = Path(__file__).parents[2]
ALONE = World(0, 1, torch.device("cpu"))

_TINY: dict[str, Any] = {
    "codec": {"kind": "patch", "temporal": 4, "spatial": 4},
    "text": {"kind": "minilm", "max_tokens": 16},
    "transformer": {"layers": 2, "heads": 2, "head_dim": 16, "time_embed_dim": 32},
    "data": {
        "fps": 8,
        "buckets": [{"frames": 9, "height": 16, "width": 24}, {"frames": 5, "height": 16, "width": 24}],
        "workers": 0,
        "validation_fraction": 0.1,
        "random_start": True,
    },
    "train": {
        "steps": 20,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 5,
        "clip_norm": 1.0,
        "ema_decay": 0.9,
        "checkpoint_every": 1000,
        "validate_every": 0,
        "log_every": 5,
    },
    "sampling": {"steps": 2, "guidance": 1.0},
}
_STAGE2: dict[str, Any] = {
    "stage": "stage2",
    "transformer": {"noise_strength": True},
    "objective": {"kind": "flow"},
    "degradation": {"scale": [2, 3]},
}


_VAE: dict[str, Any] = {
    "stage": "vae",
    "vae": {"channels": 4, "spatial": 4, "patch": 2, "widths": [8, 8, 16], "blocks": 1},
    "vae_loss": {"adversarial": 0.5, "discriminator_start": 8, "discriminator_width": 8},
    "data": {
        "buckets": [{"frames": 9, "height": 16, "width": 24}, {"frames": 6, "height": 16, "width": 24}],
        "single_frame_fraction": 0.3,
        "crop": "random",
    },
}


def tiny(stage: str = "stage1", **sections: Any) -> Config:
    """A very small configuration. `sections` replace keys of it: tiny(train={"accumulate": 2})."""
    base = merged(_TINY, {"stage1": {"stage": "stage1"}, "stage2": _STAGE2, "vae": _VAE}[stage])
    return Config.model_validate(merged(base, sections))


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(base)
    for key, value in over.items():
        inside = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = merged(both[key], value) if inside else value
    return both


def dataset(folder: Path, clips: int = 26, seed: int = 0) -> Path:
    """Write a dataset of captioned clips of two lengths, so that both buckets have clips."""
    short = synthetic.encode(
        synthetic.render_clip(synthetic.contents(1, seed + 7)[0], 7, 64, 48, 8), 8
    )  # 7 frames: too few for 9

    def change(k: int, row: synthetic.Row) -> synthetic.Row:
        if k % 3:
            return row
        return {**row, **synthetic.video(short), "frames": 7, "duration_s": 7 / 8}

    return synthetic.write_dataset(folder, clips, distinct=8, seed=seed, change=change)


def open_trainer(config: Config, data: Path, run: Path, world: World = ALONE) -> Trainer:
    """A new trainer, as in a new process. It has not resumed yet.

    All runs on a dataset share the tokens of captions, which would take a third of the time.
    """
    folder = run / config.stage
    if world.first:
        start.begin(run, config)
        text = folder / "cache" / "text"
        if not text.exists():
            shared = data.with_name(f"{data.name}-text")
            shared.mkdir(exist_ok=True)
            text.parent.mkdir(exist_ok=True)
            text.symlink_to(shared)
    stage = open_stage(config, world.device, folder)
    stage.set_up(world)
    return Trainer(config, stage, str(data), folder, world)


def train(config: Config, data: Path, run: Path, *stops: int, world: World = ALONE, **resume: Any) -> Trainer:
    """Train to each of the stops with a new trainer, or without stops to the end. Returns the last one."""
    for stop in stops or (config.steps,):
        trainer = open_trainer(config, data, run, world)
        trainer.resume(**resume)
        trainer.fit(stop)
    return trainer


def kept(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[float]]:
    """The newest checkpoint of a stage: tensors (parameters, optimiser, averages) by name, state, losses."""
    found = checkpoint.load(folder / "checkpoints", checkpoint.steps(folder / "checkpoints")[-1])
    tensors = {f"{part}/{n}": t for part, named in found.tensors.items() for n, t in named.items()}
    return tensors, found.state, losses_of(folder)


def different(one: Path, other: Path) -> list[str]:
    """The names of what differs, in any bit, between two stages' newest checkpoints and losses."""
    (a, about_a, losses_a), (b, about_b, losses_b) = kept(one), kept(other)
    assert {n.partition("/")[0] for n in a} == set(checkpoint.PARTS)
    names = [n for n in sorted({*a, *b}) if n not in a or n not in b or not torch.equal(a[n], b[n])]
    names += ["state"] if about_a != about_b else []
    return names + (["losses"] if losses_a != losses_b else [])


def on_two_ranks(function: str, *arguments: object, timeout: float = 240) -> None:
    """Run `package.module:function` with text arguments in two processes of a gloo group."""
    module, _, name = function.partition(":")
    call = f"import sys; from {module} import {name}; {name}(*sys.argv[1:])"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        command = [sys.executable, "-c", call, *map(str, arguments)]
        pipe = subprocess.PIPE
        processes.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stderr=pipe, text=True, start_new_session=True
            )
        )
    try:
        errors = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [0, 0], "\n".join(errors)
