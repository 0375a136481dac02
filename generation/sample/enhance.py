"""Stage II on previews, and on any video: from the smaller one to the larger.

A preview is decoded from its latents, with the codec that made them; the result does not depend on whether
it was made in this process or in another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from generation.codecs.base import Codec
from generation.codecs.open import open_codec
from generation.config import Bucket, Sampling
from generation.config import Codec as CodecConfig
from generation.disk import write_text
from generation.media import from_uint8, read_video, write_mp4
from generation.models import cogvideox
from generation.models.cogvideox import tokens
from generation.process import stage2
from generation.run import read_config
from generation.sample import memory
from generation.sample.execution import Execution, visiting
from generation.sample.options import Options, Step, named, silent
from generation.sample.preview_folder import Preview, is_preview, load_preview
from generation.sample.previews import check_memory, pieces_of, settle
from generation.sample.trained import Trained, open_trained

_MANY_FRAMES = 257  # nobody enhances more in one go by mistake


@dataclass(frozen=True)
class Source:
    """A low-quality video to enhance, and what is known of it before it is decoded."""

    shape: tuple[int, int, int]  # frames, height, width
    decode: Callable[[], Tensor]
    fps: float
    prompt: str
    negative_prompt: str
    seed: int

    @cached_property
    def video(self) -> Tensor:
        """(1, 3, T, H, W) in [-1, 1]. Raises `ValueError` for a preview whose codec is not there any more."""
        return self.decode()


def open_source(
    path: Path,
    device: torch.device,
    options: Options,
    prompt: str | None,
    codecs: dict[str, Codec] | None = None,
    how: Execution = Execution(),  # noqa: B008 (frozen)
) -> Source:
    """A preview's folder (or a file in it), to be decoded from its latents; or any video file.

    codecs: those that are open, by hash; gets the preview's, when it is decoded.
    Raises `ValueError` when it is neither, or a video file comes without a prompt.
    """
    if path.is_dir() or is_preview(path):
        if options.fps:
            raise ValueError(f"{path}: a preview has a frame rate of its own; leave --fps out")
        preview, latents = load_preview(path)
        return Source(
            shape=(preview.frames, preview.height, preview.width),
            decode=lambda: _decoded(path, preview, latents, device, {} if codecs is None else codecs, how),
            fps=preview.fps,
            prompt=prompt or preview.prompt,
            negative_prompt=preview.negative_prompt,
            seed=preview.seed,
        )
    if prompt is None:
        raise ValueError(f"{path}: a video file needs --prompt, which says what it shows")
    found = read_video(path, fps=options.fps, frames=options.frames or _MANY_FRAMES + 1)
    if not options.frames and len(found.frames) > _MANY_FRAMES:
        raise ValueError(
            f"{path}: it has more than {_MANY_FRAMES} frames; say with --frames how many of them, or take "
            "fewer a second with --fps"
        )
    count, height, width = found.frames.shape[:3]
    return Source(
        shape=(count, height, width),
        decode=lambda: from_uint8(found.frames)[None].to(device),
        fps=found.fps,
        prompt=prompt,
        negative_prompt="",
        seed=0,
    )


def _decoded(
    path: Path,
    preview: Preview,
    latents: Tensor,
    device: torch.device,
    codecs: dict[str, Codec],
    how: Execution,
) -> Tensor:
    codec = codecs.get(preview.codec_hash)
    if codec is None:
        codec = open_codec(CodecConfig.model_validate(preview.codec), device)
        if codec.hash != preview.codec_hash:
            raise ValueError(
                f"{path}: its latents were made with codec {preview.codec_hash}, and {dict(preview.codec)} "
                f"opens {codec.hash} now: take the same weights"
            )
        settle(codec, how)
        codecs[codec.hash] = codec
    with visiting(codec, device, how), torch.no_grad():
        return codec.decode(latents.to(device), preview.frames)


@dataclass(frozen=True)
class Plan:
    """How a source will be enhanced: all that decides the result, besides the source and the weights."""

    shape: Bucket
    sampling: Sampling
    noise_step: int
    negative_prompt: str
    seed: int
    fit: memory.Fit  # which decides the rounding alone


def plan_enhance(
    trained: Trained,
    source: Source,
    options: Options,
    how: Execution = Execution(),  # noqa: B008 (frozen)
) -> Plan:
    """The number of frames is cut to what the codec's stride allows, unless it is asked for.

    Raises `ValueError` for sizes that the stage cannot make, or that memory does not hold.
    """
    config = trained.config
    stride = config.codec.frame_stride
    frames, height, width = source.shape
    possible = (frames - 1) // stride * stride + 1
    shape = options.shape(config, (possible, height, width))
    if shape.frames > possible:
        raise ValueError(
            f"the asked-for video: {shape.frames} frames, but the source gives {frames}; take {possible}"
        )
    sampling = options.sampling(config)
    fit = check_memory(trained, shape, sampling, how)
    length = tokens(trained.codec.grid(shape.frames, shape.height, shape.width), config.transformer.patch)
    return Plan(
        shape=shape,
        sampling=sampling,
        noise_step=stage2.noise_step(config.degradation, sampling, length),
        negative_prompt=sampling.negative_prompt or source.negative_prompt,
        seed=source.seed if options.seed is None else options.seed,
        fit=fit,
    )


def enhance(
    trained: Trained,
    model: torch.nn.Module,
    source: Source,
    plan: Plan,
    on_step: Callable[[int, int], None] | None = None,
    how: Execution = Execution(),  # noqa: B008 (frozen)
) -> Tensor:
    """Stage II on a video: the latents (1, C, t, h, w) of the larger one."""
    negative = plan.negative_prompt
    embedded = trained.text.get([plan.sampling.told(source.prompt), *([negative] if negative else [])])
    low_quality = _encoded(trained, source.video, plan.shape, how)
    with visiting(model, trained.device, how):
        return stage2.sample(
            model,
            plan.sampling,
            low_quality,
            plan.noise_step,
            embedded[0],
            embedded[1] if negative else None,
            "stage2",
            plan.seed,
            positions=trained.config.transformer.positions,
            on_step=on_step,
            apart=plan.fit.apart,
        )


def _encoded(trained: Trained, video: Tensor, shape: Bucket, how: Execution) -> Tensor:
    """The latents of a video that is scaled to a shape. The large one is gone when the network comes."""
    with visiting(trained.codec, trained.device, how), torch.no_grad():
        return trained.codec.encode(stage2.resize(video[:, :, : shape.frames], shape.height, shape.width))


def check_final(
    run: Path,
    previews: Options,
    finals: Options,
    device: torch.device,
    how: Execution = Execution(),  # noqa: B008 (frozen)
) -> None:
    """Raises `ValueError` for what Stage II could not make of such previews, before hours of Stage I."""
    trained = open_trained(run, "stage2", device)
    small = previews.shape(read_config(run, "stage1"))
    shape = finals.shape(trained.config, (small.frames, small.height, small.width))
    sampling = finals.sampling(trained.config)
    check_memory(trained, shape, sampling, how)


def enhance_previews(
    run: Path,
    folders: Sequence[Path],
    options: Options,
    device: torch.device,
    on_step: Step = silent,
    say: Callable[[str], None] = lambda text: None,
    how: Execution = Execution(),  # noqa: B008 (frozen)
) -> list[Path]:
    """The final.mp4 of each preview's folder. One that was made in the same way is kept: final.json tells."""
    trained = open_trained(run, "stage2", device)
    model = None
    codecs = {trained.codec.hash: trained.codec}
    previews = [load_preview(folder)[0] for folder in folders]
    # All of them now: once the network is there, its own memory would count as taken.
    plans = [
        plan_enhance(trained, open_source(folder, device, options, None), options, how) for folder in folders
    ]
    settle(trained.codec, how)
    _embed(trained, [p.prompt for p in previews], [p.negative_prompt for p in previews], options)
    for k, (folder, plan) in enumerate(zip(folders, plans, strict=True)):
        source = open_source(folder, device, options, None, codecs, how)
        about = {"stage2_hash": trained.hash, "precision": trained.precision, **_plain(plan)}
        record = folder / "final.json"
        if (folder / "final.mp4").exists() and _is(record, about):
            continue
        # Decoded here: it may fail, and then nothing is removed and no network was loaded.
        assert tuple(source.video.shape[2:]) == source.shape
        say(_told(trained, plan))
        record.unlink(missing_ok=True)
        model = model or trained.model(how)
        what = f"final {k + 1} of {len(folders)}"
        latents = enhance(trained, model, source, plan, named(on_step, what), how)
        _write(folder / "final.mp4", trained, latents, plan, source.fps, how)
        write_text(record, json.dumps(about, indent=1))
    return [folder / "final.mp4" for folder in folders]


def enhance_file(
    run: Path,
    path: Path,
    out: Path | None,
    options: Options,
    prompt: str | None,
    device: torch.device,
    on_step: Step = silent,
    how: Execution = Execution(),  # noqa: B008 (frozen)
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Enhance one preview, or any video file. `out` None: final.mp4 in the preview's folder."""
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or folder")
    preview = path.is_dir() or is_preview(path)
    if out is None:
        if not preview:
            raise ValueError(f"{path}: a video file needs --out, the file to write")
        if prompt is None:
            folder = path if path.is_dir() else path.parent
            return enhance_previews(run, [folder], options, device, on_step, say, how)[0]
        out = (path if path.is_dir() else path.parent) / "final.mp4"
    trained = open_trained(run, "stage2", device)
    source = open_source(path, device, options, prompt, {trained.codec.hash: trained.codec}, how)
    plan = plan_enhance(trained, source, options, how)
    settle(trained.codec, how)
    assert tuple(source.video.shape[2:]) == source.shape  # decoded here, as above
    out.parent.mkdir(parents=True, exist_ok=True)
    if preview:
        (out.parent / "final.json").unlink(missing_ok=True)  # it would tell of another final.mp4
    say(_told(trained, plan))
    _embed(trained, [source.prompt], [plan.negative_prompt], options)
    latents = enhance(trained, trained.model(how), source, plan, named(on_step, "enhance"), how)
    _write(out, trained, latents, plan, source.fps, how)
    return out


def _embed(trained: Trained, prompts: Sequence[str], negatives: Sequence[str], options: Options) -> None:
    """Embed all that will be asked for, and let go of the encoder before the network comes."""
    own = options.sampling(trained.config)
    trained.text.get([*map(own.told, prompts), *negatives, own.negative_prompt])
    trained.text.release()


def _write(path: Path, trained: Trained, latents: Tensor, plan: Plan, fps: float, how: Execution) -> None:
    with visiting(trained.codec, trained.device, how), torch.no_grad():
        write_mp4(path, pieces_of(trained.codec, latents, plan.shape.frames), fps)


def _told(trained: Trained, plan: Plan) -> str:
    """How much work it is."""
    shape = plan.shape
    length = cogvideox.video_tokens(trained.config, shape)
    return (
        f"{shape.frames} frames of {shape.width}x{shape.height}: {length} tokens, {plan.sampling.steps} "
        f"evaluations, noise step {plan.noise_step}\n{plan.fit.told}"
    )


def _plain(plan: Plan) -> dict[str, object]:
    return {
        "shape": plan.shape.model_dump(),
        "sampling": plan.sampling.model_dump(mode="json"),
        "noise_step": plan.noise_step,
        "negative_prompt": plan.negative_prompt,
        "seed": plan.seed,
    }


def _is(record: Path, about: dict[str, object]) -> bool:
    try:
        return bool(json.loads(record.read_text(encoding="utf-8")) == about)
    except (OSError, ValueError):
        return False
