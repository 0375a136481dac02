"""Prompts as data. Each prompt has a version, which is stored with every caption made from it.

The text of a version never changes. A changed text gets the next version, because captions made with the old
text are kept and must be distinguishable.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_THOUGHT = re.compile(r"^.*</think>|^\s*<think>.*", re.DOTALL)  # the thoughts of a reasoning model
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ufeff]")
_OPENING = re.compile(r"\{")
_MAX_OPENINGS = 64  # tried starts of a JSON object in an answer
STRUCTURE = ("subject", "actions", "attributes", "background", "camera", "style")


@dataclass(frozen=True)
class Prompt:
    """A question to a model. `kind` is the kind of the resulting caption."""

    name: str
    version: str  # name and number, such as detailed-1; custom-HASH for a user's text
    text: str
    kind: str

    def read(self, answer: str) -> str:
        """The caption in a model's answer, on one line. Raises `ValueError` if the answer has no caption."""
        text = plain(answer)
        if not text:
            raise ValueError("the answer is empty")
        if self.kind != "structured":
            return text
        found = json_object(answer, STRUCTURE)
        if found is None:
            raise ValueError(
                f"the answer is not a JSON object with the keys {', '.join(STRUCTURE)}: {text[:80]}"
            )
        kept = {key: tidy(found[key]) for key in STRUCTURE}
        return json.dumps(kept, ensure_ascii=False)


_DETAILED = """\
Here is a short video clip, as a video or as frames in order of time; a single picture is a still image. \
Write one paragraph of 60 to 150 words that describes it for someone who has not seen it.
Name the subject, then what it does from beginning to end, its visible attributes (number, colour, material, \
clothing, position), the background, how the camera is placed and moves, and the visual style and lighting.
Write only what can be seen. State what is there, never what is missing or might be. \
Leave out opinions, moods, guesses about intentions, sounds, and the words video, clip, image and frame. \
Begin with the subject itself, write whole sentences in the present tense, and answer with the paragraph \
alone."""

_SHORT = """\
Here is a short video clip, as a video or as frames in order of time; a single picture is a still image. \
Write one plain sentence of 8 to 20 words that says who or what is seen, what happens and where.
Write only what can be seen, leave out opinions and the words video, clip, image and frame, begin with the \
subject itself, and answer with the sentence alone."""

_STRUCTURED = """\
Here is a short video clip, as a video or as frames in order of time; a single picture is a still image. \
Describe it as one JSON object with exactly these keys, each with one English sentence as its value:
"subject": who or what is seen; "actions": what happens, from beginning to end; \
"attributes": number, colour, material, clothing and position of the subject; \
"background": the place and what else is there; "camera": where the camera is and how it moves; \
"style": visual style and lighting.
Write only what can be seen, state what is there and never what is missing, and leave out opinions. \
Answer with the JSON object alone."""

_REWRITE = """\
Below is a description of a short video clip. Rewrite it as one plain English paragraph.
Keep every stated fact about the subject, its actions, its attributes and the background, and keep the shot, \
the camera and the style only where they are stated. Add nothing. Take out opinions, guesses, statements of \
what is absent, repetitions, and openings that speak of the video or the image instead of what is in it.
Answer with one JSON object and nothing else: {"rewritten description": "..."}

Description:
"""

_REWRITE_SHORT = """\
Below is a description of a short video clip. Rewrite it twice, in plain English.
First as one paragraph: keep every stated fact about the subject, its actions, its attributes and the \
background, and keep the shot, the camera and the style only where they are stated. Add nothing. Take out \
opinions, guesses, statements of what is absent, repetitions, and openings that speak of the video or the \
image instead of what is in it.
Then as one sentence of 8 to 20 words: who or what is seen, what happens and where.
Answer with one JSON object and nothing else: {"rewritten description": "...", "short description": "..."}

Description:
"""

PROMPTS = {
    prompt.name: prompt
    for prompt in (
        Prompt("detailed", "detailed-1", _DETAILED, "long"),
        Prompt("short", "short-1", _SHORT, "short"),
        Prompt("structured", "structured-1", _STRUCTURED, "structured"),
    )
}

# The caption to rewrite is appended to the text.
REWRITES = {
    prompt.name: prompt
    for prompt in (
        Prompt("rewrite", "rewrite-1", _REWRITE, "rewritten"),
        Prompt("rewrite_short", "rewrite_short-1", _REWRITE_SHORT, "rewritten"),
    )
}


def prompt_of(setting: str) -> Prompt:
    """The prompt with the name `setting`, or a prompt of kind long from a user's text (several words).

    The version of a user's text is a hash of the text. Raises `ValueError` for a single word that is not the
    name of a prompt.
    """
    return _named(setting, PROMPTS, "long")


def rewrite_of(setting: str) -> Prompt:
    """Like `prompt_of`, for rewriting. A user's text must ask for the same JSON keys."""
    return _named(setting, REWRITES, "rewritten")


def _named(setting: str, known: dict[str, Prompt], kind: str) -> Prompt:
    if setting in known:
        return known[setting]
    text = setting.strip()
    if len(text.split()) < 2:
        raise ValueError(f"unknown prompt {setting!r}: use one of {', '.join(known)}, or write your own text")
    return Prompt("custom", f"custom-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}", text, kind)


def plain(answer: str) -> str:
    """An answer on one line, without thoughts, control characters and lone surrogates (from JSON escapes)."""
    return tidy(_THOUGHT.sub("", answer))


def json_object(answer: str, keys: Iterable[str]) -> dict[str, str] | None:
    """The first JSON object in an answer that has a text for each of `keys`, or None.

    Other text may surround the object. Keys are compared without case, underscores and hyphens. Values may
    contain raw line breaks.
    """
    decoder = json.JSONDecoder(strict=False)
    answer = _THOUGHT.sub("", answer)
    for opening in list(_OPENING.finditer(answer))[:_MAX_OPENINGS]:
        try:
            value, _ = decoder.raw_decode(answer, opening.start())
        except (ValueError, RecursionError):
            continue
        found = {_key(k): _joined(v) for k, v in value.items()}
        wanted = {key: found.get(_key(key)) for key in keys}
        if all(wanted.values()):
            return {key: text for key, text in wanted.items() if text}
    return None


def _key(key: str) -> str:
    return " ".join(re.sub(r"[_-]", " ", key).lower().split())


def _joined(value: Any) -> str:
    """A text, or the joined texts of a list (models list several actions). Empty for other values."""
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        value = " ".join(value)
    # A model that repeats the example of the question also repeats its dots.
    return value.strip() if isinstance(value, str) and value.strip(" .…") else ""


def tidy(text: str) -> str:
    """On one line, without control characters and half characters (JSON escapes them)."""
    text = text.encode("utf-8", "replace").decode()
    return " ".join(_CONTROL.sub(" ", text).split())
