"""Reads a file of labels: `truth.json` with frame numbers, or a list of rows with paths and times."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from captioning.texts import TIME_KEYS, span_of
from curation.config.schema import ConfigError
from curation.sources.tables import column_of, rows_of_list
from curation.store.address import open_source

_JUDGEMENTS = ("judgement", "judgment", "verdict", "label", "decision")
_KEEP, _REJECT = ("keep", "accept", "accepted", "yes", "good"), ("reject", "rejected", "drop", "no", "bad")
_OF_FILMS = ("shots", "cuts", "gradual", "ground_truth")
WHOLE = (-math.inf, math.inf)


@dataclass(frozen=True)
class Stretch:
    """A labelled part of a source: `first` <= place < `end`, in frames or seconds (`Labelled.in_frames`)."""

    first: float
    end: float
    keep: bool | None = None  # the judgement, of a shot; None: not judged
    reason: str = ""  # the curator's reason, or the kind of a transition


@dataclass(frozen=True)
class Labelled:
    """What a file of labels says of one source."""

    name: str  # the path, or its end
    in_frames: bool  # frame numbers in the order of presentation; else seconds since the file begins
    shots: list[Stretch] = field(default_factory=list)
    cuts: list[float] | None = None  # first frames of new shots; None: cuts were not labelled
    gradual: list[Stretch] = field(default_factory=list)
    ambiguous: list[Stretch] = field(default_factory=list)
    fps: float | None = None
    start_s: float | None = None  # the presentation time of frame 0; None: where the file begins
    times_s: tuple[float, ...] = ()  # the presentation time of each frame, if the file of labels has them
    variable_rate: bool | None = None  # None: it does not say


@dataclass(frozen=True)
class LabelFile:
    """All labels of a file. `clips`: clip_id -> label, of rows that name a clip of the dataset."""

    name: str
    sources: list[Labelled]
    clips: dict[str, Stretch]


def read_labels(name: str) -> LabelFile:
    """Read a file of labels. Raises `ConfigError` and `SourcesError`, which name the file and the place."""
    if name.lower().endswith(".json") and (films := _films(name)) is not None:
        return LabelFile(name, [_of_film(name, film, said) for film, said in films.items()], {})
    return _of_rows(name)


def reasons_of(text: str) -> list[str]:
    """The reasons in a curator's words: `dark; overlay_logo, small (left)` gives `dark`, `overlay_logo`."""
    heads = [re.split(r"[:,(]", part)[0].strip() for part in text.split(";")]
    return list(dict.fromkeys(head for head in heads if head)) or ["no reason"]


# ---- films: frame numbers


def _films(name: str) -> dict[str, Mapping[str, Any]] | None:
    """The content of a JSON file, if it is a mapping of films; None if it is a list of rows."""
    try:
        with open_source(name, typed=True) as file:
            value = json.loads(file.read())
    except OSError as error:
        raise ConfigError(f"cannot read the labels {name}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: it is no JSON ({error}); mend it, or write the labels as CSV") from error
    if not isinstance(value, Mapping):
        return None
    films = {k: v for k, v in value.items() if isinstance(v, Mapping)}
    return films if any(key in film for film in films.values() for key in _OF_FILMS) else None


def _of_film(name: str, film: str, said: Mapping[str, Any]) -> Labelled:
    where = f"{name}: {film}"
    inner = said.get("ground_truth")
    truth = {**said, **inner} if isinstance(inner, Mapping) else said
    cuts = truth.get("cuts")
    variable = truth.get("variable_rate")
    if variable is not None and not isinstance(variable, bool):
        raise ConfigError(f"{where}: variable_rate is {str(variable)[:40]!r}; write true or false")
    fps = _maybe(where, truth, "fps", "avg_fps")
    if fps is not None and fps <= 0:
        raise ConfigError(f"{where}: fps is {fps:g}; write the frames per second, above 0")
    return Labelled(
        film,
        in_frames=True,
        shots=[_shot(where, shot) for shot in _list(where, truth, "shots")],
        cuts=None if cuts is None else [_number(where, "cuts", c) for c in _list(where, truth, "cuts")],
        gradual=[_stretch(where, "gradual", part) for part in _list(where, truth, "gradual")],
        ambiguous=[_stretch(where, "ambiguous", part) for part in _list(where, truth, "ambiguous")],
        fps=fps,
        start_s=_maybe(where, truth, "start_s"),
        times_s=tuple(_number(where, "times_s", t) for t in _list(where, truth, "times_s")),
        variable_rate=variable,
    )


def _shot(where: str, shot: Any) -> Stretch:
    found = _stretch(where, "shots", shot)
    said = shot.get("judgement") if isinstance(shot, Mapping) else None
    return Stretch(found.first, found.end, _keep(where, said), str(shot.get("reason") or ""))


def _stretch(where: str, key: str, part: Any) -> Stretch:
    """Frames from the first one to the last one, both included: a pair, first and last, or start and end."""
    if isinstance(part, Mapping):
        pair = [part.get("first", part.get("start")), part.get("last", part.get("end"))]
        kind = str(part.get("kind") or "")
    else:
        pair, kind = part if isinstance(part, list) else [part], ""
    if len(pair) != 2:
        raise ConfigError(f"{where}: {key} holds {str(part)[:60]!r}; write its first and its last frame")
    first, last = (_number(where, key, frame) for frame in pair)
    if last < first:
        raise ConfigError(f"{where}: {key} holds a last frame {last:g} before its first frame {first:g}")
    return Stretch(first, last + 1, None, kind)


def _list(where: str, truth: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = truth.get(key)
    if value is not None and not isinstance(value, list):
        raise ConfigError(f"{where}: {key} is {str(value)[:40]!r}; write a list")
    return value or []


def _number(where: str, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{where}: {key} holds {str(value)[:40]!r}; write a number")
    return float(value)


def _maybe(where: str, truth: Mapping[str, Any], *keys: str) -> float | None:
    found = ((key, truth[key]) for key in keys if truth.get(key) is not None)
    return next((_number(where, key, value) for key, value in found), None)


def _keep(where: str, said: Any) -> bool | None:
    """What a judgement says: True is keep, False is reject, None is no judgement."""
    word = str("" if said is None else said).strip().lower()
    if word in ("", "null", "none", "nan"):
        return None
    if word not in _KEEP + _REJECT:
        raise ConfigError(f"{where}: the judgement is {str(said)[:40]!r}; write keep or reject, or nothing")
    return word in _KEEP


# ---- rows: paths and times, or clips


def _of_rows(name: str) -> LabelFile:
    sources: dict[str, Labelled] = {}
    clips: dict[str, Stretch] = {}
    for number, row in enumerate(rows_of_list(name), 1):
        where = f"{name}: row {number}"
        cells = {str(key).strip().lower(): value for key, value in row.items() if key is not None}
        judgement = next((c for c in _JUDGEMENTS if c in cells), None)
        if judgement is None:
            raise ConfigError(f"{where} has no column judgement; write keep or reject in it")
        keep, reason = _keep(where, cells[judgement]), str(cells.get("reason") or "")
        if clip_id := str(cells.get("clip_id") or "").strip():
            clips[clip_id] = Stretch(*WHOLE, keep, reason)
            continue
        column = column_of(list(row))
        if column is None or not row[column]:
            raise ConfigError(f"{where} names no source; it needs a column path, or a column clip_id")
        first, end = _times(where, cells)
        of_source = sources.setdefault(str(row[column]), Labelled(str(row[column]), in_frames=False))
        of_source.shots.append(Stretch(first, end, keep, reason))
    if not sources and not clips:
        raise ConfigError(f"{name} holds no labels; write rows with path, start, end, judgement and reason")
    return LabelFile(name, list(sources.values()), clips)


def _times(where: str, cells: Mapping[str, Any]) -> tuple[float, float]:
    """The start and the end in seconds since the file begins; the whole file if the row has no times."""
    try:
        span = span_of(cells)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    if span is None:
        given = [key for key in cells if key in TIME_KEYS and cells[key] not in (None, "")]
        if given:
            raise ConfigError(f"{where} has {given[0]} alone; write start and end, or none of them")
        return WHOLE
    if not span[0] < span[1]:
        raise ConfigError(f"{where}: it ends at {span[1]:g} s, and starts at {span[0]:g} s")
    return span
