"""The typed configuration: read from YAML, changed by dotted overrides, and checked before any work.

A scorer's parameters are the fields of its dataclass in `filters/`, so each parameter is declared only once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from captioning.base import Kind
from captioning.checks.language import LANGUAGES
from captioning.makers import NAMES, captioner_class
from captioning.prompts import PROMPTS, prompt_of
from curation.config.filters import RecordedFilter, key_of, made, name_of, params_of, read_filters
from curation.config.hdr import HdrMode, hdr_name
from curation.config.own import RecordedCaptioner, check_name, read_captioner, without_own
from curation.store.schema import CAPTION_COLUMNS
from filters import EMBEDDER, SCORERS
from filters.find import IMPORT_PATH, is_import_path
from filters.rules import Rule

DetectorName = Literal["similarity", "content", "adaptive", "transnetv2", "none"]
# Increase it with other coefficients of `curation.decode.likeness`: sources are then measured again.
SIMILARITY_VERSION = 1
ENCODER_VERSION = (
    2  # increase it when `curation.decode.cut` gives other pictures: accepted clips are then cut again
)


class ConfigError(ValueError):
    """A wrong configuration. The message names the key, the value and the correct form."""


class _Section(BaseModel):
    # Defaults are validated, too, because a default of 512 and a stored 512.0 must give the same hash.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


# Keys that came later: at these values configurations look, and are hashed, as before there were such keys.
LATER = {"spans.by": "shots", "cut.hdr": "tonemap", "decode.fields": "mend"}


def without_defaults(section: str, plain: dict[str, Any]) -> dict[str, Any]:
    return {key: v for key, v in plain.items() if LATER.get(f"{section}.{key}", ...) != v}


def _named(names: Sequence[str]) -> Any:
    """The type of a key that takes one of these names, or an import path."""
    described = [{"enum": list(names)}, {"pattern": IMPORT_PATH}]
    return Annotated[str, WithJsonSchema({"type": "string", "anyOf": described})]


class Shots(_Section):
    """Shot detection. A `threshold` of null means the detector's own default."""

    # A `DetectorName`, or the import path of a detector of your own, whose parameters are in `own`.
    detector: _named(get_args(DetectorName)) = "similarity"  # type: ignore[valid-type]
    own: dict[str, Any] = Field(default_factory=dict)
    threshold: float | None = None
    min_scene_seconds: float = Field(0.6, ge=0)
    exact: bool = False
    max_scene_seconds: float = Field(60.0, gt=0)

    @model_validator(mode="after")
    def _known(self) -> Shots:
        check_name("shots", "detector", self.detector, get_args(DetectorName), self.own)
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_own(plain(self))


class Decode(_Section):
    """How pictures are made of frames.

    fields: `mend` deinterlaces interlaced sources, and makes film of telecined ones. `keep` looks at no
    fields and leaves frames as they are.
    """

    fields: Literal["mend", "keep"] = "mend"

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults("decode", plain(self))


class Spans(_Section):
    """Candidate clips: within scenes, or, with `by: list`, the spans that the list of sources gives."""

    by: Literal["shots", "list"] = "shots"
    min_seconds: float = Field(3.0, gt=0)
    max_seconds: float = Field(10.0, gt=0)
    trim_seconds: float = Field(0.2, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Spans:
        if self.max_seconds < self.min_seconds:
            raise ValueError(f"max_seconds {self.max_seconds:g} is below min_seconds {self.min_seconds:g}")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults("spans", plain(self))


class Cut(_Section):
    """How accepted spans are encoded: H.264, yuv420p, constant frame rate, no audio."""

    crf: int = Field(18, ge=0, le=51)
    preset: Literal[
        "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"
    ] = "veryfast"
    gop_frames: int = Field(12, ge=1)
    max_side: int | None = Field(None, ge=16)  # pixels: the longer side is reduced to this
    fps: float | None = Field(None, gt=0)  # frames per second; null: the clip's own rate
    # HDR sources (HLG and PQ). tonemap: measures and clips are of BT.709. reject: their clips are rejected.
    # keep: measures and clips have the source's levels in 8 bits, and clips keep its tags.
    hdr: HdrMode = "tonemap"

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_defaults("cut", plain(self))


def _plain(value: Any) -> Any:
    """The parameters of a dataclass, without the fields for its internal state."""
    if value is None:
        return None
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}


def _settings(name: str) -> Any:
    """The type of a section whose keys are the fields of the captioner class with this name."""

    def settings(value: Any) -> Any:
        return None if value is None else made(captioner_class(name), name, value)

    return Annotated[Any, BeforeValidator(settings), PlainSerializer(_plain)]


class Captions(_Section):
    """The origin of the captions that training reads.

    captioner: `sidecar` (text beside the source, or the list's `caption_column`), a model (`transformers` on
    this cluster's GPUs or CPUs, or a server at an `endpoint`), `none`, or the import path of a captioner of
    one's own, whose parameters are in `own`.
    """

    captioner: _named(NAMES) = "sidecar"  # type: ignore[valid-type]
    own: dict[str, Any] = Field(default_factory=dict)
    # The kind to train on, among the captions of the captioner and the rewriter. If a clip has no caption of
    # this kind, the captioner's caption is used. The prompts decide which kinds are made.
    kind: Kind = "long"
    caption_column: str = "caption"
    language: str | None = "en"  # the language that `caption.language` checks; null: no check
    transformers: _settings("transformers") = None  # type: ignore[valid-type]
    endpoint: _settings("endpoint") = None  # type: ignore[valid-type]
    rewrite: _settings("rewrite") = None  # type: ignore[valid-type]
    on_failed_check: Literal["reject", "keep"] = "reject"  # keep: the rules on caption.* reject no clip
    _made: Any = PrivateAttr(None)

    @model_validator(mode="after")
    def _of_ones_own(self, info: ValidationInfo) -> Captions:
        check_name("captions", "captioner", self.captioner, NAMES, self.own)
        if is_import_path(self.captioner):
            self._made = read_captioner(self.captioner, self.own, (info.context or {}).get("known"))
        return self

    @property
    def of_ones_own(self) -> Any:
        """The captioner that is named by an import path. None for any other captioner."""
        return self._made

    @model_serializer(mode="wrap")
    def _as_before(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_own(plain(self))

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
        if self.by_model and not is_import_path(self.captioner):
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
        return self.captioner not in ("none", "sidecar")


class Shards(_Section):
    """Sizes of the Parquet files that training reads. target_mb: the estimated size is at most this."""

    target_mb: float = Field(512, gt=0)
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
        raise ValueError(
            "expected min and/or max, as in rules.motion.speed.min=0.02: the name of a column has two parts"
        )
    unknown = set(value) - {"min", "max"}
    if unknown:
        raise ValueError(f"unknown {sorted(unknown)}: a rule has min and/or max")
    for name, bound in value.items():
        if isinstance(bound, bool) or not isinstance(bound, int | float | str | None):
            raise ValueError(f"{name} is not a number: {bound!r}")
    low, high = (None if value.get(k) is None else float(value[k]) for k in ("min", "max"))
    return Rule(low, high)


def _rules(value: Any) -> Any:
    """Remove each rule that is null, and each rule whose bounds are all null."""
    if not isinstance(value, Mapping):
        return value
    return {column: rule for column, rule in value.items() if not _is_null(rule)}


def _is_null(rule: Any) -> bool:
    return rule is None or (isinstance(rule, Mapping) and all(bound is None for bound in rule.values()))


def _scorers(value: Any, info: ValidationInfo) -> dict[str, Any]:
    known = (info.context or {}).get("known")
    return read_filters(value, known)


_Rule = Annotated[Any, BeforeValidator(_rule), PlainSerializer(lambda r: {"min": r.min, "max": r.max})]
_Scorers = Annotated[
    dict[str, Any],
    BeforeValidator(_scorers),
    PlainSerializer(lambda made: {path: params_of(s) for path, s in made.items()}),
]


class Config(_Section):
    """All settings that decide what a build produces, and (in `run`) how the build runs."""

    decode: Decode = Decode()
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
        """Remove the rules of each filter that is set to null. Raises `ValueError` for a rule to take out
        that is on no column."""
        if not isinstance(data, Mapping):
            return data
        filters, rules = data.get("filters"), data.get("rules")
        if not isinstance(rules, Mapping):
            return data
        filters = filters if isinstance(filters, Mapping) else {}
        gone = {str(path) for path, params in filters.items() if params is None}
        prefixes = {name_of(path) for path in gone}
        kept = {column: rule for column, rule in rules.items() if str(column).split(".")[0] not in prefixes}
        own = any(path not in SCORERS for path in filters)  # its columns are not known yet
        known = {c.name for s in SCORERS.values() for c in s.columns} | set(CAPTION_COLUMNS)
        for column, rule in kept.items():
            is_ours = str(column).partition(".")[0] in SCORERS
            if _is_null(rule) and column not in known and (is_ours or not own):
                raise ValueError(
                    f"rules.{column}: no such rule to take out; there are {', '.join(sorted(known))}"
                )
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
                    f"rules.{column}: no configured filter makes this column (where it is stored, name its "
                    "filter in `filters`, installed or not); there are "
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
    def scorers(self) -> dict[str, Any]:
        """The filters by the names that begin their columns, in the order of the cascade."""
        return {s.name: s for s in self.filters.values()}

    @property
    def local_scorers(self) -> dict[str, Any]:
        """The scorers that run in the decoding child."""
        return {name: s for name, s in self.scorers.items() if not s.uses_model}

    @property
    def model_scorers(self) -> dict[str, Any]:
        """The scorers that run a model in Ray actors, in batches."""
        return {name: s for name, s in self.scorers.items() if s.uses_model}

    def columns_of(self, scorers: Iterable[str]) -> list[str]:
        """The columns of these scorers."""
        made = self.scorers
        return [c.name for name in scorers for c in made[name].columns]

    @property
    def score_columns(self) -> list[str]:
        return self.columns_of(self.scorers)

    @property
    def ordered_rules(self) -> dict[str, Rule]:
        """The rules in the order of the cascade: cheap measures come first, and captions come last.

        The order in the configuration file does not matter.
        """
        found: dict[str, Rule] = {}
        for scorer in self.scorers.values():
            for column in scorer.columns:
                if rule := self.rules.get(column.name):
                    found[column.name] = dataclasses.replace(rule, applies_to=scorer.applies_to)
        return found | self.caption_rules

    @property
    def caption_rules(self) -> dict[str, Rule]:
        """The rules for captions that a model writes. A caption that breaks a rule is tried again."""
        return {column: self.rules[column] for column in CAPTION_COLUMNS if column in self.rules}

    @property
    def verdict_rules(self) -> dict[str, Rule]:
        """The rules that reject clips, in the order of the cascade."""
        if self.captions.on_failed_check == "reject":
            return self.ordered_rules
        return {c: rule for c, rule in self.ordered_rules.items() if c not in CAPTION_COLUMNS}

    def measure_keys(self) -> dict[str, str]:
        return {name: key_of(s) for name, s in self.scorers.items()}

    def for_workers(self) -> dict[str, Any]:
        """Plain data for workers and the decoding child: without the filters that cannot run here."""
        plain = self.model_dump(mode="json")
        gone = {path: s for path, s in self.filters.items() if isinstance(s, RecordedFilter)}
        columns = {c.name for s in gone.values() for c in s.columns}
        plain["filters"] = {path: p for path, p in plain["filters"].items() if path not in gone}
        plain["rules"] = {c: r for c, r in plain["rules"].items() if c not in columns}
        if isinstance(self.captions.of_ones_own, RecordedCaptioner):  # it cannot run, and is not asked
            others = {key: value for key, value in plain["captions"].items() if key != "own"}
            plain["captions"] = {**others, "captioner": "none"}
        if "shots.detector" in self.unsaid:  # a build refuses it, and other commands detect no shots
            plain["shots"] = {"detector": "none"}
        return plain

    def spans_hash(
        self, transfer: str | None = None, listed: Sequence[tuple[float, float]] | None = None
    ) -> str:
        """Hash of the settings that decide the clips and pictures of a source with this transfer, for which
        the list of sources gives the spans `listed`. A source with another hash is measured again."""
        spans = {k: v for k, v in self.spans.model_dump().items() if k != "by"}
        settings: dict[str, Any] = {"shots": self.shots.model_dump(), "spans": spans}
        if self.spans.by == "list" and listed:
            settings = {"listed": listed, "min_seconds": self.spans.min_seconds}
        elif self.shots.detector == "similarity":
            settings["similarity"] = SIMILARITY_VERSION
        if self.cut.hdr == "keep" and hdr_name(transfer) is not None:
            settings["hdr"] = "keep"
        if decode := self.decode.model_dump():
            settings["decode"] = decode
        return _hash(settings)

    def cut_hash(self) -> str:
        """Hash of the settings that decide the bytes of a clip."""
        settings = self.cut.model_copy(update={"hdr": "tonemap"} if self.cut.hdr == "reject" else {})
        return _hash({**settings.model_dump(), "version": ENCODER_VERSION})

    def hash(self) -> str:
        """Hash of all sections except `run`."""
        return _hash({k: v for k, v in self.stored().items() if k != "run"})

    def stored(self) -> dict[str, Any]:
        """Plain data for dataset.json. The section `decode` came later, and is left out while it is empty."""
        return {k: v for k, v in self.model_dump(mode="json").items() if v or k != "decode"}


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
