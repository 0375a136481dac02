"""What contributors and their agents are told is there, and the hooks and the workflow run what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from curation.config.named import load_named_config
from filters.rules import Rule

ROOT = Path(__file__).parents[1]
PAGES = ("AGENTS.md", "CONTRIBUTING.md")
# Names of files that a contributor or a build makes, and patterns.
NOT_THERE = {"filters/NAME.py", "tests/filters/test_NAME.py", "captioning/NAME.py", "runs/"}
NOT_THERE |= {"base.py", "open.py", "dataset.json", "RUN/STAGE/config.json", "my.yaml", "default.yaml"}


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_are_named_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    quoted = re.findall(r"`([\w./-]+(?:\.\w+|/))`", text)
    named = {name for name in (*links, *quoted) if "/" in name or name.endswith((".md", ".toml", ".txt"))}
    named = {name for name in named - NOT_THERE if not name.startswith("filters.")}
    assert len(named) > 15
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_the_targets_of_make_exist(page: str) -> None:
    named = set(re.findall(r"\bmake ([a-z.]+)", (ROOT / page).read_text(encoding="utf-8")))
    targets = set(re.findall(r"^([a-z.]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"quick", "test"} <= named
    assert named - {"a"} <= targets  # "what makes a change good"


def test_the_page_for_agents_is_a_page() -> None:
    assert len((ROOT / "AGENTS.md").read_text(encoding="utf-8").splitlines()) <= 60


# --- the example of docs/configuration.md -----------------------------------------------------------


def test_the_example_of_a_configuration_does_what_its_comments_say(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my.yaml").write_text(example)
    config = load_named_config(str(tmp_path / "my.yaml"), [])
    spans = config.spans
    assert (spans.min_seconds, spans.max_seconds, spans.trim_seconds) == (3, 8, 0.2)
    assert "text" not in config.filters
    assert not {"text.area", "quality.dark"} & set(config.rules)
    assert (config.filters["quality"].frames, config.filters["quality"].long_side) == (8, 320)
    assert config.rules["motion.speed"] == Rule(0.02, 0.6)


# --- hooks ------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def hooks(folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs all hooks on all files of a repository, without a network."""
    environment = {**os.environ, "PRE_COMMIT_HOME": str(folder / ".home")}
    environment |= dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    return subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", "--all-files"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


RIGHT = '"""A module."""\n\n\ndef double(number: int) -> int:\n    return 2 * number\n'
MISTAKES = {
    "ruff check": '"""A module."""\n\nimport os\n',
    "ruff format": '"""A module."""\n\n\ndef double(number: int) -> int:\n    return  2*number\n',
    "mypy": RIGHT.replace("2 * number", "str(number)"),
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with the hooks, the settings of the tools, and one module."""
    for name in (".pre-commit-config.yaml", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (tmp_path / ".gitignore").write_text(".venv/\n.home/\n.mypy_cache/\n.ruff_cache/\n")
    for package in ("captioning", "curation", "filters", "generation", "jobs"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text('"""A package."""\n')
    (tmp_path / "jobs" / "module.py").write_text(RIGHT)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    return tmp_path


def test_the_hooks_pass_what_is_right_and_refuse_what_is_not(repository: Path) -> None:
    done = hooks(repository)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"Passed$", done.stdout, re.MULTILINE)) == len(MISTAKES)
    for hook, text in MISTAKES.items():
        (repository / "jobs" / "module.py").write_text(text)
        done = hooks(repository)
        assert done.returncode == 1
        assert re.findall(r"^(.+?)\.+Failed$", done.stdout, re.MULTILINE) == [hook], done.stdout


# --- the workflow -----------------------------------------------------------------------------------


def test_ci_runs_the_script_that_anybody_can_run() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    workflow: dict[Any, Any] = yaml.safe_load(text)
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads `on` as a truth value
    (job,) = workflow["jobs"].values()
    assert job["runs-on"].startswith("ubuntu-")
    steps = job["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    (python,) = [step for step in steps if str(step.get("uses")).startswith("actions/setup-python@")]
    assert python["with"]["python-version"] == "3.11"
    assert workflow["permissions"] == {"contents": "read"}
    assert (ROOT / ".ci" / "run").is_file()
