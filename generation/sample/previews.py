"""Stage I makes previews from prompts. `generation.sample.enhance` makes the final videos from previews.

A preview is saved with its latents, so that the expensive second stage can run later in another process. On
the CPU the final video has the same bits as in one process. Networks are loaded one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from generation.codecs.base import Codec
from generation.config import Bucket, Sampling
from generation.device import free
from generation.media import to_uint8
from generation.process import stage1
from generation.sample import memory
from generation.sample.execution import Execution, visiting
from generation.sample.options import Options, Step, named, silent
from generation.sample.preview_folder import Preview, find_preview, save_preview
from generation.sample.trained import Trained, open_trained


def sample_previews(
    run: Path,
    prompts: Sequence[str],
    out: Path,
    options: Options,
    device: torch.device,
    on_step: Step = silent,
    say: Callable[[str], None] = lambda text: None,
    how: Execution = Execution(),  # noqa: B008 (frozen)
) -> list[Path]:
    """Make a preview of each prompt: OUT/0000-slug/{preview.mp4, latents.safetensors, preview.json}.

    Prompt k uses the seed plus k, so that each preview can be made again alone. Previews that exist already
    are kept. Returns the folders. Raises `ValueError` when the run has no Stage I, and when Stage I cannot
    make the asked-for videos.
    """
    trained = open_trained(run, "stage1", device)
    shape = options.shape(trained.config)
    sampling = options.sampling(trained.config)
    fit = check_memory(trained, shape, sampling, how)
    say(fit.told)
    wanted = [_preview(trained, prompt, sampling, shape, options, k) for k, prompt in enumerate(prompts)]
    folders = {k: find_preview(out, k, preview) for k, preview in enumerate(wanted)}
    todo = [k for k, found in folders.items() if found is None]
    if todo:
        text = trained.text.get([sampling.told(wanted[k].prompt) for k in todo])
        negative = trained.text.get([sampling.negative_prompt])[0] if sampling.negative_prompt else None
        trained.text.release()
        settle(trained.codec, how)
        model = trained.model(how)
        grid = trained.codec.grid(shape.frames, shape.height, shape.width)
        for k, embedded in zip(todo, text, strict=True):
            with visiting(model, device, how):
                latents = stage1.sample(
                    model,
                    trained.config.objective,
                    sampling,
                    (trained.codec.channels, *grid),
                    embedded,
                    negative,
                    "stage1",
                    wanted[k].seed,
                    positions=trained.config.transformer.positions,
                    device=device,
                    on_step=named(on_step, f"preview {k + 1} of {len(prompts)}"),
                    apart=fit.apart,
                )
            with visiting(trained.codec, device, how), torch.no_grad():
                pieces = pieces_of(trained.codec, latents, shape.frames)
                folders[k] = save_preview(out, k, wanted[k], latents.cpu(), pieces)
            say(f"preview  {folders[k]}")
        del model
        free(device)
    return [folder for folder in folders.values() if folder is not None]


def check_memory(trained: Trained, shape: Bucket, sampling: Sampling, how: Execution) -> memory.Fit:
    """See `memory.check_sampling`."""
    return memory.check_sampling(
        trained.config,
        trained.codec,
        trained.text.dim,
        shape,
        sampling,
        trained.device,
        how.offload,
        how.guidance,
    )


def settle(codec: Codec, how: Execution) -> None:
    """Move a newly opened codec from the device to the CPU if `how` places it there."""
    if how.offload != "none":
        codec.to("cpu")


def _preview(
    trained: Trained, prompt: str, sampling: Sampling, shape: Bucket, options: Options, k: int
) -> Preview:
    return Preview(
        prompt=prompt,
        negative_prompt=sampling.negative_prompt,
        seed=(options.seed or 0) + k,
        frames=shape.frames,
        height=shape.height,
        width=shape.width,
        fps=options.fps or trained.config.data.fps,
        sampling=sampling.model_dump(mode="json"),
        weights_hash=trained.hash,
        precision=trained.precision,
        codec=trained.codec.settings.model_dump(mode="json"),
        codec_hash=trained.codec.hash,
        text_hash=trained.text.hash,
        version=_version(),
    )


def pieces_of(codec: Codec, latents: Tensor, frames: int) -> Iterator[np.ndarray]:
    """Decode latents (1, C, t, h, w) to pieces of the video, each uint8 (n, H, W, 3)."""
    for piece in codec.decode_stream(latents, frames):
        yield to_uint8(piece[0].cpu())


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("reelmill")
    except PackageNotFoundError:  # the program runs from its folder, without an installation
        return "not installed"
