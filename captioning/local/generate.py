"""Batched text generation with a model of transformers. The text of an item does not depend on its batch.

Prompts are padded on the left and masked. The repetition penalty ignores the padding. Each item has its own
generator for random draws. So an item gets the same text alone and in a batch, except for the rounding of
matrix products of another shape. In the tests float32 never changes a token. bfloat16 has only 8 bits and
sometimes changes a token when two scores are nearly equal.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from captioning.base import CaptionerMissing
from captioning.local.source import Source, first_line

log = logging.getLogger(__name__)
Item = TypeVar("Item")

_GROW_AFTER = 32  # batches without a failure before a halved batch is doubled again
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True)
class Said:
    """The model's text. `truncated`: the text reached the limit of tokens before its end."""

    text: str
    truncated: bool


@dataclass(frozen=True)
class Unsaid:
    """The reason why the model gave no text: the name of the error's type, and its message."""

    error: str
    message: str


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen. `temperature` 0 takes the most likely token; otherwise `seed` keys the draws."""

    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    repetition_penalty: float | None = None  # None: the recommendation of the model's authors


class Generator:
    """A loaded model, its tokenizer, and the number of items per batch that fits into memory."""

    def __init__(self, model: Any, tokenizer: Any, batch: int):
        self.model, self.tokenizer = model, tokenizer
        self.device: torch.device = model.device
        self.batch, self._limit, self._calm = batch, batch, 0
        if tokenizer.pad_token_id is None:  # any token works, because padding is masked
            tokenizer.pad_token = tokenizer.eos_token
        self._recommended = copy.deepcopy(model.generation_config)
        if self._recommended.pad_token_id is None:
            self._recommended.pad_token_id = tokenizer.pad_token_id
        ends = self._recommended.eos_token_id
        ends = tokenizer.eos_token_id if ends is None else ends
        self._recommended.eos_token_id = ends
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])

    def __call__(
        self,
        items: Sequence[Item],
        names: Sequence[str],
        prepare: Callable[[Sequence[Item]], Mapping[str, Any]],
        decoding: Decoding,
    ) -> list[Said | Unsaid]:
        """The model's text for each item, in the order of `items`.

        `prepare` makes the model's inputs for some items: `input_ids` and `attention_mask`, (B, L) padded on
        the left, and further inputs of the model. `names` key the random draws. If memory is not sufficient,
        the batch is halved and tried again. An item that fails alone is `Unsaid`.
        """
        answers: list[Said | Unsaid] = []
        while len(answers) < len(items):
            here = slice(len(answers), len(answers) + self.batch)
            count = len(items[here])
            answer = self._attempt(items[here], names[here], prepare, decoding)
            if not isinstance(answer, Unsaid):
                answers += answer
                self._grow()
            elif count == 1:
                answers.append(answer)
            elif answer.error == "OutOfMemoryError":
                self.batch, self._calm = count // 2, 0
                log.warning("Memory is not sufficient for a batch of %d: trying %d", count, self.batch)
            else:  # one item causes the error: try each item alone
                for item, name in zip(items[here], names[here], strict=True):
                    answers += self._alone(item, name, prepare, decoding)
        return answers

    def _alone(
        self,
        item: Item,
        name: str,
        prepare: Callable[[Sequence[Item]], Mapping[str, Any]],
        decoding: Decoding,
    ) -> list[Said] | list[Unsaid]:
        answer = self._attempt([item], [name], prepare, decoding)
        return [answer] if isinstance(answer, Unsaid) else answer

    def _grow(self) -> None:
        """Double a halved batch after some time, because a single long item may have filled the memory."""
        self._calm += 1
        if self.batch < self._limit and self._calm >= _GROW_AFTER:
            self.batch, self._calm = min(2 * self.batch, self._limit), 0

    def _attempt(
        self,
        items: Sequence[Item],
        names: Sequence[str],
        prepare: Callable[[Sequence[Item]], Mapping[str, Any]],
        decoding: Decoding,
    ) -> list[Said] | Unsaid:
        try:
            return self._generate(prepare(items), names, decoding)
        except Exception as error:
            failure = Unsaid(*_described(error))
            lost = getattr(torch, "AcceleratorError", ())
            if isinstance(error, lost) and failure.error != "OutOfMemoryError":
                raise  # this process can no longer use the device
        # Outside the except block, the error no longer keeps the tensors that filled the memory.
        if failure.error == "OutOfMemoryError":
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return failure

    def _generate(self, inputs: Mapping[str, Any], names: Sequence[str], decoding: Decoding) -> list[Said]:
        inputs = {name: self._moved(name, value) for name, value in inputs.items()}
        prompt = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            said = self.model.generate(
                **inputs,
                generation_config=self._config(decoding),
                logits_processor=self._processors(inputs["attention_mask"], names, decoding),
            )
        rows = said[:, prompt:].tolist()
        ends = [next((k for k, token in enumerate(row) if token in self._ends), None) for row in rows]
        texts = self.tokenizer.batch_decode(
            [row[:end] for row, end in zip(rows, ends, strict=True)],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return [Said(text.strip(), end is None) for text, end in zip(texts, ends, strict=True)]

    def _moved(self, name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        # Half precision would change numbers that are no pixels, such as seconds.
        dtype = self.model.dtype if name.startswith("pixel_values") and value.is_floating_point() else None
        return value.to(self.device, dtype)

    def _config(self, decoding: Decoding) -> Any:
        config = copy.deepcopy(self._recommended)
        for name in _SAMPLING:
            setattr(config, name, None)
        config.do_sample, config.num_beams, config.repetition_penalty = False, 1, 1.0
        config.max_length, config.max_new_tokens = None, decoding.max_tokens
        # `generate` replaces None in the config by values of the model's own config.
        self.model.generation_config = config
        return config

    def _processors(self, mask: Tensor, names: Sequence[str], decoding: Decoding) -> Any:
        from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

        chosen: list[Any] = []
        own = self._recommended
        penalty = decoding.repetition_penalty
        penalty = (own.repetition_penalty or 1.0) if penalty is None else penalty
        if penalty != 1:
            chosen.append(_Penalty(penalty, mask))
        if decoding.temperature > 0:
            chosen.append(_Warmth(decoding.temperature))
            if own.top_k:
                chosen.append(TopKLogitsWarper(own.top_k))
            if own.top_p is not None and own.top_p < 1:
                chosen.append(TopPLogitsWarper(own.top_p))
            chosen.append(_Draws(decoding.seed, names, self.device))
        return LogitsProcessorList(chosen)


class _Penalty:
    """The usual penalty on repeated tokens (Keskar et al. 2019), but padding does not count."""

    def __init__(self, penalty: float, mask: Tensor):
        self._penalty, self._mask = penalty, mask.bool()  # (B, L)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        new = input_ids.shape[1] - self._mask.shape[1]
        real = torch.nn.functional.pad(self._mask, (0, new), value=True)
        # Padding is replaced by the last token of the prompt, which is never padding and is penalised anyway.
        last = input_ids[:, self._mask.shape[1] - 1 : self._mask.shape[1]]
        seen = torch.where(real, input_ids, last)
        found = scores.gather(1, seen)
        found = torch.where(found < 0, found * self._penalty, found / self._penalty)
        return scores.scatter(1, seen, found)


class _Warmth:
    def __init__(self, temperature: float):
        self._temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores / self._temperature


class _Draws:
    """Adds Gumbel noise: the token with the largest sum is a draw from the softmax of the scores.

    Each row has its own generator, so its draws are the same in any batch on the same kind of device.
    """

    def __init__(self, seed: int, names: Sequence[str], device: torch.device):
        self._generators = [
            torch.Generator(device).manual_seed(
                int.from_bytes(hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=7).digest(), "big")
            )
            for name in names
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.clamp_min_(torch.finfo(torch.float32).tiny).log_()


def _described(error: Exception) -> tuple[str, str]:
    text = str(error).lower()
    full = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError)
        and any(words in text for words in ("out of memory", "can't allocate memory", "alloc_failed"))
    )
    return "OutOfMemoryError" if full else type(error).__name__, first_line(error)


def load(auto: Any, source: Source, setting: str, dtype: str, attention: str, device: torch.device) -> Any:
    """Load the model of `source` with the Auto class `auto`, on `device` and ready to generate.

    Raises `CaptionerMissing` whose message names `setting` and a remedy.
    """
    from safetensors import SafetensorError

    try:
        with quietly():
            model, report = auto.from_pretrained(
                source.name,
                revision=source.revision,
                dtype=precision(dtype, device),
                attn_implementation=attention,
                output_loading_info=True,
                trust_remote_code=False,
            )
            model = model.to(device).eval().requires_grad_(False)
    except torch.OutOfMemoryError as error:
        raise CaptionerMissing(
            f"{setting}.model: {source.name} does not fit into the memory of this device; name a smaller "
            f"model, or give each worker a larger part of the GPU ({first_line(error)})"
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise unloadable(error, source, setting, attention) from error
    missing = sorted(report["missing_keys"])
    if missing:  # transformers fills missing weights with random numbers and only warns
        raise CaptionerMissing(
            f"{setting}.model: {source.name} lacks {len(missing)} of its weights, such as {missing[0]}"
        )
    return model


def unloadable(error: Exception, source: Source, setting: str, attention: str) -> CaptionerMissing:
    """The error for a user when `from_pretrained` fails."""
    line = first_line(error)
    if "trust_remote_code" in str(error):
        return CaptionerMissing(
            f"{setting}.model: {source.name} comes with code of its own, which is never run; name a model "
            "that transformers knows"
        )
    if "attention" in line.lower() and attention != "eager":
        return CaptionerMissing(
            f"{setting}.attention: {attention} is not available ({line}); set sdpa or eager"
        )
    remedy = (
        "name a complete folder, as `hf download` or `save_pretrained` writes it"
        if source.revision is None
        else f"run `hf download {source.name}` with a connection, or name a folder"
    )
    if isinstance(error, ImportError):
        remedy = "install the missing package"
    return CaptionerMissing(f"{setting}.model: {source.name} cannot be loaded ({line}); {remedy}")


def precision(dtype: str, device: torch.device) -> torch.dtype:
    """The type for `dtype`. `auto` is float32 on a CPU, and bfloat16 or else float16 on a GPU."""
    if dtype != "auto":
        made: torch.dtype = getattr(torch, dtype)
        return made
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def best_device() -> torch.device:
    """The first GPU that this process sees (Ray shows each worker its own GPU), otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def quietly() -> Iterator[None]:
    """Switch off the progress bars of transformers: those of several workers would overwrite each other."""
    from transformers.utils import logging as progress

    shown = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            progress.enable_progress_bar()
