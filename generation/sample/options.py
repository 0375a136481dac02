"""What a user asks of sampling, and how progress is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from generation.config import Bucket, Config, Sampling

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


def named(on_step: Step, what: str) -> Callable[[int, int], None]:
    return lambda done, steps: on_step(what, done, steps)
