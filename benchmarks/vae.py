"""Speed of Slice VAE compared with `AutoencoderKLCogVideoX`, at their published sizes, in the same run.

Both have random weights, so that anyone can repeat the measurement. Both are used as in the stages: as
codecs, in slices, in bfloat16 on a GPU. The output has seconds (the best of `--rounds`, measured in turns),
the number of operations, and the ratio of both; on a GPU also the share of the peak rate, and peak memory.

    python -m benchmarks.vae [--frames 17] [--size 128x96] [--rounds 3] [--tile LATENTS]
    python -m benchmarks.vae --frames 49 --size 1920x1072 --slice 2          # on a large GPU
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from generation import draws
from generation.codecs.base import Codec
from generation.codecs.cogvideox import CogVideoXCodec
from generation.codecs.open import open_codec
from generation.codecs.slice import SliceCodec, save_network
from generation.codecs.slice_vae.network import SliceVAE
from generation.config import Codec as Settings
from generation.config import SliceVae
from generation.device import peak_flops
from generation.train.parallel import join


def slice_codec(folder: Path, slice_latents: int, tile: int | None, device: torch.device) -> Codec:
    network = SliceVAE(SliceVae())
    (folder / "weights").mkdir(parents=True)
    save_network(network.settings, network.state_dict(), folder / "weights")
    (folder / "weights" / "weights.json").write_text(json.dumps({"hash": "random"}), encoding="utf-8")
    settings = Settings(kind="slice", model=str(folder), slice_latents=slice_latents, tile=tile)
    return open_codec(settings, device)


def published_codec(folder: Path, device: torch.device, **settings: Any) -> Codec:
    from diffusers import AutoencoderKLCogVideoX

    network: Any = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(128, 256, 256, 512),
        latent_channels=16,
        layers_per_block=3,
    )
    network.save_pretrained(folder)
    return open_codec(Settings(kind="cogvideox", model=str(folder), **settings), device)


def timed(action: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds, and the peak memory of a GPU in GB (NaN on a CPU)."""
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    action()
    if gpu:
        torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if gpu else float("nan")
    return time.perf_counter() - began, peak


def flops(codec: Codec, video: Tensor) -> tuple[float, float]:
    """The operations of encoding and of decoding, counted during a run."""
    found = []
    latents: list[Tensor] = []
    for action in (
        lambda: latents.append(codec.encode(video)),
        lambda: codec.decode(latents[0], video.shape[2]),
    ):
        with FlopCounterMode(display=False) as counter:
            action()
        found.append(float(counter.get_total_flops()))
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=17, help="8n + 1, which both accept")
    parser.add_argument("--size", default="128x96")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slice", type=int, default=2, help="latent frames at a time")
    parser.add_argument("--tile", type=int, default=None)
    asked = parser.parse_args()
    width, height = map(int, asked.size.split("x"))
    device = join().device
    video = draws.normal((1, 3, asked.frames, height, width), "video").clamp(-1, 1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        codecs = {
            "Slice VAE": slice_codec(folder / "slice", asked.slice, asked.tile, device),
            "CogVideoX": published_codec(folder / "published", device),
        }
        assert isinstance(codecs["Slice VAE"], SliceCodec)
        assert isinstance(codecs["CogVideoX"], CogVideoXCodec)
        work = {name: flops(codec, video) for name, codec in codecs.items()}  # this also warms up both codecs
        latents = {name: codec.encode(video) for name, codec in codecs.items()}
        times: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for _ in range(asked.rounds):
            for name, codec in codecs.items():
                encode = partial(codec.encode, video)
                decode = partial(codec.decode, latents[name], asked.frames)
                times.setdefault((name, "encode"), []).append(timed(encode, device))
                times.setdefault((name, "decode"), []).append(timed(decode, device))
    peak = peak_flops(device)
    print(f"{asked.frames} frames of {width}x{height} on {device}, {torch.get_num_threads()} threads")
    for (name, kind), rounds in times.items():
        seconds, memory = min(rounds)
        count = work[name][kind == "decode"]
        share = f", {count / seconds / peak:.0%} of the device's peak, {memory:.1f} GB" if peak else ""
        print(f"{name} {kind}: {seconds:.2f} s, {count / 1e12:.2f} TFLOP{share}")
    for kind in ("encode", "decode"):
        ours, theirs = (min(times[name, kind])[0] for name in ("Slice VAE", "CogVideoX"))
        print(f"{kind}: Slice VAE takes {ours / theirs:.2f} times as long as CogVideoX's")


if __name__ == "__main__":
    main()
