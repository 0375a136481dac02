"""A language model of transformers on this machine, which answers texts. Used for rewriting captions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from captioning.base import CaptionerMissing
from captioning.local.source import Source, locate

if TYPE_CHECKING:
    from captioning.local.generate import Generator

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextSettings:
    """A model and its decoding. `setting` is the user's section that names the model; errors repeat it."""

    model: str  # a model on the hub, or a folder
    revision: str | None = None  # branch, tag or commit on the hub
    max_tokens: int = 512  # per answer
    batch: int = 16  # texts per batch; halved while memory is not sufficient
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    temperature: float = 0.0  # above 0: tokens are drawn; the draws depend on seed and text
    seed: int = 0
    repetition_penalty: float | None = None  # None: the recommendation of the model's authors
    setting: str = "captions.rewrite"


class TextModel:
    """Answers texts with a model, which the first call loads.

    An answer does not depend on the other texts of the call. The model is a causal language model, used with
    its chat template if it has one, or a vision-language model without pictures.
    """

    def __init__(self, settings: TextSettings):
        self.settings = settings

    def check(self) -> None:
        """Check the files other than the weights. Raises `CaptionerMissing`."""
        _auto(self._source, self.settings.setting)
        _tokenizer(self._source, self.settings.setting)

    @property
    def revision(self) -> str | None:
        """The model's commit on the hub; None for a folder."""
        return self._source.revision

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Raw answers in the order of `texts`.

        An answer is empty if memory was not sufficient or the text was too long. Raises `CaptionerMissing`
        if the model cannot be loaded.
        """
        from captioning.local.generate import Decoding, Unsaid

        settings = self.settings
        decoding = Decoding(
            settings.max_tokens, settings.temperature, settings.seed, settings.repetition_penalty
        )
        # Texts of similar length share a batch, which needs less padding.
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
        from captioning.local import generate

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
                    enable_thinking=False,  # for templates of reasoning models: only the answer is needed
                )
                for text in texts
            ]
        made: Mapping[str, Any] = tokenizer(
            asked,
            padding=True,
            padding_side="left",
            add_special_tokens=not tokenizer.chat_template,  # templates add special tokens themselves
            return_tensors="pt",
            return_token_type_ids=False,
        )
        return made


def _harmless(text: str, tokenizer: Any) -> str:
    """A text without special tokens, so that a caption cannot end its turn of the conversation."""
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            text = text.replace(token.content, " ")
    return text


def _tokenizer(source: Source, setting: str) -> Any:
    from transformers import AutoTokenizer

    from captioning.local import generate

    try:
        return AutoTokenizer.from_pretrained(
            source.name,
            revision=source.revision,
            trust_remote_code=False,  # else transformers asks, on the terminal
        )
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        raise generate.unloadable(error, source, setting, "eager") from error


def _auto(source: Source, setting: str) -> Any:
    """The Auto class of transformers for the model's type. Raises `CaptionerMissing` for other types."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto as known

    kind = source.config["model_type"]
    if kind in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForCausalLM
    if kind in known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return AutoModelForImageTextToText
    raise CaptionerMissing(
        f"{setting}.model: {source.name} has the type {kind}, which transformers does not load as a "
        "language model; name an instruction-tuned model, such as Qwen/Qwen3-4B-Instruct-2507"
    )
