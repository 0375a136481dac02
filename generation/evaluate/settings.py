"""The settings of an evaluation, as a typed configuration."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from generation.config import Positive
from generation.evaluate.bars import Bar

# Names of figures, which a group of words must not have.
_TAKEN = {
    *("clip_similarity", "clip_similarity_shuffled_prompts", "direction_by_flow", "frechet", "jointly"),
    *("jointly_over_chance", "kernel_distance", "real_spread", "seen", "shuffled_prompts", "spread"),
    *("stage1_bicubic", "stage1_bicubic_over_static", "standing_still", "two_stage_over_stage1_bicubic"),
    *("unseen", "untrained", "videos"),
}


class Clip(BaseModel):
    """A model of open_clip, which measures how well a video fits its prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    pretrained: str | None = None  # a tag of the model, or a file; null for local-dir:FOLDER


class Settings(BaseModel):
    """The settings of an evaluation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    clips: Positive = 64  # held-out clips: for the autoencoder, and for Stage II
    prompts: Positive = 64  # captions of held-out clips, from which videos are made
    untrained: Annotated[int, Field(ge=0)] = 16  # prompts for an untrained Stage I, as a control
    evaluations: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 4, 8)  # of Stage II
    scale: Annotated[float, Field(gt=1)] = 2.0  # bicubic scales down by this factor, and up again
    attributes: dict[str, Annotated[tuple[str, ...], Field(min_length=2)]] = Field(default_factory=dict)
    focus: str | None = None  # Stage II's figures are of clips with this word in their caption
    swap: dict[str, str] = Field(default_factory=dict)  # word -> other word, for the wrong prompts
    lpips: Literal["alex", "vgg", "squeeze"] | None = None  # torchvision downloads its weights
    clip: Clip | None = None
    extractor: str | None = None  # package.module:factory, for distances of sets; null: the judge
    extractor_weights: str | None = None
    judge_clips: Positive = 2048  # pieces of clips on which the judge is trained
    judge_steps: Positive = 400
    seed: int = 0
    bars: tuple[Bar, ...] = ()

    @model_validator(mode="after")
    def _words(self) -> Settings:
        for name, group in self.attributes.items():
            if not name.isidentifier() or name in _TAKEN or hasattr(nn.ModuleDict(), name):
                raise ValueError(
                    f"attributes.{name}: the name of a group has letters, digits and _, and nothing else may "
                    "have this name; take another name"
                )
            for word in group:
                _check_word(f"attributes.{name}", word)
            if len({word.lower() for word in group}) < len(group):
                raise ValueError(
                    f"attributes.{name}: a word is twice in {', '.join(group)}; write each word once"
                )
        for key, words in (("focus", [self.focus] if self.focus is not None else []), ("swap", self.swap)):
            for word in words:
                _check_word(key, word)
        return self


def _check_word(key: str, word: str) -> None:
    if not re.fullmatch(r"\w+", word):
        raise ValueError(
            f"{key}: {word!r} is not a single word of letters and digits; captions are searched word by word"
        )
