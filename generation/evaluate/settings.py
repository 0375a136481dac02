"""How a run is evaluated: one typed configuration."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from generation.config import Positive
from generation.evaluate.bars import Bar

# Names of figures that stand beside those of the groups of words.
_TAKEN = {
    *("clip_similarity", "clip_similarity_shuffled_prompts", "direction_by_flow", "frechet", "jointly"),
    *("jointly_over_chance", "kernel_distance", "real_spread", "seen", "shuffled_prompts", "spread"),
    *("stage1_bicubic", "stage1_bicubic_over_static", "standing_still", "two_stage_over_stage1_bicubic"),
    *("unseen", "untrained", "videos"),
}


class Clip(BaseModel):
    """A model of open_clip that says how well a video fits its prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    pretrained: str | None = None  # one of its tags, or a file; null: a folder has its own


class Settings(BaseModel):
    """How a run is evaluated."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    clips: Positive = 64  # held-out clips: for the autoencoder, and for Stage II
    prompts: Positive = 64  # captions of held-out clips, that videos are made of
    untrained: Annotated[int, Field(ge=0)] = 16  # of the prompts that an untrained Stage I gets, as a control
    evaluations: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 4, 8)  # of Stage II
    scale: Annotated[float, Field(gt=1)] = 2.0  # of bicubic: down and up again
    attributes: dict[str, Annotated[tuple[str, ...], Field(min_length=2)]] = Field(default_factory=dict)
    focus: str | None = None  # Stage II is told of clips with this word in their caption
    swap: dict[str, str] = Field(default_factory=dict)  # words put in the place of others: the wrong prompt
    lpips: Literal["alex", "vgg", "squeeze"] | None = None  # its weights are a download of torchvision's
    clip: Clip | None = None
    extractor: str | None = None  # package.module:factory, for distances of sets; null: the judge's features
    extractor_weights: str | None = None
    judge_clips: Positive = 2048  # pieces of clips that the judge is trained on
    judge_steps: Positive = 400
    seed: int = 0
    bars: tuple[Bar, ...] = ()

    @model_validator(mode="after")
    def _words(self) -> Settings:
        for name, group in self.attributes.items():
            if not name.isidentifier() or name in _TAKEN or hasattr(nn.ModuleDict(), name):
                raise ValueError(
                    f"attributes.{name}: a group has a name of letters, digits and _ that nothing else has; "
                    "take another"
                )
            for word in group:
                _check_word(f"attributes.{name}", word)
            if len({word.lower() for word in group}) < len(group):
                raise ValueError(
                    f"attributes.{name}: a word comes twice in {', '.join(group)}; write it once"
                )
        for key, words in (("focus", [self.focus] if self.focus is not None else []), ("swap", self.swap)):
            for word in words:
                _check_word(key, word)
        return self


def _check_word(key: str, word: str) -> None:
    if not re.fullmatch(r"\w+", word):
        raise ValueError(
            f"{key}: {word!r} is not one word, of letters and digits, as captions are searched for; name one"
        )
