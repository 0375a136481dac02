"""The configuration: what is wrong is named before any work; hashes change with what they stand for."""

from __future__ import annotations

import contextlib
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.config.changes import changes
from curation.config.load import load_config, validated
from curation.config.named import load_named_config
from curation.config.schema import Config, ConfigError, Run
from filters import SCORERS
from filters.rules import Rule

CONFIGS = Path(__file__).parents[3] / "curation" / "configs"

SMALL = """
filters: {duration: {}, motion: {width: 128}, quality: {}, text: {}}
rules:
  duration.seconds: {min: 1, max: 4}
  motion.speed: {min: 0.01}
"""


def refused(text: str = SMALL, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(text, overrides)
    return str(error.value)


# --- the files that come with the package ---------------------------------------------------------


OF_BUILDS = sorted(CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("path", OF_BUILDS, ids=lambda p: p.stem)
def test_the_shipped_configurations_load(path: Path) -> None:
    config = load_config(path.read_text())
    assert config.rules
    assert set(yaml.safe_load(path.read_text())["filters"]) == set(config.filters)


def test_default_measures_everything_and_demo_needs_no_hub() -> None:
    default, demo = (load_config((CONFIGS / f"{name}.yaml").read_text()) for name in ("default", "demo"))
    assert list(default.filters) == list(SCORERS)
    assert yaml.safe_load((CONFIGS / "default.yaml").read_text())["run"] == Run().model_dump()
    assert "aesthetics" not in demo.filters
    assert set(default.model_scorers) == {"text", "aesthetics"}
    assert {**default.local_scorers, **default.model_scorers} == default.filters


def test_the_corpus_is_judged_by_the_rules_of_the_default() -> None:
    """But for its size, and what needs a hub or a model's captions."""
    default, corpus = (load_config((CONFIGS / f"{name}.yaml").read_text()) for name in ("default", "corpus"))
    assert {name: corpus.filters.get(name) for name in default.filters} == {
        **default.filters,
        "aesthetics": None,
    }
    own = {"resolution.short_side", "aesthetics.mean"}
    kept = {c: rule for c, rule in default.rules.items() if c not in own and not c.startswith("caption.")}
    assert {c: rule for c, rule in corpus.rules.items() if c not in own} == kept
    assert (corpus.shots, corpus.spans, corpus.cut) == (default.shots, default.spans, default.cut)


# --- what is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("shot: {}", ["unknown key shot", "shots", "spans"]),
        ("spans: {min_second: 3}", ["spans.min_second", "min_seconds", "trim_seconds"]),
        ("filters: {movement: {}}", ["movement", "motion"]),
        ("filters: {motion: {per_sec: 3}}", ["motion.per_sec", "per_second"]),
        ("filters: {duration: {x: 3}}", ["duration.x", "no parameters"]),
        ("filters: {motion: {1: 3}}", ["motion.1", "per_second"]),
        ("filters: {motion: {width: wide}}", ["filters", "motion.width", "'wide'"]),
        ("filters: {motion: 5}", ["motion", "5"]),
        ("filters: [motion]", ["filters", "motion"]),
        ("rules: {motion.speed: {min: 1}}", ["rules.motion.speed", "no configured filter"]),
        ("{filters: {motion: {}}, rules: {motion.sped: {min: 1}}}", ["rules.motion.sped", "motion.speed"]),
        (
            "{filters: {motion: {}}, rules: {motion.speed: {low: 1}}}",
            ["motion.speed", "low", "min and/or max"],
        ),
        ("{filters: {motion: {}}, rules: {motion.speed: 5}}", ["rules.motion.speed", "5"]),
        ("{filters: {motion: {}}, rules: {motion.speed: {min: [1]}}}", ["rules.motion.speed", "[1]"]),
        ("{filters: {motion: {}}, rules: {motion.speed: {min: fast}}}", ["rules.motion.speed", "fast"]),
        ("{filters: {motion: {}}, rules: {motion.speed: {min: true}}}", ["rules.motion.speed", "True"]),
        (
            "{filters: {motion: {}}, rules: {motion.speed: {min: .nan}}}",
            ["rules.motion.speed", "not a number"],
        ),
        ("{filters: {motion: {}}, rules: {motion.speed: {min: 2, max: 1}}}", ["motion.speed", "2", "1"]),
        ("rules: 5", ["rules"]),
        ("spans: {min_seconds: 5, max_seconds: 4}", ["spans", "5", "4"]),
        ("spans: {min_seconds: -1}", ["spans.min_seconds", "-1"]),
        ("spans: {max_seconds: .nan}", ["spans.max_seconds", "nan"]),
        ("spans: 3", ["spans"]),
        ("cut: {crf: 60}", ["cut.crf", "60", "51"]),
        ("cut: {preset: fastest}", ["cut.preset", "fastest", "veryfast"]),
        ("shots: {detector: magic}", ["shots.detector", "magic", "adaptive"]),
        ("captions: {captioner: vlm}", ["captions.captioner", "vlm", "sidecar"]),
        ("run: {decoder_threads: 0}", ["run.decoder_threads", "0"]),
        ("run: {child_memory_mb: 100}", ["run.child_memory_mb", "100", "512"]),
        ("- a list", ["mapping"]),
        ("a: b: c", ["YAML"]),
        ("just text", ["mapping"]),
    ],
)
def test_a_wrong_configuration_names_the_key_the_value_and_what_would_be_right(
    text: str, says: list[str]
) -> None:
    message = refused(text)
    assert [word for word in says if word not in message] == [], message


def test_all_that_is_wrong_is_told_at_once() -> None:
    message = refused("{cut: {crf: 99}, shards: {target_mb: 0}}")
    assert len(message.split("\n")) == 2
    assert "cut.crf" in message
    assert "shards.target_mb" in message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "wrong.yaml").write_text("cut: {crf: 99}")
    for name in ("missing.yaml", "bytes.yaml", "wrong.yaml", "."):
        with pytest.raises(ConfigError) as error:
            load_named_config(str(tmp_path / name), None)
        assert str(tmp_path / name) in str(error.value)


# --- overrides ------------------------------------------------------------------------------------


def test_overrides_set_add_and_remove() -> None:
    config = load_config(
        SMALL,
        [
            "spans.max_seconds=8",
            "cut.preset=slow",
            "score_all=true",
            "filters.motion.width=96",
            "filters.borders={}",
            "filters.text=null",
            "rules.motion.speed.max=0.5",
            "rules.duration.seconds=null",
            "rules.quality.sharpness.min=1e-3",
            "rules.borders.fraction={max: 0.1}",
            "run.ray_address=null",
            "spans.max_seconds=9",  # the last one holds
        ],
    )
    assert config.spans.max_seconds == 9
    assert (config.cut.preset, config.score_all, config.run.ray_address) == ("slow", True, None)
    assert list(config.filters) == ["duration", "motion", "quality", "borders"]  # the table's order
    assert config.filters["motion"].width == 96
    assert config.rules == {
        "motion.speed": Rule(0.01, 0.5),
        "quality.sharpness": Rule(min=0.001),
        "borders.fraction": Rule(max=0.1),
    }


@pytest.mark.parametrize("override", ["rules.motion.speed=null", "rules.motion.speed.min=null"])
def test_a_rule_goes_with_its_last_bound(override: str) -> None:
    assert set(load_config(SMALL, [override]).rules) == {"duration.seconds"}


def test_one_bound_may_go_and_the_other_stay() -> None:
    config = load_config(SMALL, ["rules.duration.seconds.min=null"])
    assert config.rules["duration.seconds"] == Rule(max=4)


def test_overrides_work_on_an_empty_configuration() -> None:
    config = load_config("", ["filters.motion={}", "rules.motion.speed.max=2"])
    assert config.rules == {"motion.speed": Rule(max=2)}
    assert load_config("rules:\nfilters: {motion: {}}", ["rules.motion.speed.max=2"]).rules == config.rules


@pytest.mark.parametrize(
    "override",
    [
        "spans.max_seconds",
        "=3",
        "spans..max_seconds=3",
        ".spans=3",
        "",
        "rules.motion=3",
        "rules.motion.speed.minimum=3",
        "rules.motion.speed.min.x=3",
        "score_all.x=3",
        "cut.crf=[",
        "captions.caption_column=a: b: c",
        "cut.crf=many",
        "cut.crff=3",
        "nothing.at.all=3",
        "rules.motion.speed.min=5x",
        "rules.motion.speed.max=0.001",
        "rules.aesthetics.mean.min=5",
    ],
)
def test_a_wrong_override_is_a_configuration_error(override: str) -> None:
    message = refused(SMALL, override)
    key = override.partition("=")[0]
    assert override in message or key.split(".")[0] in message


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(
        ["", "rules", "filters", "spans", "cut.crf", "rules.motion.speed", "filters.motion", "run"]
    ),
    st.text("ab.=:[]{}!&*#'\"-1 \n", max_size=8),
    st.text("ab.=:[]{}!&*#'\"-1 \n%@`|>?", max_size=8),
)
def test_no_override_ends_in_anything_but_a_configuration_or_its_error(
    key: str, more: str, value: str
) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(load_config(SMALL, [f"{key}{more}={value}"]), Config)


# --- hashes and round trips -----------------------------------------------------------------------


def leaves(config: Config) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, values in config.model_dump().items()
        if section not in ("filters", "rules") and isinstance(values, dict)
        for key, value in values.items()
    }


OTHER = {
    "decode.fields": "keep",
    "shots.detector": "content",
    "shots.threshold": "7.5",
    "shots.exact": "true",
    "cut.preset": "slow",
    "cut.max_side": "640",
    "cut.fps": "12",
    "captions.captioner": "none",
    "captions.caption_column": "text",
    "captions.kind": "short",
    "captions.language": "de",
    "captions.transformers": "{frames: 3}",
    "captions.endpoint": "{url: 'http://localhost:1/v1', model: m}",
    "captions.rewrite": "{by: endpoint, url: 'http://localhost:1/v1', model: m}",
    "captions.on_failed_check": "keep",
    "run.caption_gpus": "0.5",
    "run.caption_readers": "3",
    "run.caption_failures_in_a_row": "3",
    "run.measure_workers": "3",
    "run.model_gpus": "0.5",
    "run.max_failed_fraction": "0.25",
    "run.ray_address": "auto",
}


def test_the_settings_of_the_commands_in_the_docs_of_captions_are_such() -> None:
    text = (Path(__file__).parents[3] / "docs" / "captions.md").read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.startswith("reelmill caption ")]
    rewriting = []
    for line in lines:
        words = shlex.split(line)
        given = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        given += [
            f"captions.captioner={words[i + 1]}" for i, word in enumerate(words) if word == "--captioner"
        ]
        if "captions.rewrite.prompt=rewrite_short" in given:  # of the rewriter that was set before
            given.insert(0, rewriting[0])
        load_config("", given)
        rewriting += [setting for setting in given if setting.startswith("captions.rewrite={")]
    assert len(lines) >= 5
    assert len(rewriting) >= 3


def test_the_hash_changes_with_every_key_but_those_of_run() -> None:
    base = load_config(SMALL)
    hashes = {base.hash()}
    for key, value in leaves(base).items():
        other = OTHER.get(key) or str((value or 0) + (1 if isinstance(value, int) else 0.5))
        if key == "run.child_memory_mb":
            other = "600"
        config = load_config(SMALL, [f"{key}={other}"])
        assert config != base, key
        if key.startswith("run."):
            assert config.hash() == base.hash(), key
        else:
            assert config.hash() not in hashes, key
            hashes.add(config.hash())
        spans = key.startswith(("decode.", "shots.", "spans."))
        assert (config.spans_hash() != base.spans_hash()) == spans, key
        assert (config.cut_hash() != base.cut_hash()) == key.startswith("cut."), key
    assert {f"run.{k}" for k in Run.model_fields} < set(leaves(base))
    for override in ("rules.motion.speed.min=0.02", "filters.motion.width=64", "score_all=true"):
        assert load_config(SMALL, [override]).hash() not in hashes


def test_the_hash_does_not_depend_on_how_a_configuration_is_written() -> None:
    written = "rules: {motion.speed: {min: 1.0e-2}, duration.seconds: {max: 4.0, min: 1.0}}\n"
    written += "spans: {max_seconds: 10.0}\n"
    written += (
        "filters: {text: {}, quality: {frames: 4}, motion: {width: 128.0, per_second: 10}, duration: {}}"
    )
    assert load_config(written).hash() == load_config(SMALL).hash()
    assert load_config(written).measure_keys() == load_config(SMALL).measure_keys()


def test_measure_keys_change_with_parameters_and_not_with_the_device() -> None:
    base = load_config(SMALL).measure_keys()
    assert len(set(base.values())) == 4
    moved = load_config(SMALL, ["filters.text.device=cuda", "filters.text.models=elsewhere"]).measure_keys()
    assert moved == base
    changed = load_config(SMALL, ["filters.text.shrink=0.5", "filters.motion.per_second=5"]).measure_keys()
    assert {n for n in base if changed[n] != base[n]} == {"text", "motion"}
    cheaper = load_config(SMALL, ["rules.motion.speed.min=1", "run.model_workers=4"]).measure_keys()
    assert cheaper == base


bounds = st.none() | st.floats(-10, 0), st.none() | st.floats(0, 10)
columns = st.sampled_from([c.name for s in SCORERS.values() for c in s.columns])


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(columns, st.tuples(*bounds), max_size=5),
    st.floats(0.1, 5),
    st.floats(5, 50),
    st.integers(1, 9),
    st.booleans(),
)
def test_a_configuration_survives_json(
    rules: dict[str, tuple[float | None, float | None]], low: float, high: float, n: int, score_all: bool
) -> None:
    data = {
        "spans": {"min_seconds": low, "max_seconds": high},
        "filters": {name: {"frames": n} if name == "quality" else {} for name in SCORERS},
        "rules": {column: {"min": lo, "max": hi} for column, (lo, hi) in rules.items()},
        "score_all": score_all,
    }
    config = validated(data)
    assert set(config.rules) == {c for c, pair in rules.items() if pair != (None, None)}
    again = validated(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert again == config
    assert list(again.rules) == list(config.rules)
    assert (again.hash(), again.measure_keys()) == (config.hash(), config.measure_keys())


@pytest.mark.parametrize(
    "key", ["quality.frames", "motion.per_second", "motion.width", "transition.long_side"]
)
def test_a_measure_of_no_frames_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: must be above 0"):
        load_config("filters: {quality: {}, motion: {}, transition: {}}", [f"filters.{key}=0"])


def test_a_filter_set_to_null_takes_its_rules_with_it() -> None:
    config = load_named_config("default", ["filters.aesthetics=null", "filters.text=null"])
    assert "aesthetics" not in config.filters
    assert not [c for c in config.rules if c.startswith(("aesthetics.", "text."))]
    assert "motion.speed" in config.rules
    with pytest.raises(ConfigError, match=r"rules\.text\.aera"):  # a misspelt rule is still an error
        load_named_config("default", ["rules.text.aera.max=1"])


def test_an_error_in_an_override_does_not_blame_the_file() -> None:
    with pytest.raises(ConfigError, match="max_second") as caught:
        load_named_config("default", ["spans.max_second=8"])
    assert "default.yaml" not in str(caught.value)


def test_a_dataset_json_is_a_configuration(tmp_path: Path) -> None:
    config = load_named_config("demo", ["spans.max_seconds=2.5"])
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"schema_version": 1, "config": config.model_dump(mode="json")}))
    again = load_named_config(str(path), None)
    assert again == config
    assert load_named_config(str(path.rename(tmp_path / "kept.json")), None) == config
    (tmp_path / "kept.json").rename(path)
    assert changes(config, again) == []
    other = load_named_config(str(path), ["rules.motion.speed.min=0.5", "run.model_workers=2"])
    assert changes(config, other) == ["rules.motion.speed.min: 0.003 -> 0.5"]


@pytest.mark.parametrize("override", ["rules.motion.sped=null", "rules.text.aera.max=null"])
def test_a_misspelt_rule_is_not_taken_out_in_silence(override: str) -> None:
    name = ".".join(override.split("=", maxsplit=1)[0].split(".")[:3])
    with pytest.raises(ConfigError, match=rf"{name}: no such rule to take out; there are .*motion\.speed"):
        load_named_config("default", [override])
