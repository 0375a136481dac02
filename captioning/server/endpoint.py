"""`endpoint`: captions by an OpenAI-compatible server that takes pictures."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from captioning.base import Caption, CaptionerMissing, CaptionFailed, CaptionRequest, Pictures
from captioning.prompts import Prompt, prompt_of
from captioning.server.chat import Content, Failed, Server, ask

_QUALITY = 90  # JPEG
_RETRY_TEMPERATURE = 0.7
_SETTING = "captions.endpoint"


@dataclass(frozen=True)
class Endpoint:
    """Captions by a model on a server.

    Frames are sent as JPEG data URLs, in order of time, before the prompt. `concurrency` applies to one
    captioner in one process. Settings that do not change the text (address, API key, concurrency, time-outs,
    retries) are no part of `key`. Raises `ValueError` for settings that cannot make a request.
    """

    url: str  # …/v1
    model: str  # the server's name of the model
    prompt: str = "detailed"  # or short, structured, or the text of a prompt
    frames: int = 8
    side: int = 512  # pixels of the longer side
    max_tokens: int = 512
    concurrency: int = 16
    timeout_s: float = 120.0  # for one request
    retries: int = 5
    backoff_s: float = 1.0  # wait before the first retry; the wait doubles before each further retry
    api_key_env: str = "OPENAI_API_KEY"  # the name of a variable; keys come from the environment only
    temperature: float = 0.0
    seed: int | None = 0  # None for a server that does not support seeds
    # Further fields of the request; null removes a field.
    extra: dict[str, Any] = field(default_factory=dict, hash=False)
    name: ClassVar[str] = "endpoint"

    def __post_init__(self) -> None:
        prompt_of(self.prompt)
        self._server()
        if self.frames < 1 or self.side < 28:
            raise ValueError(
                f"{_SETTING}.frames: must be at least 1 and .side at least 28, not {self.frames}, {self.side}"
            )

    @property
    def key(self) -> str:
        prompt = prompt_of(self.prompt).version
        decisive = (self.frames, self.side, self.max_tokens, self.temperature, self.seed, self.extra)
        digest = hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=6).hexdigest()
        return f"endpoint-1-{self.model}-{prompt}-{digest}"

    @property
    def pictures(self) -> Pictures:
        return Pictures(self.frames, None, self.side)

    def check(self) -> None:
        """Ask the server one question with grey pictures, of the number and size of a clip's pictures.

        Raises `CaptionerMissing` if the server cannot be reached, refuses the key, does not serve the model,
        or does not take such pictures.
        """
        grey = np.full((self.side * 9 // 16, self.side, 3), 128, np.uint8)
        probe(self._server(), partial(_content, [grey] * self.frames, prompt_of(self.prompt)))

    def again(self) -> Endpoint:
        """A copy for a second try, with another seed and a temperature above 0."""
        seed = None if self.seed is None else self.seed + 1
        return replace(self, seed=seed, temperature=max(self.temperature, _RETRY_TEMPERATURE))

    def __call__(self, clips: Sequence[CaptionRequest]) -> list[Caption | CaptionFailed]:
        """A caption or a failure for each clip. Raises `CaptionerMissing` if the server refuses all."""
        prompt = prompt_of(self.prompt)
        seen = [clip for clip in clips if clip.pictures]
        questions = [partial(_content, clip.pictures, prompt) for clip in seen]
        answers: list[Caption | CaptionFailed] = [
            CaptionFailed(clip.clip_id, "NoPictures", "no pictures to show to the model")
            for clip in clips
            if not clip.pictures
        ]
        for clip, said in zip(seen, ask(self._server(), questions, prompt.read), strict=True):
            if isinstance(said, Failed):
                answers.append(CaptionFailed(clip.clip_id, said.error, said.message))
                continue
            answers.append(
                Caption(
                    clip.clip_id,
                    self.name,
                    prompt.kind,
                    said.text,
                    model=said.model,
                    revision=said.fingerprint,
                    prompt_version=prompt.version,
                    truncated=said.cut,
                )
            )
        return answers

    def _server(self) -> Server:
        return Server(
            self.url,
            self.model,
            self.max_tokens,
            self.temperature,
            self.seed,
            self.extra,
            self.concurrency,
            self.timeout_s,
            self.retries,
            self.backoff_s,
            self.api_key_env,
            _SETTING,
        )


def probe(server: Server, question: Callable[[], Content]) -> None:
    """Ask one question before the work. Raises `CaptionerMissing` if no question would be answered."""
    said = ask(replace(server, retries=min(server.retries, 1)), [question])[0]
    # A busy server works, and so does a server whose model has no answer about grey pictures.
    if isinstance(said, Failed) and said.error not in ("HTTP429", "EmptyAnswer"):
        raise CaptionerMissing(
            f"{server.setting}: {server.address} does not answer correctly ({said.error}: "
            f"{said.message}); start a server as docs/captions.md says, or set {server.setting}.url and "
            f"{server.setting}.model"
        )


def _content(pictures: Sequence[np.ndarray], prompt: Prompt) -> Content:
    urls = [{"type": "image_url", "image_url": {"url": _data_url(picture)}} for picture in pictures]
    return [*urls, {"type": "text", "text": prompt.text}]


def _data_url(picture: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture, "RGB").save(file, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
