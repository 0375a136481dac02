"""Sampling and training of both stages: seconds, share of the roofline and peak memory, beside diffusers.

Weights are random and texts are noise, so that anyone can repeat the measurement. Ray is not needed. The
roofline is the rate of a large matrix product in the network's precision, measured in the same run. A network
that consists of this product only would reach 100 %. For comparison, the stock `CogVideoXTransformer3DModel`
of the same sizes runs in `CogVideoXPipeline`, in turns with reelmill's sampler, and in a plain training step.
Seconds are the best of `--rounds`. The column "of diffusers'" is reelmill's time over diffusers' time in the
same round: the median over rounds, with minimum and maximum in brackets. A GPU has no memory for two
trainings, so they run in sequence, and the column is the ratio of the best rounds.

    python -m benchmarks.generation                                       # tiny: a minute on an idle core
    python -m benchmarks.generation --compile                             # three: compiling takes longer
    python -m benchmarks.generation --preset small                        # many minutes on a CPU
    python -m benchmarks.generation --preset flashvideo --compile         # on a GPU of 80 GB or more
    python -m benchmarks.generation --preset flashvideo-fast --stage stage2 --size 540p --size 1080p
    python -m benchmarks.generation --preset flashvideo --whole           # both stages with the codec

Peak memory is the network's weights, the optimiser and all other live tensors. On a CPU it is counted per
operation. The share of a training step is the MFU: recomputation is not counted as work.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.vae import published_codec
from generation import draws
from generation.codecs.base import Codec
from generation.codecs.footprint import Footprint
from generation.codecs.open import open_codec
from generation.config import Bucket, Config, Lora, Sampling
from generation.device import free, peak_flops, uses_bf16
from generation.models import cogvideox, lora
from generation.models.cogvideox import video_tokens
from generation.presets import preset
from generation.process import stage1, stage2
from generation.process.diffusion import timesteps
from generation.train.parallel import join

SIZES = {
    "tiny": Bucket(frames=9, height=32, width=48),
    "small": Bucket(frames=25, height=128, width=224),
    "270p": Bucket(frames=49, height=256, width=480),
    "540p": Bucket(frames=49, height=528, width=960),
    "1080p": Bucket(frames=49, height=1072, width=1920),
}
TEXT_DIM = {"minilm": 384, "t5": 4096}
PUBLISHED_S = {
    "stage1": 30.1,
    "stage2": 72.2,
}  # only evaluations; the paper does not name the device (arXiv 2502.05179)


@dataclass
class Case:
    """One measurement. The printed peak memory includes `weights`, which are always in memory."""

    name: str
    tokens: int
    flops: float
    evaluations: int
    weights: int  # bytes
    action: Callable[[], object]
    rounds: list[float] = field(default_factory=list)  # seconds
    peak: float = 0.0  # bytes

    @property
    def seconds(self) -> float:
        return min(self.rounds)


def settings(name: str, stage: str, size: Bucket | None = None) -> Config:
    """The configuration of a preset's stage with random weights at one size."""
    data = preset(name, stage)
    data["transformer"] = {**data["transformer"], "pretrained": None}
    data.pop("phases", None)
    data["data"] = {**data["data"], "buckets": [size.model_dump() if size else data["data"]["buckets"][0]]}
    adapters = data.pop("lora", None)
    config = Config.model_validate(data)
    # Adapters on random weights, which the validation of a configuration would refuse.
    return config.model_copy(update={"lora": Lora.model_validate(adapters)}) if adapters else config


def channels(config: Config) -> int:
    return 16 if config.codec.kind == "cogvideox" else 3 * config.codec.temporal * config.codec.spatial**2


def build(config: Config, dtype: torch.dtype, device: torch.device, stock: bool = False) -> Any:
    """The network. `stock`: as in diffusers' pipeline, with any kernel, not compiled, no noise strength."""
    wanted = config.transformer.model_copy(
        update={"attention": "any", "noise_strength": False} if stock else {}
    )
    grid = config.latent_grid(config.data.buckets[0])
    text_dim = TEXT_DIM[config.text.kind]
    model = cogvideox.build(
        wanted, channels(config), text_dim, config.text.max_tokens, config.codec.temporal, grid, dtype=dtype
    )
    return nn.Module.to(model, device)


def text(config: Config, device: torch.device) -> Tensor:
    return draws.normal((config.text.max_tokens, TEXT_DIM[config.text.kind]), "text").to(device)


def forward_flops(config: Config, shape: Bucket) -> float:
    """The operations of a forward pass for one row of a batch."""
    return cogvideox.flops(
        config.transformer,
        channels(config),
        video_tokens(config, shape),
        config.text.max_tokens,
        TEXT_DIM[config.text.kind],
    )


# ---- sampling


def sampling_cases(config: Config, steps: int, device: torch.device, compiled: bool) -> list[Case]:
    """Sampling with guidance in one batch, in two and without, and diffusers' pipeline with guidance."""
    shape = config.data.buckets[0]
    dtype = torch.bfloat16 if uses_bf16(config.train.precision, device) else torch.float32
    flops, cases = forward_flops(config, shape), []
    ways = [("guidance together", 4.0, False), ("guidance apart", 4.0, True), ("no guidance", 1.0, False)]
    for how in ("", ", compiled") if compiled else ("",):
        model = build(config, dtype, device).eval().requires_grad_(False)
        if how:
            cogvideox.compile_blocks(model.transformer_blocks)
        for name, scale, apart in ways:
            action = sampler(model, config, steps, scale, apart, device)
            rows = 2 if scale != 1 else 1
            cases.append(case(f"{name}{how}", config, rows * flops * steps, steps, model, action))
    stock = build(config, dtype, device, stock=True).eval().requires_grad_(False)
    cases.append(
        case("diffusers' pipeline", config, 2 * flops * steps, steps, stock, pipeline(stock, config, steps))
    )
    return cases


def case(
    name: str, config: Config, flops: float, evaluations: int, model: nn.Module, action: Callable[[], object]
) -> Case:
    count = video_tokens(config, config.data.buckets[0]) + config.text.max_tokens
    weights = sum(p.nbytes for p in model.parameters())
    return Case(name, count, flops, evaluations, weights, action)


def sampler(
    model: nn.Module, config: Config, steps: int, guidance: float, apart: bool, device: torch.device
) -> Callable[[], Tensor]:
    """A function that makes latents (1, C, t, h, w) with the sampler of the stage."""
    grid = config.latent_grid(config.data.buckets[0])
    way = Sampling(steps=steps, guidance=guidance, shift=config.sampling.shift)
    words, size = text(config, device), (channels(config), *grid)
    if config.stage == "stage1":
        return lambda: stage1.sample(
            model, config.objective, way, size, words, None, "benchmark", device=device, apart=apart
        )
    low = draws.normal((1, *size), "low").to(device)
    return lambda: stage2.sample(model, way, low, 675, words, None, "benchmark", apart=apart)


def pipeline(model: Any, config: Config, steps: int) -> Callable[[], object]:
    """A function that samples with diffusers' pipeline: guidance in one batch, its own DPM solver, without
    text encoder and decoding."""
    from diffusers import CogVideoXDPMScheduler, CogVideoXPipeline

    made: Any = CogVideoXPipeline(None, None, None, model, CogVideoXDPMScheduler())
    made.set_progress_bar_config(disable=True)
    t, h, w = config.latent_grid(config.data.buckets[0])
    words = text(config, model.device).to(model.dtype)[None]
    return lambda: made(
        prompt_embeds=words,
        negative_prompt_embeds=torch.zeros_like(words),
        num_frames=(t - 1) * 4 + 1,
        height=h * 8,  # the pipeline's own autoencoder would reduce sides by 8
        width=w * 8,
        num_inference_steps=steps,
        guidance_scale=4.0,
        output_type="latent",
    )


# ---- training


def training_case(name: str, config: Config, device: torch.device) -> Case:
    """A training step with its optimiser, for reelmill's network or for the stock model."""
    stock = "diffusers" in name
    frozen = config.lora is not None and uses_bf16(config.train.precision, device)
    model = build(config, torch.bfloat16 if frozen else torch.float32, device, stock).train()
    if config.lora:
        lora.add(model, config.lora, 0)
    if "compiled" in name:
        cogvideox.compile_blocks(model.transformer_blocks)
    cost = (2 if config.lora else 3) * forward_flops(config, config.data.buckets[0]) * config.train.batch_size
    found = case(name, config, cost, 1, model, step(model, config, device, stock))
    found.weights += 8 * sum(p.numel() for p in model.parameters() if p.requires_grad)  # Adam's moments
    return found


def training(names: Sequence[str], config: Config, device: torch.device, rounds: int) -> list[Case]:
    """Measure training cases: in turns on a CPU, which others may share; in sequence on a GPU, which has no
    memory for two models with their optimisers."""
    if device.type == "cpu":
        cases = [training_case(name, config, device) for name in names]
        measure(cases, device, rounds)
        return cases
    done = []
    for name in names:
        measured = training_case(name, config, device)
        measure([measured], device, rounds)
        done.append(replace(measured, action=lambda: None))  # the action keeps the model in memory
        del measured
        free(device)
    return done


def step(model: nn.Module, config: Config, device: torch.device, stock: bool) -> Callable[[], None]:
    batch, grid = config.train.batch_size, config.latent_grid(config.data.buckets[0])
    clean = draws.normal((batch, channels(config), *grid), "clean").to(device)
    words, keys = [text(config, device)] * batch, [(i,) for i in range(batch)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    bf16 = uses_bf16(config.train.precision, device)

    def losses() -> Tensor:
        if config.stage == "stage1" or stock:
            return stage1.loss(model, config.objective, clean, words, [0.5] * batch, keys)
        return stage2.loss(model, clean, clean, words, [0.5] * batch, [675] * batch, keys)

    def act() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = losses().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return act


# ---- both stages


@dataclass(frozen=True)
class Part:
    seconds: float
    peak: int  # bytes; 0: unknown


def whole(name: str, device: torch.device) -> None:
    """Time each part from noise to frames, at the preset's sizes, steps and guidance."""
    parts: dict[str, Part] = {}
    with tempfile.TemporaryDirectory() as folder:
        first, second = settings(name, "stage1"), settings(name, "stage2")
        latents = evaluations(first, device, parts)
        codec = random_codec(first, Path(folder) / "first", device)
        video = timed("decode", parts, device, lambda: codec.decode(latents, first.data.buckets[0].frames))
        codec = random_codec(second, Path(folder) / "second", device)
        shape = second.data.buckets[0]
        scaled = stage2.resize(video, shape.height, shape.width)
        timed("encode, large", parts, device, lambda: codec.encode(scaled))
        latents = evaluations(second, device, parts)
        timed(
            "decode, large",
            parts,
            device,
            lambda: [p.cpu() for p in codec.decode_stream(latents, shape.frames)],
        )
    for what, part in parts.items():
        size, unit = scale([part.peak], BYTES)
        print(f"{what:<16} {part.seconds:9.2f} s" + (f" {part.peak / size:9.2f} {unit}" if part.peak else ""))
    alone = parts["stage1"].seconds + parts["stage2"].seconds
    everything = sum(part.seconds for part in parts.values())
    print(f"{'evaluations':<16} {alone:9.2f} s   {'with the codec':<14} {everything:9.2f} s")
    if name.startswith("flashvideo"):
        told = sum(PUBLISHED_S.values())
        print(f"FlashVideo reports {told:.1f} s for the evaluations ({PUBLISHED_S}), on an unnamed device")


def evaluations(config: Config, device: torch.device, parts: dict[str, Part]) -> Tensor:
    dtype = torch.bfloat16 if uses_bf16(config.train.precision, device) else torch.float32
    model = build(config, dtype, device).eval().requires_grad_(False)
    way = config.sampling
    run = sampler(model, config, way.steps, way.guidance, False, device)
    sampler(model, config, 1, way.guidance, False, device)()  # warm
    found: Tensor = timed(config.stage, parts, device, run)
    return found


def random_codec(config: Config, folder: Path, device: torch.device) -> Codec:
    if config.codec.kind == "cogvideox":
        chosen = {"std": config.codec.std, "tile": config.codec.tile}
        return published_codec(folder, device, **chosen)
    return open_codec(config.codec, device)


def timed(name: str, parts: dict[str, Part], device: torch.device, action: Callable[[], Any]) -> Any:
    wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    with torch.no_grad():
        found = action()
    wait(device)
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    parts[name] = Part(seconds, peak)
    free(device)
    return found


# ---- measuring


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def roofline(device: torch.device, dtype: torch.dtype) -> tuple[float, int]:
    """FLOP/s of a product of two n x n matrices, and n: the best of ten."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = (draws.normal((n, n), "matrix", k).to(device, dtype) for k in range(2))
    best = math.inf
    for _ in range(10):
        wait(device)
        began = time.perf_counter()
        a @ b
        wait(device)
        best = min(best, time.perf_counter() - began)
    return 2.0 * n**3 / best, n


def measure(cases: Sequence[Case], device: torch.device, rounds: int) -> None:
    """Warm up and measure memory, then measure seconds in turns."""
    for it in cases:
        if device.type == "cuda":
            it.action()
            gc.collect()
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            it.action()
            it.peak = it.weights + torch.cuda.max_memory_allocated(device) - before
        else:
            it.action()
            with Footprint() as counted:
                it.action()
            it.peak = it.weights + counted.peak
    for _ in range(rounds):
        for it in cases:
            wait(device)
            began = time.perf_counter()
            it.action()
            wait(device)
            it.rounds.append(time.perf_counter() - began)


def scale(values: Sequence[float], units: Sequence[tuple[float, str]]) -> tuple[float, str]:
    """The largest unit in which the smallest value is at least one; otherwise the last unit."""
    return next((unit for unit in units if min(values) >= unit[0]), units[-1])


FLOPS = ((1e12, "TFLOP"), (1e9, "GFLOP"))
BYTES = ((1e9, "GB"), (1e6, "MB"))


def of_theirs(it: Case, theirs: Case, in_turns: bool) -> str:
    """Reelmill's time per evaluation over diffusers' time: per round if they ran in turns, otherwise of the
    best rounds."""
    fair = theirs.evaluations / it.evaluations
    if not in_turns:
        return f"{fair * it.seconds / theirs.seconds:.2f} (bests)"
    ratios = [fair * a / b for a, b in zip(it.rounds, theirs.rounds, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def table(title: str, cases: Sequence[Case], roof: float, unit: str, in_turns: bool = True) -> None:
    rate, per_second = scale([roof], FLOPS)
    work, flop = scale([it.flops / it.evaluations for it in cases], FLOPS)
    memory, size = scale([it.peak for it in cases], BYTES)
    theirs = next(it for it in cases if "diffusers" in it.name)
    print(f"\n{title}; roofline {roof / rate:.1f} {per_second}/s")
    print(
        f"{'':<28} {'tokens':>8} {flop:>10} {unit:>12} {'roofline':>9} {'peak ' + size:>9}  "
        f"{'of diffusers' + chr(39):>18}"
    )
    for it in cases:
        each = it.seconds / it.evaluations
        share = it.flops / it.seconds / roof
        ratio = "1" if it is theirs else of_theirs(it, theirs, in_turns)
        print(
            f"{it.name:<28} {it.tokens:8d} {it.flops / it.evaluations / work:10.2f} {each:12.3f} "
            f"{share:9.1%} {it.peak / memory:9.2f}  {ratio:>18}",
            flush=True,
        )


# ---- the command


def counted(given: str) -> int:
    if not given.isdecimal() or int(given) < 1:
        raise argparse.ArgumentTypeError(f"{given}: an integer of 1 or more")
    return int(given)


def command() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.generation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--stage", choices=("stage1", "stage2"), help="default: both")
    parser.add_argument(
        "--size", choices=sorted(SIZES), action="append", help="default: the size of the stage"
    )
    parser.add_argument("--steps", type=counted, help="evaluations per sampling; default: 2")
    parser.add_argument("--rounds", type=counted, help="default: 5 on a CPU, 3 on a GPU")
    parser.add_argument("--compile", action="store_true", help="also with compiled blocks")
    parser.add_argument("--no-training", action="store_true")
    parser.add_argument(
        "--whole",
        action="store_true",
        help="only both stages with the codec, at the preset's sizes and steps; "
        "can be combined with --preset and --device only",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"))
    return parser


@dataclass(frozen=True)
class Asked:
    args: argparse.Namespace
    device: torch.device
    configs: list[Config]  # each stage and size


def asked() -> Asked:
    """The options of the command, checked before measuring."""
    parser = command()
    args = parser.parse_args()
    if args.whole:
        others = ("stage", "size", "steps", "rounds", "compile", "no_training")
        ignored = [f"--{name.replace('_', '-')}" for name in others if getattr(args, name)]
        if ignored:
            parser.error(
                f"--whole can be combined with --preset and --device only, not with {', '.join(ignored)}"
            )
    try:
        configs = [
            settings(args.preset, stage, SIZES[size] if size else None)
            for stage in ([args.stage] if args.stage else ["stage1", "stage2"])
            for size in args.size or [None]
        ]
        args.steps = args.steps or 2
        timesteps(args.steps)
        device = join(args.device).device
    except ValueError as error:
        parser.error(str(error))
    args.rounds = args.rounds or (5 if device.type == "cpu" else 3)
    return Asked(args, device, configs)


def main() -> None:
    found = asked()
    args, device = found.args, found.device
    dtype = torch.bfloat16 if uses_bf16(found.configs[0].train.precision, device) else torch.float32
    roof, n = roofline(device, dtype)
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    peak = peak_flops(device)
    print(f"{args.preset} on {where}, {dtype}, PyTorch {torch.__version__}")
    print(f"roofline: a product of {n} x {n}" + (f"; data sheet {peak / 1e12:.0f} TFLOP/s" if peak else ""))
    if args.whole:
        whole(args.preset, device)
        return
    in_turns = device.type == "cpu"  # see `training`
    print(f"of diffusers': reelmill over diffusers, the median of {args.rounds} rounds (minimum-maximum)")
    if not (in_turns or args.no_training):
        print("training on a GPU runs in sequence, so its ratio is that of the best rounds")
    for config in found.configs:
        shape = config.data.buckets[0]
        title = f"{config.stage}, {shape.frames} frames of {shape.width}x{shape.height}"
        cases = sampling_cases(config, args.steps, device, args.compile)
        measure(cases, device, args.rounds)
        roof = max(roof, roofline(device, dtype)[0])  # the load of the machine may change
        table(f"{title}: sampling", cases, roof, "s/evaluation")
        del cases
        free(device)
        if not args.no_training:
            names = ("step", *["step, compiled"] * args.compile, "step, diffusers' model")
            cases = training(names, config, device, args.rounds)
            batch = config.train.batch_size
            roof = max(roof, roofline(device, dtype)[0])
            table(f"{title}: training, batch {batch}", cases, roof, "s/step", in_turns)


if __name__ == "__main__":
    main()
