"""The filters of a configuration: a class for each name, and what a dataset records of its filters.

Somebody else may have made a dataset, with filters that are not installed here. Such a filter is read as
`RecordedFilter`: its columns, rules and numbers can be used, and it cannot run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from curation.config.own import Known, adapter, check_said, made
from filters import SCORERS
from filters.base import Column, Media, MissingModel, Scorer, measure_key
from filters.find import is_import_path, scorer_class

_ALL_MEDIA: frozenset[Media] = frozenset({"image", "video"})

# Parameters of any measure that must be above 0. With no frames, or with frames of size 0, no measure works.
_POSITIVE = {
    "frames",
    "long_side",
    "short_side",
    "per_second",
    "step_s",
    "width",
    "analysis_width",
    "batch_size",
}


@dataclass(frozen=True)
class Record:
    """What dataset.json says of a filter, so that its numbers can be read where it is not installed."""

    name: str
    key: str
    columns: tuple[tuple[str, str, str], ...]  # name, unit, meaning
    applies_to: frozenset[Media] = _ALL_MEDIA
    uses_model: bool = False
    cost_ms: float = 0.0


@dataclass(frozen=True)
class RecordedFilter:
    """A filter of a dataset that cannot run here. It has the attributes of a `Scorer`."""

    path: str  # its name in the configuration
    params: Mapping[str, Any]
    record: Record
    why: str

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def columns(self) -> tuple[Column, ...]:
        return tuple(Column(name, unit, meaning=meaning) for name, unit, meaning in self.record.columns)

    @property
    def applies_to(self) -> frozenset[Media]:
        return self.record.applies_to

    @property
    def uses_model(self) -> bool:
        return self.record.uses_model

    @property
    def cost_ms(self) -> float:
        return self.record.cost_ms

    def check(self) -> None:
        """Raises `MissingModel`, because this filter cannot run."""
        raise MissingModel(
            f"filters.{self.path}: {self.why}. select and report use its stored numbers without it; to build "
            f"without it, and without rules on its columns: --set filters.{self.path}=null"
        )


def read_filters(value: Any, known: Known | None) -> dict[str, Any]:
    """The filters of a configuration in the order of the cascade, by their names in it.

    known: None for the user's own configuration, of which everything is imported. Raises `ValueError`.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"expected measure: parameters, got {value!r}")
    kept = {str(path): params for path, params in value.items() if params is not None}
    for path in value.keys() - kept.keys():
        if not is_import_path(str(path)):
            scorer_class(str(path))  # a misspelt filter would not be taken out
    made = [(path, _one(path, params, known)) for path, params in kept.items()]
    seen: dict[str, str] = {}
    for path, scorer in made:
        for prefix in {scorer.name, *(c.name for c in scorer.columns)}:
            if (other := seen.setdefault(prefix, path)) != path:
                raise ValueError(f"{path} and {other} are both called {prefix}: take one of them out")
    return dict(sorted(made, key=lambda item: _place(item[1])))


def _place(scorer: Any) -> tuple[float, int, str]:
    """Scorers without a model all run while a source is decoded. The others follow, cheap ones first: a clip
    that a rule rejects skips the scorers after that rule."""
    built_in = list(SCORERS).index(scorer.name) if scorer.name in SCORERS else len(SCORERS)
    return (max(scorer.cost_ms, 1e-9) if scorer.uses_model else 0.0, built_in, scorer.name)


def _one(path: str, params: Any, known: Known | None) -> Any:
    if isinstance(params, Scorer | RecordedFilter):
        return params
    records = known.records if known else {}
    record = _record(path, records[path]) if path in records else None
    try:
        if is_import_path(path):
            check_said(path, known)
        scorer = made(scorer_class(path), path, params)
        _check_positive(path, scorer)
        return scorer
    except ValueError as error:
        if record is None:
            raise
        why = str(error).removeprefix(f"{path}: ")
        return RecordedFilter(path, params if isinstance(params, Mapping) else {}, record, why)


def _check_positive(path: str, scorer: Any) -> None:
    for param in sorted(_POSITIVE & {f.name for f in dataclasses.fields(scorer)}):
        given = getattr(scorer, param)
        if given is not None and not given > 0:
            raise ValueError(f"{path}.{param}: must be above 0 (got {given!r})")


def _record(path: str, data: Any) -> Record:
    try:
        record: Record = adapter(Record).validate_python(data)
    except ValidationError as error:
        raise ValueError(f"{path}: what dataset.json says of it (measures) is not readable") from error
    return record


def record_of(scorer: Any) -> dict[str, Any]:
    """What dataset.json says of a filter, as plain data."""
    if isinstance(scorer, RecordedFilter):
        record = scorer.record
    else:
        columns = tuple((c.name, c.unit, c.meaning) for c in scorer.columns)
        record = Record(
            scorer.name,
            measure_key(scorer),
            columns,
            scorer.applies_to,
            scorer.uses_model,
            float(scorer.cost_ms),
        )
    return {**dataclasses.asdict(record), "applies_to": sorted(record.applies_to)}


def name_of(path: str) -> str:
    """The name that begins a filter's columns, if the filter is found without running code of others."""
    return path if ":" not in path else path.partition(":")[2].lower()


def key_of(scorer: Any) -> str:
    return scorer.record.key if isinstance(scorer, RecordedFilter) else measure_key(scorer)


def params_of(scorer: Any) -> dict[str, Any]:
    """The parameters of a filter as plain data."""
    return dict(scorer.params) if isinstance(scorer, RecordedFilter) else dataclasses.asdict(scorer)
