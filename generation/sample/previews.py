"""From prompts to previews, by Stage I; `generation.sample.enhance` makes the final videos of them.

A preview is saved with its latents, so that the dear second stage can run later, in another process, on the
CPU with the same bits as in one go. Networks are loaded one after the other, never two at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from generation.codecs.base import Codec
from generation.config import Bucket, Config, Sampling
from generation.media import to_uint8
from generation.process import stage1
from generation.run import Trained, open_trained
from generation.sample.execution import Execution, free, visiting
from generation.sample.preview_folder import Preview, find_preview, save_preview
from generation.train import memory

Step = Callable[[str, int, int], None]  # what is done, evaluations done, of how many


def silent(what: str, done: int, steps: int) -> None:
    pass


@dataclass(frozen=True)
class Options:
    """What the user asks for; None: as the stage's configuration has it."""

    frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    steps: int | None = None
    guidance: float | None = None
    noise_step: int | None = None  # Stage II
    negative_prompt: str | None = None
    seed: int | None = None  # None: 0, or the preview's

    def sampling(self, config: Config) -> Sampling:
        """The stage's way of sampling with these options laid over it."""
        given = {
            "steps": self.steps,
            "guidance": self.guidance,
            "noise_step": self.noise_step,
            "negative_prompt": self.negative_prompt,
        }
        wanted = {k: v for k, v in given.items() if v is not None}
        sampling = Sampling.model_validate({**config.sampling.model_dump(), **wanted})
        if self.negative_prompt and sampling.guidance == 1.0:
            raise ValueError(
                "the negative prompt: without guidance it has no effect; take a guidance above 1, or "
                "leave it out"
            )
        return sampling

    def shape(self, config: Config, like: tuple[int, int, int] | None = None) -> Bucket:
        """Frames and size: as asked for, else of the bucket nearest to `like` (frames, height, width).

        Raises `ValueError` for frames and sizes that the stage cannot make.
        """
        buckets = [b for b in config.data.buckets if b.frames > 1] or list(config.data.buckets)
        near = buckets[0]
        if like:
            near = min(buckets, key=lambda b: abs(b.width / b.height - like[2] / like[1]))
        shape = Bucket(
            frames=self.frames or (like[0] if like else near.frames),
            height=self.height or near.height,
            width=self.width or near.width,
        )
        config.check_shape(shape, "the asked-for video")
        return shape


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

    Prompt k is drawn with the seed plus k, so that each can be made again alone. Previews that are there
    already are kept. Raises `ValueError` when the run has no Stage I, or cannot make what is asked for.
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
    """A codec was opened on the device: to where it waits."""
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


def named(on_step: Step, what: str) -> Callable[[int, int], None]:
    return lambda done, steps: on_step(what, done, steps)


def pieces_of(codec: Codec, latents: Tensor, frames: int) -> Iterator[np.ndarray]:
    for piece in codec.decode_stream(latents, frames):
        yield to_uint8(piece[0].cpu())


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("reelmill")
    except PackageNotFoundError:  # run from its folder, not installed
        return "not installed"
