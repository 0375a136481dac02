"""The estimate of memory before the start: its size, and the message when there is too little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from generation.codecs.slice import grid
from generation.config import Config
from generation.models import network
from generation.train import memory, vae_stage
from generation.train.diffusion_stage import Prepared
from generation.train.memory import Need, check, training_need
from generation.train.open import open_stage
from generation.train.trainer import Trainer
from generation.train.vae_stage import Clips
from tests.generation.tiny_runs import ALONE, ROOT, tiny

CPU = torch.device("cpu")
WIDE = {"frames": 13, "height": 80, "width": 112}
LARGE = {"frames": 16, "height": 128, "width": 128}
SHAPES: dict[str, dict[str, Any]] = {
    # The order by size: activations, then weights and optimiser, then pixels and latents.
    "activations": {"transformer": {"layers": 4, "heads": 8, "head_dim": 32}, "data": {"buckets": [WIDE]}},
    "checkpointed": {
        "transformer": {"layers": 6, "heads": 8, "head_dim": 32, "gradient_checkpointing": True},
        "data": {"buckets": [WIDE]},
    },
    "half": {
        "transformer": {"layers": 4, "heads": 8, "head_dim": 32},
        "data": {"buckets": [WIDE]},
        "train": {"precision": "bf16"},
    },
    "weights": {
        "transformer": {"layers": 12, "heads": 8, "head_dim": 48},
        "data": {"buckets": [{"frames": 5, "height": 32, "width": 48}]},
        "train": {"batch_size": 1},
    },
    "vae": {"stage": "vae", "vae": {"widths": [16, 32, 64]}, "data": {"buckets": [LARGE]}},
    "vae checkpointed": {
        "stage": "vae",
        "vae": {"widths": [32, 64, 128], "gradient_checkpointing": True},
        "vae_loss": {"adversarial": 0},
        "data": {"buckets": [LARGE]},
    },
}


def measure() -> None:
    """Print the peak memory of two steps, and the estimate, for each shape.

    This runs in a separate process, whose allocator returns all memory.
    """
    torch.set_num_threads(1)
    _two_steps(tiny())  # this loads the libraries
    for name, sections in SHAPES.items():
        before = _new_peak()
        stage, others = sections.get("stage", "stage1"), {k: v for k, v in sections.items() if k != "stage"}
        need = _two_steps(tiny(stage, **others))
        print(json.dumps([name, _peak() - before, need]), flush=True)


def _new_peak() -> int:
    """Let the kernel count this process's peak from now on. Returns the memory in use, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """The peak of resident memory in bytes, as the kernel counts it. (A sampling thread missed peaks.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no line VmHWM")


def _two_steps(config: Config) -> float:
    stage = open_stage(config, CPU, Path("/nowhere"))
    stage.set_up(ALONE)
    trainer = Trainer(config, stage, "", Path("/nowhere"), ALONE)
    for k in range(2):
        prepared = _micro_batch(config, stage, k)
        with trainer._autocast():
            losses = stage.losses(prepared)
        losses.mean().backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        trainer._average()
    parameters = sum(p.numel() for p in stage.model.parameters())
    half = config.train.precision == "bf16"
    if config.stage == "vae":
        return vae_stage.training_need(config, 1, half).total
    channels, bucket = stage.codec.channels, config.data.buckets[0]
    return training_need(config, channels, parameters, parameters, bucket, 1, half).total


def _micro_batch(config: Config, stage: Any, k: int) -> Any:
    bucket, n = config.data.buckets[0], config.train.batch_size
    if config.stage == "vae":
        size = bucket.frames, bucket.height, bucket.width
        noise = torch.randn(n, config.vae.channels, *grid(config.vae, *size))
        return Clips(torch.rand(n, 3, *size), noise, judged=True, decoder_only=False)
    latents = torch.randn(n, stage.codec.channels, *config.latent_grid(bucket))
    text = [torch.randn(config.text.max_tokens, stage.text.dim)] * n
    return Prepared(latents, None, text, [0.3] * n, [], [(k, i) for i in range(n)])


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux's /proc")
def test_the_estimate_is_what_a_step_takes() -> None:
    call = "from tests.generation.train.test_memory import measure; measure()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    found = subprocess.run(
        [sys.executable, "-c", call], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in found.stdout.splitlines() if line.startswith("[")]
    assert [name for name, _, _ in lines] == list(SHAPES)
    for name, measured, estimated in lines:
        assert measured > 60e6, (name, measured)  # a smaller value could not be compared
        print(name, f"measured {measured / 1e6:.0f} MB, estimated {estimated / 1e6:.0f}")
        assert measured / 2 < estimated < measured * 2, (name, measured / 1e6, estimated / 1e6)


# ---- the sum of the parts


def _need(config: Config, world: int = 1, half: bool = False, trained: int = 1000) -> Need:
    return training_need(config, 48, 1000, trained, config.data.buckets[0], world, half)


def test_what_is_trained_costs_five_times_its_weights_and_is_shared() -> None:
    whole = _need(tiny())
    assert (whole.weights, whole.training) == (4000, 16000)
    assert _need(tiny(train={"ema_decay": 0})).training == 12000
    assert _need(tiny(), world=4).weights == 1000
    assert _need(tiny(), world=4).training == 4000
    assert _need(tiny(), world=4).activations == whole.activations
    adapters = _need(tiny(), half=True, trained=10)
    assert (adapters.weights, adapters.training) == (10 * 4 + 990 * 2, 160)
    assert whole.total == whole.weights + whole.training + whole.activations


def test_activations_follow_what_makes_them() -> None:
    config = tiny()
    one = _need(config).activations
    assert _need(tiny(train={"batch_size": 6})).activations == 3 * one
    assert _need(tiny(transformer={"gradient_checkpointing": True})).activations < one
    assert _need(config, half=True).activations < one
    assert _need(tiny(transformer={"layers": 4})).activations > 1.3 * one


# ---- the memory of the device


def test_too_little_memory_is_said_with_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 2e9)
    config = tiny(train={"batch_size": 6})
    fits = check(Need(0.5e9, 1e9, 0.4e9), CPU, config)
    assert fits == "memory: about 1.9 GB (weights 0.5 GB, optimiser 1.0 GB, activations 0.4 GB) of 2.0 GB"
    with pytest.raises(ValueError, match="too little memory on cpu") as caught:
        check(Need(0.5e9, 1e9, 0.6e9), CPU, config)
    text = str(caught.value)
    assert "about 2.1 GB" in text
    assert "of 2.0 GB" in text
    for way in (
        "transformer.gradient_checkpointing=true",
        "train.batch_size=3 with train.accumulate doubled",
        "smaller data.buckets",
        "more processes (--workers)",
        "a smaller --preset",
    ):
        assert way in text
    small = {"frames": 9, "height": 32, "width": 48}
    tiled = tiny(codec={"kind": "cogvideox", "model": "x", "spatial": 8}, data={"buckets": [small]})
    with pytest.raises(ValueError, match=r"codec\.tile=64"):
        check(Need(0.5e9, 1e9, 0.6e9), CPU, tiled)
    used_up = tiny(train={"batch_size": 1}, transformer={"gradient_checkpointing": True})
    with pytest.raises(ValueError, match=r"What would help: smaller data\.buckets"):
        check(Need(0.5e9, 1e9, 0.6e9), CPU, used_up)


def test_a_stage_that_does_not_fit_is_refused_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest bucket of all phases decides."""
    phases = [{"steps": 1}, {"steps": 1, "data": {"buckets": [{"frames": 97, "height": 480, "width": 848}]}}]
    monkeypatch.setattr(memory, "available", lambda device: 100e6)
    said: list[str] = []
    open_stage(tiny(), CPU, tmp_path, say=said.append)
    assert len(said) == 1
    assert said[0].startswith("memory: about ")
    monkeypatch.setattr(network, "build_model", lambda *_: pytest.fail("the network was made all the same"))
    with pytest.raises(ValueError, match="too little memory on cpu"):
        open_stage(tiny(phases=phases), CPU, tmp_path, say=said.append)
