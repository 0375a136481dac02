"""Checks of captions: numbers about a text, which rules judge like the numbers of a filter.

Each check is a pure function. The default rules apply to captions by models. Captions by people can be
measured, too, but rules judge them only if a user asks for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher

import numpy as np

from captioning.checks.language import language
from captioning.checks.phrases import BOILERPLATE, FRAME, QUOTED, REFUSALS
from captioning.prompts import Prompt

CHECKS = ("refusal", "echo", "boilerplate", "truncated", "repetition", "language", "words")
DEFAULT_RULES: Mapping[str, Mapping[str, float]] = {
    "caption.refusal": {"max": 0.0},
    "caption.echo": {"max": 0.4},
    "caption.boilerplate": {"max": 0.0},
    "caption.truncated": {"max": 0.0},
    "caption.repetition": {"max": 0.3},
    "caption.language": {"min": 0.5},
    "caption.words": {"min": 3.0, "max": 400.0},
}

_RUN = 20  # words: a loop or an echo of this length gets the worst number, 1
_GRAM = 4  # words
_LONG_UNIT = 8  # words: a unit of this length is a loop if it is repeated once
_MAX_PERIOD = 60  # words: the longest unit of a loop
_MAX_WORD = 40  # letters: a longer word is treated as a loop of letters
_SAME = 12  # equal characters in a row that count as a repetition
_MAX_TEXT = 40_000  # letters: the rest is not measured, because longer texts are too long for any rule


def measure(
    text: str,
    *,
    kind: str = "long",
    prompt: Prompt | str = "",
    truncated: bool = False,
    wanted: str | None = "en",
) -> dict[str, float]:
    """All checks of a caption: names of `CHECKS` -> numbers, without `language` if `wanted` is None.

    `truncated`: the captioner reached its limit of tokens. The checks of a structured caption look at its
    values; a structured caption that is not a JSON object is truncated. Captions by people (sidecar) need no
    full stop.
    """
    asked = prompt.text if isinstance(prompt, Prompt) else prompt
    cut = float(truncated)
    text = text[:_MAX_TEXT]
    if kind == "structured":
        values = _values(text)
        cut = max(cut, float(values is None))
        text = text if values is None else " ".join(values)
    elif kind != "sidecar":
        cut = is_truncated(text, truncated)
    found = {
        "refusal": refusal(text),
        "echo": echo(text, asked),
        "boilerplate": boilerplate(text),
        "truncated": cut,
        "repetition": repetition(text),
        "language": 1.0 if wanted is None else language(text, wanted),
        "words": float(words(text)),
    }
    assert tuple(found) == CHECKS
    return {name: value for name, value in found.items() if name != "language" or wanted is not None}


def failing(measured: Mapping[str, float], rules: Mapping[str, Mapping[str, float]]) -> str | None:
    """The first column that breaks its rule, or None."""
    for column, rule in rules.items():
        value = measured.get(column.removeprefix("caption."))
        if value is not None and not rule.get("min", -np.inf) <= value <= rule.get("max", np.inf):
            return column
    return None


def words(text: str) -> int:
    """The number of words, or of characters in scripts without spaces between words."""
    return len(_words(text))


def is_truncated(text: str, hit_limit: bool = False) -> float:
    """1 if the model reached its limit of tokens, or if the text does not end like a sentence. Otherwise 0.

    Three dots do not end a sentence, except before closing quotation marks: they may be part of a sign.
    """
    ended = re.search(r"(?:(?<!\.\.)[.!?。！？।؟][\"'”’»」)\]*]*|[.…][\"'”’»」][)\]*.]*)\s*$", text)
    return float(hit_limit or not ended)


def repetition(text: str) -> float:
    """0 to 1: the largest of three numbers, each at most 1.

    - The share of runs of 4 words that occurred earlier in the text.
    - The words of the longest loop, without its first unit, divided by 20. A loop is a unit of words that
      occurs three or more times in a row, or twice if the unit has 8 or more words.
    - The longest run of one character, divided by 20, if the run has 12 or more characters.

    Numbers are ignored, so a numbered list counts as a loop, too.
    """
    said = [word for word in _words(text) if not word.isdigit()]
    said = [piece for word in said for piece in (word if len(word) > _MAX_WORD else [word])]
    grams = _grams(said)
    again = 1 - len(set(grams)) / len(grams) if grams else 0.0
    same = max((len(run.group()) for run in re.finditer(r"(\S)\1+", text)), default=0)
    return max(again, min(1.0, _loop(said) / _RUN), min(1.0, same / _RUN) if same >= _SAME else 0.0)


def echo(text: str, prompt: str) -> float:
    """0 to 1: how much of the prompt occurs in the text. 1 if the text contains marks of a chat template.

    The largest of three numbers: the share of the text's runs of 4 words that occur in the prompt, the share
    of the prompt's runs that occur in the text, and the words of their longest common piece, divided by 20.
    """
    if FRAME.search(text):
        return 1.0
    said, asked = _words(text), _words(prompt)
    grams, wanted = _grams(said), set(_grams(asked))
    if not grams or not wanted:
        return 0.0
    common = SequenceMatcher(None, said, asked, autojunk=False).find_longest_match().size
    return max(
        sum(gram in wanted for gram in grams) / len(grams),
        len(wanted & set(grams)) / len(wanted),
        min(1.0, common / _RUN) if common >= _GRAM else 0.0,
    )


def refusal(text: str) -> float:
    """1 if the model says that it cannot do the task. Text in quotation marks is ignored."""
    return float(bool(REFUSALS.search(QUOTED.sub(" ", text))))


def boilerplate(text: str) -> float:
    """1 if the text starts with words about itself, the video or the question instead of the content."""
    return float(bool(BOILERPLATE.match(re.sub(r"^[\s*#>_\"'“‘`-]+", "", text))))


def similarity(
    text_embedding: Sequence[float] | np.ndarray, clip_embedding: Sequence[float] | np.ndarray
) -> float:
    """Cosine of the angle between a caption's and a clip's embedding by the same model, -1 to 1.

    Raises `ValueError` for embeddings of different lengths, zero embeddings, and numbers that are not finite.
    """
    a, b = np.asarray(text_embedding, np.float64).ravel(), np.asarray(clip_embedding, np.float64).ravel()
    if a.shape != b.shape:
        raise ValueError(f"embeddings of {a.size} and {b.size} numbers are not from the same model")
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    if not (np.isfinite(norm) and norm > 0):
        raise ValueError("an embedding that is zero or not finite has no direction")
    return float(np.clip(a @ b / norm, -1.0, 1.0))


_APART = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Thai, kana, Han: no spaces
_WORD = re.compile(rf"[{_APART}]|(?:(?![{_APART}])[^\W_])+(?:['’](?:(?![{_APART}])[^\W_])+)*")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _grams(said: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(said[k : k + _GRAM]) for k in range(len(said) - _GRAM + 1)]


def _loop(said: Sequence[str]) -> int:
    """The words of the longest loop, without its first unit."""
    longest = 0
    for period in range(1, min(_MAX_PERIOD, len(said) // 2) + 1):
        run = 0
        for k in range(period, len(said)):
            run = run + 1 if said[k] == said[k - period] else 0
            if run > longest and run >= (period if period >= _LONG_UNIT else 2 * period):
                longest = run
    return longest


def _values(text: str) -> list[str] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return [str(v) for v in value.values()] if isinstance(value, dict) else None
