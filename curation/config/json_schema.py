"""The JSON Schema of a configuration of builds, for editors and for checks without reelmill.

The schema refuses unknown keys, wrong types and numbers out of bounds. It is a little stricter than
`schema.Config`, which also takes a number or a truth value that is written as text. A schema cannot say what
concerns two values at once, such as a `min` above its `max`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from pydantic import TypeAdapter

from captioning.checks.language import LANGUAGES
from captioning.makers import captioner_class
from curation.config.load import validated
from curation.config.schema import Config, ConfigError
from curation.store.schema import CAPTION_COLUMNS
from filters import SCORERS
from filters.base import Scorer
from filters.find import GROUP, IMPORT_PATH, NoSuchFilter, scorer_class

DRAFT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]

_COLUMN = r"^[a-z][a-z0-9_]*\.[a-z0-9_]+$"
_NUMBER = {"type": ["number", "null"]}
_RULE: Schema = {
    "description": "Inclusive bounds of a column. A clip outside of the bounds is rejected. null: no rule.",
    "type": ["object", "null"],
    "properties": {"min": _NUMBER, "max": _NUMBER},
    "additionalProperties": False,
}
_HIGHEST_BOUND = 32  # above the largest of the lower bounds
_CAPTIONERS = ("transformers", "endpoint", "rewrite")
# Values for the keys that a captioner's section needs. The schema tries other keys beside them.
_NEEDED: dict[str, tuple[dict[str, Any], ...]] = {
    "transformers": ({},),
    "endpoint": ({"url": "http://localhost:8000/v1", "model": "m"},),
    "rewrite": (
        {"by": "endpoint", "url": "http://localhost:8000/v1", "model": "m"},
        {"by": "transformers", "model": "m"},
    ),
}


def json_schema(bases: Sequence[str], default: Config) -> Schema:
    """The JSON Schema (draft 2020-12) of a configuration file.

    bases: the values of the key `base`, which names what a file is laid over. default: what a file without
    this key is laid over, so its values are the defaults.
    """
    schema = Config.model_json_schema()
    definitions, sections = schema["$defs"], schema["properties"]
    for section, values in default.model_dump(mode="json", exclude={"filters", "rules", "score_all"}).items():
        for key, value in values.items():
            definitions[section.title()]["properties"][key]["default"] = value
    definitions["Rule"] = _RULE
    filters = _filter_classes()
    for name, kind in filters.items():
        makes = [f"{c.name} ({c.unit}): {c.meaning}" for c in kind.columns]
        words = [_first_paragraph(kind), "Columns:", *makes]
        definitions[f"filters.{name}"] = _section(kind, "\n".join(words), ("filters", name), ({},))
    for name in _CAPTIONERS:
        kind = captioner_class(name)
        made = _section(kind, _first_paragraph(kind), ("captions", name), _NEEDED[name])
        definitions[f"captions.{name}"] = made
        definitions["Captions"]["properties"][name] = _or_null(f"captions.{name}")
    definitions["Captions"]["properties"]["language"] = {"enum": [*LANGUAGES, None], "default": "en"}
    columns = {c.name: f"{c.unit}: {c.meaning}" for kind in filters.values() for c in kind.columns}
    columns |= dict.fromkeys(CAPTION_COLUMNS, "a check of captions that a model writes")
    sections["filters"] = _filters(filters)
    sections["rules"] = _rules(columns)
    base: Schema = {
        "description": "What this file is laid over. none: nothing, so that there are no filters and rules.",
        "enum": list(bases),
        "default": "default",
    }
    return {
        "$schema": DRAFT,
        "title": "The configuration of reelmill build",
        **{key: value for key, value in schema.items() if key != "title"},
        "properties": {"base": base, **sections},
        **_columns_of_own_filters(columns),
    }


def _filter_classes() -> dict[str, type[Scorer]]:
    """The filters of this package, and those of installed packages that can be used, by name."""
    found: dict[str, type[Scorer]] = dict(SCORERS)
    for point in entry_points(group=GROUP):
        with contextlib.suppress(NoSuchFilter):
            found.setdefault(point.name, scorer_class(point.name))
    return found


def _filters(names: Iterable[str]) -> Schema:
    return {
        "description": "What is measured, with its parameters. null takes a filter out, and its rules.",
        "type": "object",
        "properties": {name: _or_null(f"filters.{name}") for name in names},
        "patternProperties": {
            IMPORT_PATH: {
                "description": "A filter of your own, by its import path, with its parameters.",
                "type": ["object", "null"],
            }
        },
        "additionalProperties": False,
    }


def _rules(columns: Mapping[str, str]) -> Schema:
    return {
        "description": "What is accepted: bounds of columns. null takes a rule out.",
        "type": "object",
        "properties": {
            name: {"$ref": "#/$defs/Rule", "description": words} for name, words in columns.items()
        },
    }


def _columns_of_own_filters(known: Iterable[str]) -> Schema:
    """Rules on other columns are allowed if there is a filter with an import path. Such a filter makes
    columns that the schema cannot know."""
    no_import_path = {"propertyNames": {"pattern": "^[^:]*$"}}
    others = {"patternProperties": {_COLUMN: {"$ref": "#/$defs/Rule"}}, "additionalProperties": False}
    return {
        "if": {
            "properties": {"filters": {"type": "object", "not": no_import_path}},
            "required": ["filters"],
        },
        "then": {"properties": {"rules": others}},
        "else": {"properties": {"rules": {"propertyNames": {"enum": list(known)}}}},
    }


def _section(
    kind: type[Any], words: str, place: tuple[str, str], needed: Sequence[Mapping[str, Any]]
) -> Schema:
    """The schema of a section whose keys are the fields of the dataclass `kind`.

    needed: see `_lower_bound`.
    """
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    schema = adapter.json_schema()
    internal = {f.name for f in dataclasses.fields(kind) if not f.init}
    properties = {name: value for name, value in schema.get("properties", {}).items() if name not in internal}
    for name, value in properties.items():
        bound = _lower_bound(place, name, needed)
        for part in _numbers(value):
            part.update(bound)
    return {**schema, "description": words, "properties": properties, "additionalProperties": False}


def _numbers(schema: Schema) -> Iterator[Schema]:
    """The parts of a key's schema that describe a number."""
    for part in (schema, *schema.get("anyOf", ())):
        if part.get("type") in ("number", "integer"):
            yield part


def _lower_bound(place: tuple[str, str], name: str, needed: Sequence[Mapping[str, Any]]) -> Schema:
    """The bound that the loader has for a number: whole numbers from -1 are tried until one is taken.

    needed: keys to give beside the number. Where several are listed, a number may belong to one of them only.
    """
    section, key = place
    for values in needed:
        for number in range(-1, _HIGHEST_BOUND + 1):
            if _is_taken({section: {key: {**values, name: number}}}):
                bounds: dict[int, Schema] = {-1: {}, 1: {"exclusiveMinimum": 0}}
                return bounds.get(number, {"minimum": number})
    return {}


def _is_taken(data: dict[str, Any]) -> bool:
    try:
        validated(data)
    except ConfigError:
        return False
    return True


def _or_null(definition: str) -> Schema:
    return {"anyOf": [{"$ref": f"#/$defs/{definition}"}, {"type": "null"}]}


def _first_paragraph(kind: type[Any]) -> str:
    return inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].replace("\n", " ")
