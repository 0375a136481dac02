"""Slice VAE learns in minutes of one thread, and is compared with a network without layers over time.

    OMP_NUM_THREADS=1 python -m tests.generation.train.vae_learning --seconds 420 --picture docs/vae.png

The clips have a still camera: a plain shape moves over a ground. The ground is a random grain that only the
frames before can predict, or with `--ground stripes` a grating that a single frame describes in few numbers.
Both autoencoders make the same number of values from 8 frames: 2 latent frames of 16 channels, or 8 of 4.
The real trainer trains both from shards, for the same number of processor seconds. The exported codecs are
judged by their reconstructions of held-out clips. Untrained networks are truncated DCTs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from generation.codecs.open import open_codec
from generation.config import Codec, Config
from generation.media import from_uint8, to_uint8
from generation.presets import preset
from generation.train import start
from generation.train.open import open_stage
from generation.train.parallel import join
from generation.train.trainer import Trainer
from tests.generation import shapes, synthetic

FRAMES, SIDE = 8, 32
POOL, HELD_OUT = 1024, 96
GRAIN = 14.0  # standard deviation of the ground, in levels of 255
VARIANTS: dict[str, dict[str, Any]] = {
    "slice": {},
    "without time": {"temporal": 1, "patch_frames": 1, "channels": 4, "widths": [32, 64]},
}


def grain(draw: np.random.Generator) -> np.ndarray:
    """A grain (H, W) with mean 0. The pixels are independent."""
    return draw.normal(0, GRAIN, (SIDE, SIDE))


def stripes(draw: np.random.Generator) -> np.ndarray:
    """A grating (H, W) with mean 0, in a random direction. The period is three to six pixels."""
    waves = [0, 0]
    while not 5 <= np.hypot(*waves) <= 10:
        waves = list(draw.integers(-10, 11, 2))
    y, x = np.mgrid[:SIDE, :SIDE]
    phase = 2 * np.pi * (waves[0] * x + waves[1] * y) / SIDE
    found: np.ndarray = 2**0.5 * GRAIN * np.cos(phase + draw.uniform(0, 2 * np.pi))
    return found


GROUNDS = {"grain": grain, "stripes": stripes}


def render(what: shapes.Content, *key: int, ground: str = "grain") -> np.ndarray:
    """A clip (T, H, W, 3) uint8. `key` decides all random values."""
    draw = np.random.default_rng(key)
    still = GROUNDS[ground](draw)[..., None] + draw.uniform(70, 150, 3)
    dx, dy = shapes.DIRECTIONS[what.direction]
    radius, speed = draw.uniform(6.5, 9), int(draw.integers(1, 3))
    centre = draw.uniform(radius, SIDE - radius, 2)
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    pictures = []
    for k in range(FRAMES):
        way = speed * (k - FRAMES // 2)
        u, v = x - centre[0] - dx * way, y - centre[1] - dy * way
        inside = {
            "circle": u**2 + v**2 <= radius**2,
            "square": np.maximum(abs(u), abs(v)) <= 0.9 * radius,
            "triangle": (v <= 0.8 * radius) & (abs(u) <= (v + 1.2 * radius) / 2),
        }[what.shape]
        pictures.append(np.where(inside[..., None], shapes.COLOURS[what.colour], still))
    return np.stack(pictures).round().clip(0, 255).astype(np.uint8)


def clips(count: int, seed: int, ground: str) -> np.ndarray:
    """Clips (N, T, H, W, 3), with every content in turn."""
    return np.stack([render(shapes.ALL[k % len(shapes.ALL)], seed, k, ground=ground) for k in range(count)])


def write_dataset(folder: Path, ground: str) -> Path:
    rows = [
        synthetic.row(k, synthetic.encode(clip, shapes.FPS, crf=5), FRAMES, shapes.FPS, SIDE, SIDE)
        for k, clip in enumerate(clips(POOL, 1, ground))
    ]
    return synthetic.write_shards(folder, rows, rows_per_group=128)


def configuration(**vae: Any) -> Config:
    data = preset("tiny", "vae")
    data["vae"] |= vae
    data["data"] |= {
        "buckets": [{"frames": FRAMES, "height": SIDE, "width": SIDE}],
        "crop": "center",
        "validation_fraction": 0,
    }
    # Training stops when the time is up: the clock decides, not the number of steps.
    data |= {"phases": []}
    data["train"] |= {"steps": 100_000, "checkpoint_every": 100_000, "validate_every": 0, "log_every": 100}
    return Config.model_validate(data)


def psnr(made: Tensor, true: Tensor) -> float:
    """PSNR in dB, as the mean over clips."""
    return float((10 * torch.log10(4 / (made.clamp(-1, 1) - true).square().flatten(1).mean(1))).mean())


@dataclass(frozen=True)
class Result:
    psnr: float  # dB, on held-out clips
    untrained: float
    steps: int
    seconds: float  # of the processor, to train
    made: Tensor  # reconstructions of held-out clips


def learn(dataset: Path, run: Path, config: Config, seconds: float, held_out: Tensor) -> Result:
    """Train for `seconds` seconds of the processor, and judge the exported codec."""
    world = join("cpu")
    stage = open_stage(config, world.device, run / "vae")
    stage.set_up(world)
    trainer = Trainer(config, stage, str(dataset), start.begin(run, config), world)
    trainer.fit(1)
    before = psnr(_given_back(run, config, held_out), held_out)
    began = time.process_time()
    trainer.fit(should_stop=lambda: time.process_time() - began > seconds)
    made = _given_back(run, config, held_out)
    return Result(psnr(made, held_out), before, trainer.step, time.process_time() - began, made)


def _given_back(run: Path, config: Config, videos: Tensor) -> Tensor:
    codec = open_codec(
        Codec(
            kind="slice",
            model=str(run / "vae"),
            temporal=config.vae.temporal,
            spatial=config.vae.spatial,
        )
    )
    return codec.decode(codec.encode(videos), videos.shape[2])


def compare(folder: Path, seconds: float, ground: str = "grain") -> tuple[dict[str, Result], Tensor]:
    """Prints the table. Returns the results by name, and the held-out clips (N, 3, T, H, W)."""
    dataset = write_dataset(folder / "dataset", ground)
    held_out = from_uint8(clips(HELD_OUT, 2, ground))
    found = {}
    for name, sizes in VARIANTS.items():
        found[name] = learn(dataset, folder / name, configuration(**sizes), seconds, held_out)
        r = found[name]
        print(
            f"{name:14s} {r.psnr:6.2f} dB ({r.untrained:.2f} before), {r.steps} steps, {r.seconds:.0f} s",
            flush=True,
        )
    return found, held_out


def write_picture(path: Path, rows: Sequence[Tensor], clips_shown: int = 4, scale: int = 4) -> None:
    """Write a picture of the first and last frame of some clips. Clips are columns, and `rows` are rows."""
    from PIL import Image

    lines = []
    for videos in rows:
        frames = to_uint8(videos[:clips_shown])[:, [0, -1]]  # (N, 2, H, W, 3)
        framed = np.pad(frames, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
        lines.append(np.concatenate(list(framed.reshape(-1, *framed.shape[2:])), 1))
    picture = np.concatenate(lines, 0).repeat(scale, 0).repeat(scale, 1)
    Image.fromarray(picture).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=420.0, help="of the processor, for each")
    parser.add_argument("--ground", choices=GROUNDS, default="grain")
    parser.add_argument("--picture", type=Path, help="PNG: held-out clips, slice, without time")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        found, held_out = compare(Path(place), asked.seconds, asked.ground)
    if asked.picture:
        write_picture(asked.picture, [held_out, *(r.made for r in found.values())])


if __name__ == "__main__":
    main()
