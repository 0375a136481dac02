"""Rewrites captions with a language model, on a server or with transformers on this machine.

A rewritten caption is added to the original and never replaces it. If rewriting fails, the original remains.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

from captioning.base import Caption, CaptionFailed, CaptionRequest, Pictures
from captioning.checks.measures import DEFAULT_RULES, failing, measure, refusal
from captioning.local.lm import TextModel, TextSettings
from captioning.local.source import identity
from captioning.prompts import Prompt, json_object, plain, rewrite_of
from captioning.server.chat import Answer, Content, Failed, Server, ask
from captioning.server.endpoint import probe

LONG, SHORT = "rewritten description", "short description"  # keys of the answer's JSON object
_RETRY_TEMPERATURE = 0.7
_SETTING = "captions.rewrite"
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "endpoint": {
        "url": None,
        "concurrency": 16,
        "timeout_s": 120.0,
        "retries": 5,
        "backoff_s": 1.0,
        "api_key_env": "OPENAI_API_KEY",
        "extra": {},
    },
    "transformers": {"revision": None, "batch_clips": 16, "dtype": "auto", "attention": "sdpa"},
}
# A rewrite must pass the default rules. The language is not checked, because users choose the language.
_RULES = {column: rule for column, rule in DEFAULT_RULES.items() if column != "caption.language"}

TextToText = Callable[[Sequence[str]], list[str]]  # raw answers in order; empty if there is no answer


@dataclass(frozen=True)
class Rewrite:
    """Rewrites `CaptionRequest.text` to a caption of kind rewritten.

    The prompt rewrite_short also gives a caption of kind short. A text that breaks a default rule is not a
    rewrite. Settings for the other value of `by` must be null. Raises `ValueError` for wrong settings.
    """

    by: Literal["endpoint", "transformers"]
    model: str  # the server's name of the model; or a model on the hub, or a folder
    prompt: str = "rewrite"  # or rewrite_short, or a text that asks for the same JSON keys
    max_tokens: int = 1024
    temperature: float = 0.0
    seed: int = 0
    # Settings for by: endpoint. Null means the value in the comment.
    url: str | None = None
    concurrency: int | None = None  # 16
    timeout_s: float | None = None  # 120, for one request
    retries: int | None = None  # 5
    backoff_s: float | None = None  # 1, before the first retry
    api_key_env: str | None = None  # OPENAI_API_KEY
    extra: dict[str, Any] | None = field(default=None, hash=False)
    # Settings for by: transformers.
    revision: str | None = None
    batch_clips: int | None = None  # 16
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = None  # auto
    attention: Literal["sdpa", "flash_attention_2", "eager"] | None = None  # sdpa
    name: ClassVar[str] = "rewrite"
    pictures: ClassVar[Pictures | None] = None

    def __post_init__(self) -> None:
        for by, defaults in _DEFAULTS.items():
            for key, value in defaults.items():
                if by != self.by and getattr(self, key) is not None:
                    raise ValueError(
                        f"{_SETTING}.{key}: is a setting for by: {by}, not for by: {self.by}; set it to null"
                    )
                if by == self.by and getattr(self, key) is None:
                    object.__setattr__(self, key, copy.copy(value))
        rewrite_of(self.prompt)
        if self.by == "endpoint":
            self._server()
        elif not self.model.strip():
            raise ValueError(f"{_SETTING}.model: is empty; name a folder or a model on the hub")

    @property
    def key(self) -> str:
        prompt = rewrite_of(self.prompt).version
        model = identity(self.model, self.revision) if self.by == "transformers" else self.model
        decisive = (model, self.max_tokens, self.temperature, self.seed, self.extra)
        digest = hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=6).hexdigest()
        return f"rewrite-1-{self.by}-{self.model}-{prompt}-{digest}"

    def check(self) -> None:
        """Ask the server one question, or read the model's config.json. Raises `CaptionerMissing`."""
        if self.by == "endpoint":
            text = rewrite_of(self.prompt).text + "A dog runs across a lawn."
            probe(self._server(), lambda: text)
        else:
            self._local.check()

    def again(self) -> Rewrite:
        """A copy for a second try with another seed and a temperature above 0. It shares the loaded model."""
        warm = max(self.temperature, _RETRY_TEMPERATURE)
        other = replace(self, seed=self.seed + 1, temperature=warm)
        if "_local" in self.__dict__:
            shared = copy.copy(self._local)
            shared.settings = other._text_settings()
            other.__dict__["_local"] = shared
        return other

    def __call__(self, clips: Sequence[CaptionRequest]) -> list[Caption | CaptionFailed]:
        """Rewrite the captions of clips; clips without a text are skipped.

        Raises `CaptionerMissing` if no text can be rewritten.
        """
        prompt = rewrite_of(self.prompt)
        found: list[Caption | CaptionFailed] = []
        asked: dict[str, str] = {}
        for clip in clips:
            if clip.text is not None and refusal(clip.text):
                # A language model would turn the refusal into a caption.
                found.append(CaptionFailed(clip.clip_id, "NoOriginal", "the caption to rewrite is a refusal"))
            elif clip.text is not None and clip.text.strip():
                asked[clip.clip_id] = prompt.text + clip.text
        for clip_id, said in zip(asked, self._answers(list(asked.values()), prompt), strict=True):
            if isinstance(said, Failed):
                found.append(CaptionFailed(clip_id, said.error, said.message))
                continue
            found += [
                Caption(clip_id, self.name, kind, text, said.model, said.fingerprint, prompt.version)
                for kind, text in rewritten(said.text, prompt).items()
            ]
        return found

    def _answers(self, texts: Sequence[str], prompt: Prompt) -> list[Answer | Failed]:
        """Answers to `texts`. `rewritten` can read each `Answer`."""
        if not texts:
            return []
        if self.by == "endpoint":
            questions: list[Callable[[], Content]] = [partial(str, text) for text in texts]
            return ask(self._server(), questions, partial(_readable, prompt))
        return _of(self._local, texts, prompt, self.model, self._local.revision)

    def _server(self) -> Server:
        given = {key: getattr(self, key) for key in _DEFAULTS["endpoint"]}
        return Server(
            **{**given, "url": self.url or ""},
            model=self.model,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            seed=self.seed,
            setting=_SETTING,
        )

    def _text_settings(self) -> TextSettings:
        assert self.batch_clips
        assert self.dtype
        assert self.attention
        return TextSettings(
            self.model,
            self.revision,
            self.max_tokens,
            self.batch_clips,
            self.dtype,
            self.attention,
            self.temperature,
            self.seed,
            setting=_SETTING,
        )

    @cached_property
    def _local(self) -> TextModel:
        return TextModel(self._text_settings())

    def __getstate__(self) -> dict[str, Any]:
        # A loaded model is not pickled.
        return {f.name: getattr(self, f.name) for f in fields(self)}


def rewritten(answer: str, prompt: Prompt) -> dict[str, str]:
    """Kind -> text from a model's answer: rewritten, and short if the answer has one.

    Raises `ValueError` if the answer has no JSON object with the right key, or if a text breaks a rule.
    """
    found = json_object(answer, [LONG])
    if found is None:
        raise ValueError(f'the answer has no JSON object with the key "{LONG}": {plain(answer)[:80]}')
    texts = {"rewritten": plain(found[LONG])}
    both = json_object(answer, [LONG, SHORT])
    if both is not None:
        texts["short"] = plain(both[SHORT])
    for kind, text in texts.items():
        broken = failing(measure(text, kind=kind, prompt=prompt, wanted=None), _RULES)
        if broken:
            raise ValueError(f"the {kind} text fails the check {broken}: {text[:80]}")
    return texts


def _readable(prompt: Prompt, answer: str) -> str:
    rewritten(answer, prompt)
    return answer


def _of(
    model: TextToText, texts: Sequence[str], prompt: Prompt, name: str, revision: str | None
) -> list[Answer | Failed]:
    found: list[Answer | Failed] = []
    for answer in model(texts):
        try:
            found.append(Answer(_readable(prompt, answer), False, name, revision))
        except ValueError as error:
            found.append(Failed("BadAnswer" if answer else "EmptyAnswer", str(error)))
    assert len(found) == len(texts)
    return found
