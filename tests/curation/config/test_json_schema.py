"""The JSON Schema agrees with the loader, by a validator that knows nothing of reelmill."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from curation.config.json_schema import json_schema
from curation.config.load import load_config
from curation.config.named import BASES, CONFIGS, load_named_config
from curation.config.schema import ConfigError
from curation.store.schema import CAPTION_COLUMNS
from filters import SCORERS, find
from filters.base import Frames, Scorer

ROOT = Path(__file__).parents[3]
OF_BUILDS = sorted(CONFIGS.glob("*.yaml"))


@dataclass(frozen=True)
class Redness(Scorer):
    """A filter of another package."""

    share: float = 0.1
    frames: int = 4

    def measure(self, frames: Frames) -> float:
        return self.share


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(json_schema(BASES, load_named_config("default", [])))


def loads(text: str, folder: Path) -> bool:
    """Does the loader take this file?"""
    (folder / "c.yaml").write_text(text)
    try:
        load_named_config(str(folder / "c.yaml"), [])
    except ConfigError:
        return False
    return True


def test_it_is_a_schema_of_the_draft_that_it_names(validator: Draft202012Validator) -> None:
    assert validator.schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    Draft202012Validator.check_schema(validator.schema)


@pytest.mark.parametrize("path", OF_BUILDS, ids=lambda p: p.stem)
def test_the_shipped_configurations_are_valid(validator: Draft202012Validator, path: Path) -> None:
    assert len(OF_BUILDS) == 3
    validator.validate(yaml.safe_load(path.read_text()))


ENDPOINT = "{url: 'http://localhost:8000/v1', model: m}"
RIGHT = [
    "{}",
    "base: none",
    "{base: demo, spans: {max_seconds: 2}}",
    "spans: {min_seconds: 2, max_seconds: 8, trim_seconds: 0}",
    "filters: {text: null, quality: {frames: 8}, motion: {width: 128, per_second: 5}}",
    "rules: {text.area: null, motion.speed: {min: 0.02}, quality.dark: {max: null}, caption.words: {max: 9}}",
    "rules: {aesthetics.min: {min: -1.5}}",
    "{shots: {detector: content, threshold: 27, exact: true}, score_all: true}",
    "cut: {crf: 0, preset: slow, max_side: 640, fps: 12.5}",
    "captions: {captioner: transformers, transformers: {frames: 4, dtype: bfloat16}, language: null}",
    f"captions: {{captioner: endpoint, endpoint: {ENDPOINT}, language: de, on_failed_check: keep}}",
    "captions: {rewrite: {by: transformers, model: m, batch_clips: 4}}",
    "captions: {rewrite: {by: endpoint, model: m, url: 'http://localhost:1/v1', extra: {top_p: 0.9}}}",
    "run: {measure_workers: null, model_gpus: 0.5, segment_seconds: null, ray_address: auto}",
    "shards: {target_mb: 64, row_group_mb: 16, seed: 3}",
]


@pytest.mark.parametrize("text", RIGHT)
def test_what_is_right_is_so_for_both(validator: Draft202012Validator, tmp_path: Path, text: str) -> None:
    assert [error.message for error in validator.iter_errors(yaml.safe_load(text))] == []
    assert loads(text, tmp_path)


WRONG = {
    "an unknown section": "shot: {detector: content}",
    "an unknown key": "spans: {min_second: 3}",
    "an unknown filter": "filters: {movement: {}}",
    "an unknown parameter": "filters: {motion: {per_sec: 3}}",
    "a parameter of a filter without any": "filters: {duration: {x: 3}}",
    "a parameter of the wrong type": "filters: {motion: {width: wide}}",
    "parameters that are no mapping": "filters: {motion: 5}",
    "a list of filters": "filters: [motion]",
    "a measure of no frames": "filters: {quality: {frames: 0}}",
    "a negative size": "filters: {text: {long_side: -640}}",
    "a rule on no column": "rules: {motion.sped: {min: 1}}",
    "a rule to take out on no column": "rules: {motion.sped: null}",
    "an unknown bound": "rules: {motion.speed: {low: 1}}",
    "a rule that is a number": "rules: {motion.speed: 5}",
    "a bound that is a word": "rules: {motion.speed: {min: fast}}",
    "a bound that is a truth value": "rules: {motion.speed: {min: true}}",
    "an empty section": "rules:",
    "a negative number": "spans: {min_seconds: -1}",
    "a number that is too large": "cut: {crf: 60}",
    "a fraction above one": "run: {max_failed_fraction: 1.5}",
    "a word of no list": "cut: {preset: fastest}",
    "a detector of no list": "shots: {detector: magic}",
    "a captioner of no list": "captions: {captioner: vlm}",
    "a language of no list": "captions: {language: tlh}",
    "an unknown key of a captioner": "captions: {transformers: {frmes: 3}}",
    "no frames for a captioner": "captions: {transformers: {frames: 0}}",
    "an address alone": "captions: {endpoint: {url: 'http://localhost:8000/v1'}}",
    "a rewriter of no list": "captions: {rewrite: {by: hand, model: m}}",
    "a word for a truth value": "score_all: perhaps",
    "no base": "base: mine",
    "base: null": "base: null",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_so_for_both(validator: Draft202012Validator, tmp_path: Path, text: str) -> None:
    assert not loads(text, tmp_path)
    assert not validator.is_valid(yaml.safe_load(text))


# --- every key --------------------------------------------------------------------------------------


FULL = load_config(
    (CONFIGS / "default.yaml").read_text(),
    [
        "captions.transformers={}",
        f"captions.endpoint={ENDPOINT}",
        f"captions.rewrite={{by: endpoint, {ENDPOINT[1:]}",
        "cut={max_side: 640, fps: 12}",
        "run={measure_workers: 3, model_gpus: 1, caption_readers: 1, caption_gpus: 1}",
    ],
).model_dump(mode="json")
# The settings of the rewriter's other kind are null here, and so is what else may be null.
KEYS = ["shots", "spans", "filters", "cut", "captions", "shards", "run"]


def places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys of all values, and of all mappings."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    made = copy.deepcopy(FULL)
    here = made
    for part in path[:-1]:
        here = here[part]
    here[path[-1]] = value
    return made


def at(path: tuple[str, ...]) -> Any:
    value: Any = FULL
    for part in path:
        value = value[part]
    return value


def takes(values: dict[str, Any]) -> bool:
    try:
        load_config(yaml.safe_dump(values))
    except ConfigError:
        return False
    return True


def test_a_complete_configuration_is_valid_and_has_every_key(validator: Draft202012Validator) -> None:
    validator.validate(FULL)
    described = validator.schema["properties"]
    assert set(described) == {"base", *FULL}
    assert set(described["filters"]["properties"]) == set(SCORERS)
    columns = {column.name for kind in SCORERS.values() for column in kind.columns}
    assert set(described["rules"]["properties"]) == columns | set(CAPTION_COLUMNS)
    definitions = validator.schema["$defs"]
    for section in ("transformers", "endpoint", "rewrite"):
        assert set(definitions[f"captions.{section}"]["properties"]) == set(FULL["captions"][section])
    for name in SCORERS:
        assert set(definitions[f"filters.{name}"]["properties"]) == set(FULL["filters"][name])


def test_an_unknown_key_is_refused_in_every_mapping(validator: Draft202012Validator) -> None:
    mappings = [p for p in places(FULL) if isinstance(at(p), dict) and p[-1:] != ("extra",)]
    assert len(mappings) > 35
    for path in mappings:
        wrong = changed((*path, "nothing"), 1)
        assert not validator.is_valid(wrong), path
        assert not takes(wrong), path


def test_a_list_is_the_wrong_type_of_every_value(validator: Draft202012Validator) -> None:
    for path in [p for p in places(FULL) if p]:
        wrong = changed(path, [[]])
        assert not validator.is_valid(wrong), path
        assert not takes(wrong), path


@pytest.mark.parametrize("number", [-1, 0])
def test_numbers_below_their_bounds_are_refused_by_both(validator: Draft202012Validator, number: int) -> None:
    numbers = [p for key in KEYS for p in places(FULL[key], (key,)) if type(at(p)) in (int, float)]
    assert len(numbers) > 60
    found = {path: validator.is_valid(changed(path, number)) for path in numbers}
    assert {path: takes(changed(path, number)) for path in numbers} == found
    assert len(set(found.values())) == 2  # seeds and such have no bound


def test_null_is_taken_where_the_loader_takes_it(validator: Draft202012Validator) -> None:
    values = [p for key in KEYS for p in places(FULL[key], (key,)) if len(p) > 1]
    found = {path: validator.is_valid(changed(path, None)) for path in values}
    took = {path: takes(changed(path, None)) for path in values}
    # The rewriter's url is needed for `by: endpoint`, and a filter with rules goes with its rules.
    assert {path for path in values if found[path] != took[path]} <= {("captions", "rewrite", "url")}


# --- filters of one's own -----------------------------------------------------------------------------


OWN = "filters: {mypackage.colour:Colourfulness: {frames: 4}}"


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (OWN, True),
        ("filters: {mypackage.colour:Colourfulness: null}", True),
        (f"{OWN}\nrules: {{colourfulness.value: {{min: 3}}}}", True),
        (f"{OWN}\nrules: {{colourfulness.value: null, motion.speed: {{max: 1}}}}", True),
        (f"{OWN}\nrules: {{colourfulness.value: {{low: 3}}}}", False),
        (f"{OWN}\nrules: {{colourfulness: {{min: 3}}}}", False),
        ("rules: {colourfulness.value: {min: 3}}", False),
        ("filters: {motion: {}}\nrules: {colourfulness.value: {min: 3}}", False),
        ("filters: {mypackage.colour: {}}", False),
        ("filters: {'mypackage.colour:': {}}", False),
        ("filters: {'mypackage colour:Colourfulness': {}}", False),
        ("filters: {mypackage.colour:Colourfulness: 3}", False),
    ],
)
def test_a_filter_by_its_import_path_takes_any_mapping(
    validator: Draft202012Validator, text: str, right: bool
) -> None:
    assert validator.is_valid(yaml.safe_load(text)) == right


def test_a_real_filter_by_its_import_path_is_right_for_both(
    validator: Draft202012Validator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    own = "filters: {examples.colourfulness:Colourfulness: {}}\n"
    for text, right in {
        own + "rules: {colourfulness.value: {min: 3}}": True,
        own + "rules: {colourfulness.value: {low: 3}}": False,
        "rules: {colourfulness.value: {min: 3}}": False,
    }.items():
        assert validator.is_valid(yaml.safe_load(text)) == right
        assert loads(text, tmp_path) == right


def test_a_filter_of_an_installed_package_is_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {
        name: EntryPoint(name, f"{__name__}:{found}", find.GROUP)
        for name, found in (("redness", "Redness"), ("broken", "Nothing"))
    }
    monkeypatch.setattr(find, "_installed", lambda: points)
    monkeypatch.setattr("curation.config.json_schema.entry_points", lambda group: points.values())
    own = Draft202012Validator(json_schema(BASES, load_named_config("default", [])))
    for text, right in {
        "{filters: {redness: {share: 0.5}}, rules: {redness.value: {max: 9}}}": True,
        "filters: {redness: {frames: 0}}": False,
        "filters: {redness: {shares: 0.5}}": False,
        "filters: {broken: {}}": False,
    }.items():
        assert own.is_valid(yaml.safe_load(text)) == right, text
        assert loads(text, tmp_path) == right, text


def test_words_explain_the_keys(validator: Draft202012Validator) -> None:
    words = validator.schema["$defs"]["filters.motion"]["description"]
    assert words.startswith("Length of the optical flow")
    assert "motion.speed (frame widths/s)" in words


def test_the_defaults_are_those_of_the_default_file(validator: Draft202012Validator) -> None:
    sections = yaml.safe_load((CONFIGS / "default.yaml").read_text())
    assert sections["shards"]["target_mb"] == 256
    for section in ("shots", "spans", "cut", "captions", "shards", "run"):
        described = validator.schema["$defs"][section.title()]["properties"]
        assert {key: described[key]["default"] for key in sections[section]} == sections[section]
