"""Captions to token states, with T5, with any text encoder of transformers, or with the packaged MiniLM.

Tokens are float32 (L, D) on the CPU, one tensor per caption. With text.padded, L is text.max_tokens and pads
are attended, as published weights expect. Otherwise L is the number of real tokens. Null tokens are zeros.
They stand for a missing caption, an empty caption, or a caption that training drops.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from generation.config import Text, content_hash
from generation.models.hub import first_line
from generation.text.source import locate

log = logging.getLogger(__name__)
_MOST_CHARS = 100  # of a caption that are looked at, for each token that is read: far more than any has


_OWN_CODE = (
    "text.model: {} comes with code of its own, which is never run; name a model that transformers knows"
)


def _wants_to_run(error: Exception) -> bool:
    """Is it because the model brings code, which `trust_remote_code` is about?"""
    return "trust_remote_code" in str(error)


class TextEncoder(Protocol):
    """A text encoder as the stages use it. The first `encode` loads the weights, and `release` frees them."""

    hash: str  # of everything that decides the meaning of tokens; the location of the weights does not count
    dim: int  # D, the width of tokens
    dtype: torch.dtype  # the precision of the computation

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Tokens (L, D) of each text. The other texts do not change a single bit of the result."""
        ...

    def null(self) -> Tensor:
        """The tokens of an empty caption: zeros (text.max_tokens, D) with text.padded, else (1, D)."""
        ...

    def release(self) -> None:
        """Free the weights. The next `encode` loads them again."""
        ...


class TransformersEncoder:
    """A text encoder of the library transformers. Tokens are the states of the last layer.

    Captions are encoded one after the other. Then a caption always gives the same bits, which an exact resume
    needs, and real tokens need no mask. Weights are float32 on a CPU and bfloat16 on other devices (T5
    overflows in float16). The small MiniLM is always float32.

    Raises `ValueError` that names a key and a remedy when the model does not fit the settings.
    """

    def __init__(self, settings: Text, device: torch.device):
        self._settings = settings
        self._device = device
        self._location, self._tokenizer_part = locate(settings)
        self._loaded: tuple[Any, Any] | None = None
        self.truncated = 0  # captions longer than text.max_tokens
        self.dtype = torch.float32 if device.type == "cpu" or settings.kind == "minilm" else torch.bfloat16
        self.dim = self._checked_dim()
        kind = "t5" if settings.kind == "t5" else "transformers"
        identity = self._location.identity(self._tokenizer_part)
        self.hash = content_hash([kind, settings.max_tokens, settings.padded, identity])

    def _checked_dim(self) -> int:
        from transformers import AutoConfig

        settings, name = self._settings, self._location.name
        try:
            config = AutoConfig.from_pretrained(self._location.config_file, trust_remote_code=False)
        except (ValueError, OSError, KeyError) as error:
            if _wants_to_run(error):
                raise ValueError(_OWN_CODE.format(name)) from error
            raise ValueError(
                f"text.model: {name} has no model type that transformers knows ({first_line(error)})"
            ) from error
        if settings.kind == "t5" and config.model_type != "t5":
            raise ValueError(
                f"text.kind: {name} is not a T5 but a {config.model_type}; write text.kind=transformers"
            )
        text_config = config.get_text_config()
        positions = getattr(text_config, "max_position_embeddings", None)
        if isinstance(positions, int) and settings.max_tokens > positions:
            raise ValueError(
                f"text.max_tokens: {settings.max_tokens}, but {name} has {positions} positions; "
                f"take {positions} or less"
            )
        dim = getattr(text_config, "hidden_size", None)
        if not isinstance(dim, int):
            raise ValueError(f"text.model: {name} ({config.model_type}) is not a text encoder")
        return dim

    def null(self) -> Tensor:
        return torch.zeros(self._settings.max_tokens if self._settings.padded else 1, self.dim)

    def release(self) -> None:
        self._loaded = None

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        return [self._encode(text) for text in texts]

    @torch.no_grad()
    def _encode(self, text: str) -> Tensor:
        if not text.strip():
            return self.null()
        if self._loaded is None:
            self._loaded = self._load()
        tokenizer, model = self._loaded
        ids = self._ids(tokenizer, text)
        if not ids:
            return self.null()
        tokens = torch.tensor([ids], device=self._device)
        # The mask is all ones, because pads are attended, too.
        states = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0]
        states = states.to("cpu", torch.float32)  # (L, D)
        if not bool(torch.isfinite(states).all()):
            raise ValueError(
                f"text.model: {self._location.name} gives infinite or undefined values for {text!r}"
            )
        return states

    def _ids(self, tokenizer: Any, text: str) -> list[int]:
        limit = self._settings.max_tokens
        text = text.encode("utf-8", "replace").decode()  # tokenizers refuse half of a surrogate pair
        text = text[: limit * _MOST_CHARS]  # otherwise a whole book would be tokenised, only to be cut
        ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
        if len(ids) > limit:
            self.truncated += 1
            if self.truncated == 1:
                log.warning(
                    "A caption has %d tokens and text.max_tokens is %d: the encoder ignores the rest. "
                    "Further long captions are not reported.",
                    len(ids),
                    limit,
                )
            ids = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        if self._settings.padded and len(ids) < limit:
            ids = tokenizer(text, padding="max_length", max_length=limit)["input_ids"]
        return ids

    def _load(self) -> tuple[Any, Any]:
        """The tokenizer and the network."""
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer, T5EncoderModel
        from transformers.utils import logging as progress

        location = self._location
        kind: Any = T5EncoderModel if self._settings.kind == "t5" else AutoModel
        bars = progress.is_progress_bar_enabled()
        progress.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                location.name,
                revision=location.commit,
                subfolder=self._tokenizer_part,
                trust_remote_code=False,  # else transformers asks, on the terminal
            )
            model, report = kind.from_pretrained(
                location.name,
                revision=location.commit,
                subfolder=location.part,
                dtype=self.dtype,
                output_loading_info=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
            if _wants_to_run(error):
                raise ValueError(_OWN_CODE.format(location.name)) from error
            remedy = "name a complete folder, as `save_pretrained` writes it"
            if find_spec("sentencepiece") is None and "tiktoken" in str(error):  # the library's second choice
                remedy = "its tokenizer needs `pip install sentencepiece`"
            raise ValueError(
                f"text.model: {location.name} cannot be loaded ({first_line(error)}); {remedy}"
            ) from error
        finally:
            if bars:
                progress.enable_progress_bar()
        if model.config.is_encoder_decoder:
            model = model.get_encoder()
        model = getattr(model, "text_model", model)  # of CLIP and similar models, which encode pictures, too
        self._check_loaded(tokenizer, model, report["missing_keys"])
        return tokenizer, model.to(self._device).eval().requires_grad_(False)

    def _check_loaded(self, tokenizer: Any, model: Any, missing_keys: set[str]) -> None:
        """Refuse missing weights and tokenizers. The library would invent them, perhaps with a warning."""
        name = self._location.name
        missing = sorted(key for key in missing_keys if "pooler" not in key)
        if missing:
            raise ValueError(f"text.model: {name} lacks {len(missing)} of the weights, such as {missing[0]}")
        known, trained = len(tokenizer), model.get_input_embeddings().num_embeddings
        if not trained / 2 <= known <= trained:
            raise ValueError(
                f"text.model: the tokenizer of {name} knows {known} tokens and the weights {trained}: the "
                "files of the tokenizer are missing or belong to another model"
            )
        if self._settings.padded and tokenizer.pad_token_id is None:
            raise ValueError(f"text.padded: the tokenizer of {name} has no pad token; write false")
