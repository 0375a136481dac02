"""`--config FILE` is laid over the default: what the file says counts, and all else stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from curation.config.load import lay_over, load_config
from curation.config.named import BASES, CONFIGS, load_named_config
from curation.config.schema import Config, ConfigError
from curation.store.dataset import Dataset
from filters.rules import Rule
from jobs.cli import app
from tests import render
from tests.curation.inline import Inline

FILTERS = [
    "duration",
    "resolution",
    "motion",
    "camera",
    "quality",
    "borders",
    "transition",
    "timing",
    "text",
    "aesthetics",
]
# The rules of the default, as the file has them at the time of writing.
RULES = {
    "duration.seconds": Rule(3, 10),
    "resolution.short_side": Rule(min=480),
    "motion.speed": Rule(0.003, 0.6),
    "quality.sharpness": Rule(min=0.2),
    "quality.brightness": Rule(0.06, 0.92),
    "quality.contrast": Rule(min=0.05),
    "quality.blown": Rule(max=0.4),
    "quality.dark": Rule(max=0.8),
    "quality.combing": Rule(max=0.15),
    "borders.fraction": Rule(max=0.02),
    "transition.distance": Rule(max=0.16),
    "timing.doubtful": Rule(max=0.02),
    "text.area": Rule(max=0.02),
    "aesthetics.mean": Rule(min=4.5),
    "caption.refusal": Rule(max=0),
    "caption.echo": Rule(max=0.4),
    "caption.boilerplate": Rule(max=0),
    "caption.truncated": Rule(max=0),
    "caption.repetition": Rule(max=0.3),
    "caption.language": Rule(min=0.5),
    "caption.words": Rule(3, 400),
}


def reelmill(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Config]:
    """The configuration of a file with this text."""

    def named(text: str, *overrides: str, name: str = "mine.yaml") -> Config:
        (tmp_path / name).write_text(text)
        return load_named_config(str(tmp_path / name), list(overrides))

    return named


def bounds(rules: dict[str, Rule]) -> dict[str, tuple[float | None, float | None]]:
    return {column: (rule.min, rule.max) for column, rule in rules.items()}


def test_one_section_keeps_the_filters_and_rules_of_the_default(read: Callable[..., Config]) -> None:
    config = read("spans: {max_seconds: 8}")
    assert list(config.filters) == FILTERS
    assert bounds(config.rules) == bounds(RULES)
    assert (config.spans.min_seconds, config.spans.max_seconds, config.spans.trim_seconds) == (3, 8, 0.2)
    assert config.shards.target_mb == 256
    assert config.captions.captioner == "sidecar"
    assert config.hash() == load_named_config("default", ["spans.max_seconds=8"]).hash()
    assert config.hash() != load_named_config("default", []).hash()


@pytest.mark.parametrize("text", ["", "{}", "# nothing is set\n", "base: default"])
def test_a_file_that_sets_nothing_is_the_default(read: Callable[..., Config], text: str) -> None:
    assert read(text).hash() == load_named_config("default", []).hash()


def test_filters_and_rules_are_laid_over_key_by_key(read: Callable[..., Config]) -> None:
    config = read(
        """
        filters: {text: null, quality: {frames: 8}, motion: {width: 128}}
        rules: {motion.speed: {min: 0.02}, borders.fraction: null, quality.dark: {max: null},
                caption.words: {min: 5, max: 50}, aesthetics.min: {min: 3}}
        """
    )
    assert list(config.filters) == [name for name in FILTERS if name != "text"]
    quality, motion = config.filters["quality"], config.filters["motion"]
    assert (quality.frames, quality.long_side, motion.width, motion.per_second) == (8, 320, 128, 10)
    gone = ("text.area", "borders.fraction", "quality.dark")
    wanted = {column: rule for column, rule in RULES.items() if column not in gone}
    wanted |= {
        "motion.speed": Rule(0.02, 0.6),
        "caption.words": Rule(5, 50),
        "aesthetics.min": Rule(min=3),
    }
    assert bounds(config.rules) == bounds(wanted)


def test_overrides_come_after_the_file(read: Callable[..., Config]) -> None:
    config = read("rules: {text.area: null}\ncut: {crf: 20}", "rules.text.area.max=0.5", "cut.crf=22")
    assert (config.rules["text.area"], config.cut.crf) == (Rule(max=0.5), 22)


def test_base_none_starts_from_nothing(read: Callable[..., Config]) -> None:
    config = read("base: none\nspans: {max_seconds: 8}")
    assert (config.filters, config.rules) == ({}, {})
    assert config.hash() == load_config("spans: {max_seconds: 8}").hash()
    assert "base" not in config.model_dump()
    assert load_config("base: none\nspans: {max_seconds: 8}").hash() == config.hash()


def test_another_shipped_configuration_can_be_the_base(read: Callable[..., Config]) -> None:
    config = read("base: demo\nspans: {max_seconds: 2}")
    assert list(config.filters) == FILTERS[:-1]  # the demo has no aesthetics
    assert (config.spans.min_seconds, config.spans.max_seconds) == (1, 2)
    assert config.rules["resolution.short_side"] == Rule(min=144)


@pytest.mark.parametrize("name", [name for name in BASES if name != "none"])
def test_a_copy_of_a_shipped_configuration_is_the_same(read: Callable[..., Config], name: str) -> None:
    """Also with a line taken out, which is then out: the file says `base: none`."""
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert read(text).hash() == load_named_config(name, []).hash() == load_config(text).hash()
    fewer = text.replace("  borders: {}\n", "").replace("  borders.fraction: { max: 0.02 }\n", "")
    assert "borders" not in read(fewer).filters


def test_a_file_that_starts_from_nothing_has_the_values_of_the_default_but_filters_rules_and_one() -> None:
    """The one is as version 0.1.0 had it, so that such a file has the hash that it had."""
    default, nothing = load_named_config("default", []).model_dump(), load_config("").model_dump()
    assert (default["shards"].pop("target_mb"), nothing["shards"].pop("target_mb")) == (256, 512)
    assert (nothing.pop("filters"), nothing.pop("rules")) == ({}, {})
    del default["filters"], default["rules"]
    assert default == nothing


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base: nothing", ["base: 'nothing'", "none, default, demo, corpus"]),
        ("base:", ["base: None", "none, default"]),
        ("base: [none]", ["base: ['none']", "none, default"]),
        ("rules:", ["rules", "dictionary"]),
        ("spans: {min_second: 3}", ["unknown key spans.min_second", "min_seconds"]),
        (
            "rules: {duration.seconds: {min: 20}}",
            ["min 20 is above max 10", "values of default", "base: none"],
        ),
        ("filters: {text: null}\nrules: {text.area: {max: 1}, motion.sped: {max: 1}}", ["rules.motion.sped"]),
    ],
)
def test_what_is_wrong_names_the_file_the_key_and_a_remedy(
    read, tmp_path: Path, text: str, says: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    message = str(caught.value)
    assert [word for word in [str(tmp_path / "mine.yaml"), *says] if word not in message] == []


def test_a_mistake_of_the_file_itself_does_not_blame_the_base(read: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError) as caught:
        read("cut: {crf: 60}")
    assert "values of default" not in str(caught.value)


def test_json_is_laid_over_too_and_a_dataset_json_is_complete(read: Callable[..., Config]) -> None:
    assert list(read('{"spans": {"max_seconds": 8}}', name="mine.json").filters) == FILTERS
    stored = load_config("filters: {motion: {}}\nspans: {max_seconds: 8}")
    text = json.dumps({"schema_version": 3, "config": stored.model_dump(mode="json")})
    for name in ("dataset.json", "renamed.json"):
        assert read(text, name=name).hash() == stored.hash()
    alone = json.dumps({"schema_version": 3, "config": {"filters": {"motion": {}}}})
    assert list(read(alone, name="dataset.json").filters) == ["motion"]
    with pytest.raises(ConfigError, match="unknown key base"):  # it is not laid over anything
        read(json.dumps({"schema_version": 3, "config": {"base": "default"}}), name="dataset.json")


@pytest.mark.parametrize(
    "change", [{"measures": ["motion"]}, {"measures": "motion"}, {"measures": 5}, {"config": [1]}]
)
def test_a_damaged_dataset_json_is_a_sentence_that_names_it(
    tmp_path: Path, read: Callable[..., Config], change: dict[str, object]
) -> None:
    stored = {"schema_version": 3, "config": {"filters": {"motion": {}}}} | change
    with pytest.raises(ConfigError, match="must be mappings") as caught:
        read(json.dumps(stored), name="dataset.json")
    assert str(tmp_path / "dataset.json") in str(caught.value)


def test_the_result_of_a_file_does_not_leak_into_the_next(read: Callable[..., Config]) -> None:
    read("filters: {motion: {width: 64}}\nrules: {motion.speed: null}")
    assert bounds(load_named_config("default", []).rules) == bounds(RULES)


def test_mappings_are_laid_over_and_all_else_replaces() -> None:
    data = {"a": {"b": 1, "c": [1, 2]}, "d": 3, "e": None}
    lay_over(data, {"a": {"c": [3], "f": {}}, "d": {"g": 4}, "e": {"h": 5}})
    assert data == {"a": {"b": 1, "c": [3], "f": {}}, "d": {"g": 4}, "e": {"h": 5}}


# --- a build with such a file ---------------------------------------------------------------------


def test_a_build_with_one_section_measures_and_judges_as_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curation.cluster import session

    monkeypatch.setattr(session, "session", lambda _: nullcontext())
    (tmp_path / "videos").mkdir()
    render.write_video(tmp_path / "videos" / "a.mp4", render.scenes([45], (128, 96), fps=15), fps=15)
    mine, out = tmp_path / "mine.yaml", tmp_path / "d"
    mine.write_text("filters: {text: null, aesthetics: null}\nspans: {min_seconds: 1, max_seconds: 2}\n")
    build = ["build", tmp_path / "videos", "--out", out, "--config", mine]
    with Inline():
        built = reelmill(*build)
        assert built.exit_code == 0, (built.output, built.exception)
        assert "not measured: text, aesthetics" in built.stdout
        rules = Dataset(str(out)).manifest()["rules"]
        assert set(rules) == {c for c in RULES if not c.startswith(("text.", "aesthetics."))}
        rejected = {(v["status"], v["reason"]) for v in Dataset(str(out)).verdicts()}
        assert rejected == {("rejected", "duration.seconds")}  # clips of at most 2 s; the default wants 3
        assert "measure: 0 sources (1 done before)" in reelmill(*build).stderr
        same = reelmill("status", out, "--explain", "--config", mine)
        assert "configuration:" not in same.stdout
        mine.write_text("base: none\n" + mine.read_text())
        alone = reelmill("status", out, "--explain", "--config", mine)
        assert "rules.resolution.short_side.min: 480.0 -> null" in alone.stdout
        dataset_json = reelmill("status", out, "--explain", "--config", out / "dataset.json")
        assert "configuration:" not in dataset_json.stdout


def test_the_defaults_are_written_in_one_file() -> None:
    """Each section of the default has every key, so that a reader finds all values there."""
    written = yaml.safe_load((CONFIGS / "default.yaml").read_text())
    assert written["base"] == "none"
    assert set(written["rules"]) == set(RULES)
    assert set(written["run"]) == set(load_config("").run.model_dump())
