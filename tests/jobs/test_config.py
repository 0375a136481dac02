"""`reelmill config`: a schema that a validator reads, values that are a file again, and a check of files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner, Result

from curation.config.load import load_config
from curation.config.named import BASES, CONFIGS, load_named_config
from curation.store.dataset import Dataset
from generation.configuring import stage_config
from jobs.cli import app
from tests.curation import dataset_fixture

ROOT = Path(__file__).parents[2]


def reelmill(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def printed(*arguments: str | Path) -> str:
    result = reelmill("config", *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


# --- schema -----------------------------------------------------------------------------------------


def test_the_printed_schemas_are_those_of_their_kinds() -> None:
    build = json.loads(printed("schema"))
    assert build == json.loads(printed("schema", "--for", "build"))
    assert {"base", "spans", "filters", "rules", "captions", "run"} < set(build["properties"])
    assert build["properties"]["base"]["enum"] == ["none", "default", "demo", "corpus"]
    for stage in ("vae", "stage1", "stage2"):
        schema = json.loads(printed("schema", "--for", stage))
        Draft202012Validator.check_schema(schema)
        assert schema["properties"]["stage"] == {"const": stage}
        assert {"codec", "train", "sampling"} < set(schema["properties"])


def test_what_show_prints_is_valid_by_the_schema() -> None:
    Draft202012Validator(json.loads(printed("schema"))).validate(yaml.safe_load(printed("show")))
    for stage in ("vae", "stage1", "stage2"):
        schema = json.loads(printed("schema", "--for", stage))
        Draft202012Validator(schema).validate(yaml.safe_load(printed("show", "--for", stage)))


# --- show -------------------------------------------------------------------------------------------


def test_show_prints_all_values_with_the_defaults() -> None:
    values = yaml.safe_load(printed("show"))
    assert next(iter(values)) == "base"
    assert values["base"] == "none"
    assert values["spans"] == {"min_seconds": 3, "max_seconds": 10, "trim_seconds": 0.2}
    assert values["filters"]["text"]["long_side"] == 640
    assert values["rules"]["motion.speed"] == {"min": 0.003, "max": 0.6}
    assert values["captions"]["captioner"] == "sidecar"
    assert values["run"]["child_memory_mb"] == 4096


def test_show_takes_a_file_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("spans: {max_seconds: 8}\nfilters: {text: null}\n")
    options = ["--set", "rules.motion.speed.min=0.02", "--set", "cut.crf=20"]
    values = yaml.safe_load(printed("show", "--config", tmp_path / "mine.yaml", *options))
    assert values["spans"]["max_seconds"] == 8
    assert "text" not in values["filters"]
    assert "text.area" not in values["rules"]
    assert values["rules"]["motion.speed"] == {"min": 0.02, "max": 0.6}
    assert values["cut"]["crf"] == 20


@pytest.mark.parametrize("name", [name for name in BASES if name != "none"])
def test_what_show_prints_is_the_same_configuration(tmp_path: Path, name: str) -> None:
    overrides = [r'captions.caption_column="Überschrift: \e[31m"', "filters.borders=null"]
    text = printed("show", "--config", name, *(word for o in overrides for word in ("--set", o)))
    assert "\x1b" not in text
    (tmp_path / "again.yaml").write_text(text)
    again = load_named_config(str(tmp_path / "again.yaml"), [])
    wanted = load_named_config(name, overrides)
    assert wanted.captions.caption_column == "Überschrift: \x1b[31m"
    assert (again.hash(), again.run) == (wanted.hash(), wanted.run)
    assert list(again.rules) == list(wanted.rules)
    assert load_config(text).hash() == wanted.hash()
    assert printed("show", "--config", tmp_path / "again.yaml") == text


def test_show_of_a_dataset_is_its_configuration(tmp_path: Path) -> None:
    dataset = dataset_fixture.build(str(tmp_path / "d"))
    values = yaml.safe_load(printed("show", "--config", tmp_path / "d" / "dataset.json"))
    stored = Dataset(dataset.location).manifest()["config"]
    assert values == {"base": "none", **stored}


def test_show_of_a_stage_is_a_configuration_of_that_stage(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train: {steps: 7}\n")
    more = ["--config", tmp_path / "mine.yaml", "--set", "data.fps=12"]
    text = printed("show", "--for", "stage2", "--preset", "small", *more)
    values = yaml.safe_load(text)
    assert (values["stage"], values["preset"], values["train"]["steps"]) == ("stage2", "small", 7)
    assert (values["data"]["fps"], values["transformer"]["layers"]) == (12, 16)
    (tmp_path / "again.yaml").write_text(text)
    wanted = stage_config("stage2", "small", str(tmp_path / "mine.yaml"), ["data.fps=12"])
    assert stage_config("stage2", "small", str(tmp_path / "again.yaml"), []) == wanted


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "--config", "nothere.yaml"], ["nothere.yaml"]),
        (["show", "--set", "spans.max_second=8"], ["spans.max_second", "max_seconds"]),
        (["show", "--preset", "tiny"], ["--preset tiny", "--for", "stage1"]),
        (["show", "--for", "stage1", "--preset", "huge"], ["--preset", "huge", "tiny"]),
        (["show", "--for", "stage1", "--set", "train.step=3"], ["train.step", "steps"]),
        (["show", "--for", "stage3"], ["stage3", "stage1"]),
        (["schema", "--for", "stage3"], ["stage3", "stage1"]),
        (["validate"], ["FILE"]),
        (["validate", "x.yaml", "--preset", "tiny"], ["--preset tiny", "--for"]),
    ],
)
def test_wrong_usage_gives_code_2_and_a_message(arguments: list[str], says: list[str]) -> None:
    result = reelmill("config", *arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    told = re.sub(r"\s+", " ", result.stderr)
    assert [word for word in says if word not in told] == [], told


# --- validate ---------------------------------------------------------------------------------------


def test_every_shipped_configuration_is_ok() -> None:
    files = [str(CONFIGS / f"{name}.yaml") for name in BASES if name != "none"]
    assert printed("validate", *files) == "".join(f"{file}: OK\n" for file in files)


def test_validate_names_the_file_the_key_and_a_remedy_and_goes_on(tmp_path: Path) -> None:
    for name, text in {
        "a.yaml": "spans: {max_seconds: 8}",
        "b.yaml": "spans: {max_second: 8}",
        "c.yaml": "rules: {motion.sped: {min: 1}}",
        "d.yaml": "a: b: c",
        "e.yaml": "base: none\nrules: {motion.speed: {min: 1}}",
        "f.yaml": "captions: {endpoint: {url: 'http://h/v1', model: m, api_key_env: HOME}}",
        "g.yaml": "cut: {crf: 20}",
    }.items():
        (tmp_path / name).write_text(text)
    files = [tmp_path / f"{letter}.yaml" for letter in "abcdefg"]
    result = reelmill("config", "validate", *files, tmp_path / "none.yaml")
    assert result.exit_code == 2
    assert result.stdout == f"{files[0]}: OK\n{files[6]}: OK\n"
    messages = result.stderr.split("reelmill: ")[1:]
    says = [
        ["b.yaml", "spans.max_second", "max_seconds"],
        ["c.yaml", "rules.motion.sped", "motion.speed"],
        ["d.yaml", "YAML"],
        ["e.yaml", "rules.motion.speed", "no configured filter"],
        ["f.yaml", "captions.endpoint.api_key_env", "HOME", "--set"],
        ["none.yaml", "No such file"],
    ]
    assert len(messages) == len(says)
    for message, words in zip(messages, says, strict=True):
        assert [word for word in words if word not in message] == [], message
        assert message.count(str(tmp_path)) == 1


def test_validate_checks_files_of_a_stage(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train: {steps: 7}")
    (tmp_path / "b.yaml").write_text("train: {steps: 0}")
    right = reelmill("config", "validate", "--for", "stage1", "--preset", "small", tmp_path / "a.yaml")
    assert (right.exit_code, right.stdout) == (0, f"{tmp_path / 'a.yaml'}: OK\n")
    wrong = reelmill("config", "validate", "--for", "stage1", tmp_path / "b.yaml", tmp_path / "a.yaml")
    assert wrong.exit_code == 2
    assert f"{tmp_path / 'b.yaml'}: train.steps: " in wrong.stderr
    assert wrong.stdout == f"{tmp_path / 'a.yaml'}: OK\n"


# --- completion -------------------------------------------------------------------------------------


def process(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_a_shell_is_given_a_script_and_completions() -> None:
    # The shell is the named one, and not the one that runs the tests, such as the `sh` of make.
    script = process("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "complete -o default -F _reelmill_completion reelmill" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    found = process(_REELMILL_COMPLETE="complete_bash", COMP_WORDS="reelmill co", COMP_CWORD="1")
    assert found.split() == ["convert", "corpus", "config"]
    found = process(_REELMILL_COMPLETE="complete_bash", COMP_WORDS="reelmill config v", COMP_CWORD="2")
    assert found.split() == ["validate"]
