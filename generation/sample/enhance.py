"""Stage II makes a larger video from a preview or from any video file.

A preview is decoded from its latents, with the codec that made the latents. So the result is the same whether
the preview was made in this process or in another process.
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

_MANY_FRAMES = 257  # more frames must be asked for


@dataclass(frozen=True)
class Source:
    """A low-quality video to enhance. Its facts are known before it is decoded."""

    shape: tuple[int, int, int]  # frames, height, width
    decode: Callable[[], Tensor]  # returns `video`
    fps: float  # frames per second
    prompt: str
    negative_prompt: str
    seed: int

    @cached_property
    def video(self) -> Tensor:
        """The video (1, 3, T, H, W) in [-1, 1]. Raises `ValueError` when a preview's codec has changed."""
        return self.decode()


def open_source(
    path: Path,
    device: torch.device,
    options: Options,
    prompt: str | None,
    codecs: dict[str, Codec] | None = None,
    how: Execution = Execution(),  # noqa: B008 (frozen)
) -> Source:
    """Open a preview (its folder or a file in the folder), or any video file.

    codecs: open codecs by hash. The preview's codec is added when the preview is decoded.
    Raises `ValueError` when `path` cannot be read, and when a video file comes without a prompt.
    """
    if path.is_dir() or is_preview(path):
        if options.fps:
            raise ValueError(f"{path}: a preview has its own frame rate; leave --fps out")
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
        raise ValueError(f"{path}: a video file needs --prompt, which says what the video shows")
    found = read_video(path, fps=options.fps, frames=options.frames or _MANY_FRAMES + 1)
    if not options.frames and len(found.frames) > _MANY_FRAMES:
        raise ValueError(
            f"{path}: the video has more than {_MANY_FRAMES} frames; give their number with --frames, or "
            "fewer frames per second with --fps"
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
                f"{path}: the latents were made with codec {preview.codec_hash}, but {dict(preview.codec)} "
                f"now opens codec {codec.hash}; take the same weights"
            )
        settle(codec, how)
        codecs[codec.hash] = codec
    with visiting(codec, device, how), torch.no_grad():
        return codec.decode(latents.to(device), preview.frames)


@dataclass(frozen=True)
class Plan:
    """How a source is enhanced: everything that decides the result, besides source and weights."""

    shape: Bucket
    sampling: Sampling
    noise_step: int
    negative_prompt: str
    seed: int
    fit: memory.Fit  # this decides only the rounding


def plan_enhance(
    trained: Trained,
    source: Source,
    options: Options,
    how: Execution = Execution(),  # noqa: B008 (frozen)
) -> Plan:
    """Plan how to enhance a source. Without --frames, the codec's stride decides how many frames are used.

    Raises `ValueError` for sizes that the stage cannot make, or that do not fit the memory.
    """
    config = trained.config
    stride = config.codec.frame_stride
    frames, height, width = source.shape
    possible = (frames - 1) // stride * stride + 1
    shape = options.shape(config, (possible, height, width))
    if shape.frames > possible:
        raise ValueError(
            f"the asked-for video has {shape.frames} frames, but the source has {frames}; take {possible}"
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
    """Enhance a video with Stage II. Returns the latents (1, C, t, h, w) of the larger video."""
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
    """Scale a video (1, 3, T, H, W) to a shape, and encode it: latents (1, C, t, h, w).

    The scaled video is released before the network is loaded.
    """
    with visiting(trained.codec, trained.device, how), torch.no_grad():
        return trained.codec.encode(stage2.resize(video[:, :, : shape.frames], shape.height, shape.width))


def check_final(
    run: Path,
    previews: Options,
    finals: Options,
    device: torch.device,
    how: Execution = Execution(),  # noqa: B008 (frozen)
) -> None:
    """Raises `ValueError` when Stage II cannot enhance such previews, before Stage I runs for hours."""
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
    """Make final.mp4 in each preview's folder. Returns these files.

    A final video is kept if final.json says that it was made in the same way.
    """
    trained = open_trained(run, "stage2", device)
    model = None
    codecs = {trained.codec.hash: trained.codec}
    previews = [load_preview(folder)[0] for folder in folders]
    # All plans are made before the network is loaded, as its memory would count as used.
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
        # This decodes the source. If it fails, nothing was removed and no network was loaded.
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
    """Enhance one preview or any video file. Returns the written file.

    out: None means final.mp4 in the preview's folder. Raises `ValueError` for a bad source or bad options.
    """
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or folder")
    preview = path.is_dir() or is_preview(path)
    if out is None:
        if not preview:
            raise ValueError(f"{path}: a video file needs --out, the name of the new file")
        if prompt is None:
            folder = path if path.is_dir() else path.parent
            return enhance_previews(run, [folder], options, device, on_step, say, how)[0]
        out = (path if path.is_dir() else path.parent) / "final.mp4"
    trained = open_trained(run, "stage2", device)
    source = open_source(path, device, options, prompt, {trained.codec.hash: trained.codec}, how)
    plan = plan_enhance(trained, source, options, how)
    settle(trained.codec, how)
    assert tuple(source.video.shape[2:]) == source.shape  # this decodes the source, as above
    out.parent.mkdir(parents=True, exist_ok=True)
    if preview:
        (out.parent / "final.json").unlink(missing_ok=True)  # final.json would describe another final.mp4
    say(_told(trained, plan))
    _embed(trained, [source.prompt], [plan.negative_prompt], options)
    latents = enhance(trained, trained.model(how), source, plan, named(on_step, "enhance"), how)
    _write(out, trained, latents, plan, source.fps, how)
    return out


def _embed(trained: Trained, prompts: Sequence[str], negatives: Sequence[str], options: Options) -> None:
    """Embed all texts that will be needed, then release the text encoder before the network is loaded."""
    own = options.sampling(trained.config)
    trained.text.get([*map(own.told, prompts), *negatives, own.negative_prompt])
    trained.text.release()


def _write(path: Path, trained: Trained, latents: Tensor, plan: Plan, fps: float, how: Execution) -> None:
    with visiting(trained.codec, trained.device, how), torch.no_grad():
        write_mp4(path, pieces_of(trained.codec, latents, plan.shape.frames), fps)


def _told(trained: Trained, plan: Plan) -> str:
    """Lines about the size of the work and the memory."""
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
