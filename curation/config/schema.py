"""The typed configuration: read from YAML, changed by dotted overrides, and checked before any work.

A scorer's parameters are the fields of its dataclass in `filters/`, so each parameter is declared only once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from captioning.base import Kind
from captioning.checks.language import LANGUAGES
from captioning.makers import CaptionerName, captioner_class
from captioning.prompts import PROMPTS, prompt_of
from curation.store.schema import CAPTION_COLUMNS, SCORE_COLUMNS
from filters import EMBEDDER, SCORERS
from filters.base import measure_key
from filters.rules import Rule

DetectorName = Literal["content", "adaptive", "transnetv2", "none"]
ENCODER_VERSION = (
    2  # increase it when `curation.decode.cut` gives other pictures: accepted clips are then cut again
)


class ConfigError(ValueError):
    """A wrong configuration. The message names the key, the value and the correct form."""


class _Section(BaseModel):
    # Defaults are validated, too, because a default of 512 and a stored 512.0 must give the same hash.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Shots(_Section):
    """Shot detection. A `threshold` of null means the detector's own default."""

    detector: DetectorName = "adaptive"
    threshold: float | None = None
    min_scene_seconds: float = Field(0.6, ge=0)
    exact: bool = False
    max_scene_seconds: float = Field(60.0, gt=0)


class Spans(_Section):
    """Candidate clips within a scene."""

    min_seconds: float = Field(3.0, gt=0)
    max_seconds: float = Field(10.0, gt=0)
    trim_seconds: float = Field(0.2, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Spans:
        if self.max_seconds < self.min_seconds:
            raise ValueError(f"max_seconds {self.max_seconds:g} is below min_seconds {self.min_seconds:g}")
        return self


class Cut(_Section):
    """How accepted spans are encoded: H.264, yuv420p, constant frame rate, no audio."""

    crf: int = Field(18, ge=0, le=51)
    preset: Literal[
        "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
    ] = "veryfast"
    gop_frames: int = Field(12, ge=1)
    max_side: int | None = Field(None, ge=16)  # pixels: the longer side is reduced to this
    fps: float | None = Field(None, gt=0)  # frames per second; null: the clip's own rate


def _made(kind: type[Any], name: str, params: Any) -> Any:
    """An object of the dataclass `kind` from plain parameters. Raises `ValueError` for a wrong parameter."""
    if dataclasses.is_dataclass(params):
        return params
    if not isinstance(params, Mapping):
        raise ValueError(f"{name}: expected its parameters, or null to take it out, got {params!r}")
    known = {f.name for f in dataclasses.fields(kind) if f.init}
    unknown = sorted(map(str, set(params) - known))
    if unknown:
        raise ValueError(
            f"unknown key {name}.{unknown[0]}: {name} has {', '.join(sorted(known)) or 'no parameters'}"
        )
    try:
        # Values are converted to the declared types, because 10 and 10.0 must be the same measure.
        return _adapter(kind).validate_python(dict(params))  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in (name, *first["loc"]))
        message = str(first["msg"]).removeprefix("Value error, ")
        given = f" (got {first['input']!r})" if first["loc"] else ""
        raise ValueError(f"{key}: {message}{given}") from error


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)  # creating an adapter takes milliseconds


def _plain(made: Any) -> Any:
    """The parameters of a dataclass, without the fields for its internal state."""
    return (
        made if made is None else {f.name: getattr(made, f.name) for f in dataclasses.fields(made) if f.init}
    )


def _settings(name: str) -> Any:
    """The type of a section whose keys are the fields of the captioner class with this name."""

    def made(value: Any) -> Any:
        return None if value is None else _made(captioner_class(name), name, value)

    return Annotated[Any, BeforeValidator(made), PlainSerializer(_plain)]


class Captions(_Section):
    """The origin of the captions that training reads.

    captioner: `sidecar` (text beside the source, or the list's `caption_column`), a model (`transformers` on
    this cluster's GPUs or CPUs, or a server at an `endpoint`), or `none`.
    """

    captioner: CaptionerName = "sidecar"
    # The kind to train on, among the captions of the captioner and the rewriter. If a clip has no caption of
    # this kind, the captioner's caption is used. The prompts decide which kinds are made.
    kind: Kind = "long"
    caption_column: str = "caption"
    language: str | None = "en"  # the language that `caption.language` checks; null: no check
    transformers: _settings("transformers") = None  # type: ignore[valid-type]
    endpoint: _settings("endpoint") = None  # type: ignore[valid-type]
    rewrite: _settings("rewrite") = None  # type: ignore[valid-type]
    on_failed_check: Literal["reject", "keep"] = "reject"  # keep: the rules on caption.* reject no clip

    @model_validator(mode="before")
    @classmethod
    def _defaults_are_written_down(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("captioner") == "transformers":
            return {**data, "transformers": data.get("transformers") or {}}
        return data

    @model_validator(mode="after")
    def _complete(self) -> Captions:
        if self.captioner == "endpoint" and self.endpoint is None:
            raise ValueError(
                "captions.captioner is endpoint: set captions.endpoint.url (such as "
                "http://localhost:8000/v1) and captions.endpoint.model"
            )
        if self.language is not None and self.language not in LANGUAGES:
            raise ValueError(
                f"captions.language: unknown {self.language!r}: there are {', '.join(LANGUAGES)}, and null"
            )
        if self.kind == "rewritten" and self.rewrite is None:
            raise ValueError("captions.kind is rewritten, and nothing rewrites: set captions.rewrite")
        if self.by_model:
            self._kind_is_made()
        return self

    def _kind_is_made(self) -> None:
        """Raises `ValueError` if the captioner and the rewriter would make no captions of the chosen kind."""
        prompt = getattr(self, self.captioner).prompt
        given = prompt_of(prompt).kind
        made = {"long", given}  # long is the default, so the user did not ask for a kind
        if self.rewrite is not None:  # the user's own prompt may ask for short captions, too
            made |= {"rewritten"} if self.rewrite.prompt == "rewrite" else {"rewritten", "short"}
        if self.kind in made:
            return
        remedies = [f"captions.kind={given}"]
        if self.kind in PROMPTS:
            remedies.insert(0, f"captions.{self.captioner}.prompt={self.kind}")
        if self.kind == "short" and self.rewrite is not None:
            remedies.append("captions.rewrite.prompt=rewrite_short")
        raise ValueError(
            f"captions.kind is {self.kind}, and nothing makes such captions: the prompt of "
            f"captions.{self.captioner} asks for {given} ones; set {' or '.join(remedies)}"
        )

    @property
    def by_model(self) -> bool:
        """Does a model make the captions from the pictures, after the cut?"""
        return self.captioner in ("transformers", "endpoint")


class Shards(_Section):
    """Sizes of the Parquet files that training reads. target_mb: the estimated size is at most this."""

    target_mb: float = Field(256, gt=0)
    row_group_mb: float = Field(48, gt=0)
    seed: int = 0


class Run(_Section):
    """How a build runs. These keys do not change results, so the configuration's hash ignores them."""

    measure_cpus: float = Field(1.0, gt=0)  # CPUs that one measuring worker takes
    decoder_threads: int = Field(1, ge=1)
    measure_workers: int | None = Field(None, ge=1)  # null: as many as the CPUs allow
    model_workers: int = Field(1, ge=1)  # actors per model-backed scorer
    model_cpus: float = Field(1.0, gt=0)
    model_gpus: float | None = Field(None, ge=0)  # null: 1 if the cluster has a GPU
    model_batch_clips: int = Field(8, ge=1)
    cut_cpus: float = Field(1.0, gt=0)
    # A very long source is measured in pieces of about this length, so that a build does not wait for one
    # worker. null: never in pieces.
    segment_seconds: float | None = Field(600.0, ge=10)
    deadline_seconds: float = Field(60.0, gt=0)  # for each source, before its length is added
    deadline_per_second: float = Field(6.0, ge=0)  # added for each second of the declared duration
    deadline_max_seconds: float = Field(14400.0, gt=0)  # the upper limit for every declared duration
    child_memory_mb: int = Field(4096, ge=512)
    child_output_mb: int = Field(16384, ge=1)  # the most that the decoding of one source may send
    read_retries: int = Field(3, ge=0)  # after a read error that may pass, or a decoder killed from outside
    retry_seconds: float = Field(1.0, ge=0)  # before the first retry; each later one waits twice as long
    max_failed_fraction: float = Field(1.0, ge=0, le=1)  # share of the named sources; more stops the build
    caption_workers: int = Field(1, ge=1)  # actors that hold the captioner's model; 1 for an endpoint
    caption_cpus: float = Field(1.0, gt=0)
    caption_gpus: float | None = Field(None, ge=0)  # null: 1 if the cluster has a GPU (0 for an endpoint)
    # Workers that decode pictures for the captioning workers; null: up to 4 for each of them.
    caption_readers: int | None = Field(None, ge=1)
    # So many failures in a row stop the command, because the server is probably down. null: 32. Of clips
    # without any answer: a quarter of the clips to do if that is less than 32, but at least 4.
    caption_failures_in_a_row: int | None = Field(None, ge=1)
    object_store_mb: int = Field(512, ge=128)  # for a local Ray
    ray_address: str | None = None  # null: the cluster of the job or the environment, else a local Ray

    def deadline_s(self, declared_s: float | None, factor: float = 1.0) -> float:
        """Seconds that one source may take.

        declared_s: the duration that the header declares. A broken header may give None, infinity or a
            negative number.
        factor: multiplies the seconds that each declared second adds.
        """
        length_s = declared_s if declared_s is not None and declared_s > 0 else 0.0
        wanted_s = self.deadline_seconds + factor * self.deadline_per_second * min(length_s, 1e12)
        return min(wanted_s, self.deadline_max_seconds)


def _rule(value: Any) -> Rule:
    if isinstance(value, Rule):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"expected min and/or max, got {value!r}")
    unknown = set(value) - {"min", "max"}
    if unknown:
        raise ValueError(f"unknown {sorted(unknown)}: a rule has min and/or max")
    for name, bound in value.items():
        if isinstance(bound, bool) or not isinstance(bound, int | float | str | None):
            raise ValueError(f"{name} is not a number: {bound!r}")
    return Rule(**{k: None if v is None else float(v) for k, v in value.items()})


def _rules(value: Any) -> Any:
    """Remove each rule that is null, and each rule whose bounds are all null."""
    if not isinstance(value, Mapping):
        return value
    columns = {*SCORE_COLUMNS, *CAPTION_COLUMNS}
    kept = {
        column: rule
        for column, rule in value.items()
        if rule is not None
        and not (isinstance(rule, Mapping) and all(bound is None for bound in rule.values()))
    }
    for column in value.keys() - kept.keys() - columns:
        raise ValueError(f"rules.{column}: no such rule to take out; there are {', '.join(sorted(columns))}")
    return kept


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


def _scorers(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"expected measure: parameters, got {value!r}")
    made: dict[str, Any] = {}
    for name, params in value.items():
        if name not in SCORERS:
            raise ValueError(f"unknown measure {name!r}: there are {', '.join(SCORERS)}")
        if params is None:
            continue
        made[name] = _made(SCORERS[name], name, params)
        known = {f.name for f in dataclasses.fields(SCORERS[name])}
        for param in _POSITIVE & known:
            given = getattr(made[name], param)
            if given is not None and not given > 0:
                raise ValueError(f"{name}.{param}: must be above 0 (got {given!r})")
    # The order of `SCORERS` decides the order of columns and of the cascade. The order in the file does not.
    return {name: made[name] for name in SCORERS if name in made}


_Rule = Annotated[Any, BeforeValidator(_rule), PlainSerializer(dataclasses.asdict)]
_Scorers = Annotated[
    dict[str, Any],
    BeforeValidator(_scorers),
    PlainSerializer(lambda made: {name: dataclasses.asdict(s) for name, s in made.items()}),
]


class Config(_Section):
    """All settings that decide what a build produces, and (in `run`) how the build runs."""

    shots: Shots = Shots()
    spans: Spans = Spans()
    filters: _Scorers = Field(default_factory=dict, validate_default=True)
    rules: Annotated[dict[str, _Rule], BeforeValidator(_rules)] = Field(default_factory=dict)
    score_all: bool = False
    cut: Cut = Cut()
    captions: Captions = Captions()
    shards: Shards = Shards()
    run: Run = Run()
    _unsaid: dict[str, str] = PrivateAttr(default_factory=dict)
    _not_taken: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _rules_go_with_their_filter(cls, data: Any) -> Any:
        """Remove the rules of each filter that is set to null."""
        if not isinstance(data, Mapping):
            return data
        filters, rules = data.get("filters"), data.get("rules")
        if not isinstance(filters, Mapping) or not isinstance(rules, Mapping):
            return data
        gone = {name for name, params in filters.items() if params is None and name in SCORERS}
        kept = {column: rule for column, rule in rules.items() if str(column).split(".")[0] not in gone}
        return {**data, "rules": kept}

    @model_validator(mode="after")
    def _rules_have_columns(self) -> Config:
        columns = {c.name for s in self.filters.values() for c in s.columns}
        for column in self.rules:
            if column in CAPTION_COLUMNS:
                if column == "caption.similarity" and EMBEDDER not in self.filters:
                    raise ValueError(
                        f"rules.{column}: it compares with the embedding that the filter {EMBEDDER} makes, "
                        "which is not configured"
                    )
            elif column not in columns:
                raise ValueError(
                    f"rules.{column}: no configured filter makes this column; there are "
                    f"{', '.join(sorted(columns)) or 'none'}, and of captions {', '.join(CAPTION_COLUMNS)}"
                )
        return self

    def mark(self, unsaid: Mapping[str, str], not_taken: Mapping[str, str]) -> None:
        """Set `unsaid` and `not_taken` of a configuration from a dataset.json (`said.of_dataset`)."""
        self._unsaid, self._not_taken = dict(unsaid), dict(not_taken)

    @property
    def unsaid(self) -> Mapping[str, str]:
        """Settings, such as a server, that only a dataset.json gave and that this user has not allowed."""
        return self._unsaid

    @property
    def not_taken(self) -> Mapping[str, str]:
        """Keys of `run` that only a dataset.json gave. The configuration has the defaults instead."""
        return self._not_taken

    @property
    def local_scorers(self) -> dict[str, Any]:
        """The scorers that run in the decoding child."""
        return {name: s for name, s in self.filters.items() if not s.uses_model}

    @property
    def model_scorers(self) -> dict[str, Any]:
        """The scorers that run a model in Ray actors, in batches."""
        return {name: s for name, s in self.filters.items() if s.uses_model}

    @property
    def caption_rules(self) -> dict[str, Rule]:
        """The rules for captions that a model writes. A caption that breaks a rule is tried again."""
        return {column: self.rules[column] for column in CAPTION_COLUMNS if column in self.rules}

    @property
    def verdict_rules(self) -> dict[str, Rule]:
        """The rules that reject clips."""
        if self.captions.on_failed_check == "reject":
            return dict(self.rules)
        return {column: rule for column, rule in self.rules.items() if column not in CAPTION_COLUMNS}

    def measure_keys(self) -> dict[str, str]:
        return {name: measure_key(s) for name, s in self.filters.items()}

    def spans_hash(self) -> str:
        """Hash of the settings that decide the clips. A source with another hash is measured again."""
        return _hash({"shots": self.shots.model_dump(), "spans": self.spans.model_dump()})

    def cut_hash(self) -> str:
        return _hash({**self.cut.model_dump(), "version": ENCODER_VERSION})

    def hash(self) -> str:
        """Hash of all sections except `run`."""
        return _hash(self.model_dump(exclude={"run"}))


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
