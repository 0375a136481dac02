"""Texts to texts by a language model of transformers on this machine: what rewriting captions takes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from captioning.base import CaptionerMissing
from captioning.source import Source, locate

if TYPE_CHECKING:
    from captioning.generate import Generator

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextSettings:
    """Which model, and how it answers. `setting` is where a user has named it: errors do so, too."""

    model: str  # on the hub, or a folder
    revision: str | None = None  # branch, tag or commit on the hub
    max_tokens: int = 512  # of an answer
    batch: int = 16  # texts at once; halved for as long as memory does not suffice
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    temperature: float = 0.0  # above 0 draws, keyed by seed and text
    seed: int = 0
    repetition_penalty: float | None = None  # None: what the model's authors recommend
    setting: str = "captions.rewrite"


class TextModel:
    """Answers to texts, each as if it had been asked alone. The first call loads the model.

    A causal language model, through its chat template if it has one; or a model that looks, unasked to.
    """

    def __init__(self, settings: TextSettings):
        self.settings = settings

    def check(self) -> None:
        """By what there is beside the weights. Raises `CaptionerMissing`."""
        _auto(self._source, self.settings.setting)
        _tokenizer(self._source, self.settings.setting)

    @property
    def revision(self) -> str | None:
        """The model's commit on the hub; None for a folder."""
        return self._source.revision

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Raw answers in the order of `texts`, empty where there is none: not enough memory, a text too long.

        Raises `CaptionerMissing` if the model cannot be loaded.
        """
        from captioning.generate import Decoding, Unsaid

        settings = self.settings
        decoding = Decoding(
            settings.max_tokens, settings.temperature, settings.seed, settings.repetition_penalty
        )
        # Those of like length go together: less padding.
        order = sorted(range(len(texts)), key=lambda k: len(texts[k]))
        asked = [texts[k] for k in order]
        answers = dict(zip(order, self._generator(asked, asked, self._inputs, decoding), strict=True))
        found = []
        for k in range(len(texts)):
            answer = answers[k]
            if isinstance(answer, Unsaid):
                log.warning("No answer to a text of %d characters: %s", len(texts[k]), answer.message)
            found.append("" if isinstance(answer, Unsaid) else answer.text)
        return found

    @cached_property
    def _source(self) -> Source:
        return locate(self.settings.model, self.settings.revision, self.settings.setting)

    @cached_property
    def _generator(self) -> Generator:
        from captioning import generate

        source, settings = self._source, self.settings
        auto = _auto(source, settings.setting)
        tokenizer = _tokenizer(source, settings.setting)
        model = generate.load(
            auto, source, settings.setting, settings.dtype, settings.attention, generate.best_device()
        )
        return generate.Generator(model, tokenizer, settings.batch)

    def _inputs(self, texts: Sequence[str]) -> Mapping[str, Any]:
        tokenizer = self._generator.tokenizer
        asked = list(texts)
        if tokenizer.chat_template:
            asked = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": _harmless(text, tokenizer)}],
                    add_generation_prompt=True,
                    tokenize=False,
                    enable_thinking=False,  # of templates that know the word: the answer is wanted
                )
                for text in texts
            ]
        made: Mapping[str, Any] = tokenizer(
            asked,
            padding=True,
            padding_side="left",
            add_special_tokens=not tokenizer.chat_template,  # templates write them
            return_tensors="pt",
            return_token_type_ids=False,
        )
        return made


def _harmless(text: str, tokenizer: Any) -> str:
    """Without what ends a turn and the like: a caption is no part of the conversation's frame."""
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            text = text.replace(token.content, " ")
    return text


def _tokenizer(source: Source, setting: str) -> Any:
    from transformers import AutoTokenizer

    from captioning import generate

    try:
        return AutoTokenizer.from_pretrained(
            source.name,
            revision=source.revision,
            trust_remote_code=False,  # else transformers asks, on the terminal
        )
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        raise generate.unloadable(error, source, setting, "eager") from error


def _auto(source: Source, setting: str) -> Any:
    """The Auto class for a model's type."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto as known

    kind = source.config["model_type"]
    if kind in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForCausalLM
    if kind in known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return AutoModelForImageTextToText
    raise CaptionerMissing(
        f"{setting}.model: {source.name} is of the type {kind}, which transformers does not load as a "
        "language model; name one tuned to instructions, such as Qwen/Qwen3-4B-Instruct-2507"
    )
