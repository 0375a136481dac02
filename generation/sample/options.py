"""The options of a user for sampling, and the callback for progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from generation.config import Bucket, Config, Sampling

Step = Callable[[str, int, int], None]  # the work, evaluations done, all evaluations


def silent(what: str, done: int, steps: int) -> None:
    """A callback that reports nothing."""


@dataclass(frozen=True)
class Options:
    """The options of a user. None means the value of the stage's configuration."""

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
        """The stage's sampling settings, with these options in place of theirs. Raises `ValueError`."""
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
                "the negative prompt has no effect without guidance; take a guidance above 1, or leave the "
                "negative prompt out"
            )
        return sampling

    def shape(self, config: Config, like: tuple[int, int, int] | None = None) -> Bucket:
        """Frames and size as asked for, or else of the bucket nearest to `like` (frames, height, width).

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
    """The callback of one piece of work, which `what` names."""
    return lambda done, steps: on_step(what, done, steps)
