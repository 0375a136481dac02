"""The commands of README.md: each is one that the command line takes, and what can run here does."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from curation.cluster import session
from curation.config.named import load_named_config
from generation.configuring import stage_config
from jobs.cli import app
from tests import render
from tests.curation.inline import Inline
from tests.generation import synthetic

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What an option stands with where no command is beside it.
BUILD, TRAIN = "reelmill build ~/videos --out mydata", "reelmill train stage1 --data mydata --out run"
LEFT_OUT = " --run run --out later "  # what stands for an ellipsis


@dataclass(frozen=True)
class Written:
    """A piece of code of README.md, with the command that its options belong to."""

    text: str
    command: str  # "" for what is no command of reelmill

    @property
    def words(self) -> list[str]:
        return shlex.split(self.command, comments=True)

    @property
    def is_name(self) -> bool:
        """The name of a command alone, in a sentence."""
        return len(self.words) == 2


def pieces(text: str = README) -> list[Written]:
    """The lines of blocks, and what stands between backquotes, in order."""
    found: list[Written] = []
    default, block = BUILD, False
    for line in text.splitlines():
        if line.startswith("## "):
            default = TRAIN if "Train" in line else BUILD
        if line.startswith("```"):
            block = not block
            continue
        command = default
        for code in [line] if block else re.findall(r"`([^`]+)`", line):
            words = shlex.split(code, comments=True)
            if words[:1] == ["reelmill"]:
                command = code.replace(" … ", LEFT_OUT)
                found.append(Written(code, command))
            elif code == "--undo" or (code.startswith("--") and len(words) > 1):
                found.append(Written(code, f"{command} {code}"))
            elif words[:1] in (["python"], ["ray"], ["pip"], ["make"]):
                found.append(Written(code, ""))
    return found


COMMANDS = [p for p in pieces() if p.command]


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def parse(words: list[str]) -> dict[str, Any]:
    """The options of `reelmill WORDS`. Raises for a command or options that do not exist; runs nothing."""
    command: Any = typer.main.get_command(app)
    while isinstance(command, TyperGroup):
        name, *words = words
        assert name in command.commands, f"No such command: {name}"
        command = command.commands[name]
    with command.make_context(command.name, list(words)) as context:
        return dict(context.params)


def test_enough_of_them_are_found() -> None:
    assert set(commands()) <= {p.words[1] for p in COMMANDS}  # the page shows every command
    assert len(COMMANDS) > 45


@pytest.mark.parametrize("written", COMMANDS, ids=lambda w: w.text)
def test_it_is_a_command_with_these_options(written: Written) -> None:
    name = written.words[1]
    if written.is_name:
        assert name in commands() or name == "--install-completion"
        return
    options = parse(written.words[1:])
    overrides = list(options.get("set_") or ())
    if name in ("build", "select", "status"):
        load_named_config("default", overrides)
    if name == "train":
        stage_config(options["stage"], options["preset"], None, overrides)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("reelmill bild a --out b", "No such command"),
        ("reelmill build a --outs b", "No such option"),
        ("reelmill train stage3 --data a --out b", "is not one of"),
    ],
)
def test_a_wrong_one_would_be_seen(wrong: str, why: str) -> None:
    with pytest.raises(Exception, match=why):
        parse(shlex.split(wrong)[1:])


def test_other_programs_are_asked_for_what_is_there() -> None:
    targets = set(re.findall(r"^([a-z.]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    modules = []
    for words in (shlex.split(p.text, comments=True) for p in pieces() if not p.command):
        if words[0] == "make":
            assert set(words[1:2]) <= targets
        if words[0] == "pip":
            assert all(extra in extras for w in words for extra in re.findall(r"\.\[(\w+)\]", w))
        if "-m" in words:
            modules.append(words[words.index("-m") + 1])
            assert find_spec(modules[-1]), modules[-1]
            if modules[-1].startswith("jobs."):
                parse([modules[-1].removeprefix("jobs."), *words[words.index("-m") + 2 :]])
    assert len(modules) >= 4


# --- those that can run here, in their order ---------------------------------------------------------

# Smaller, where the words of the page would take long.
SMALLER = {
    "corpus": ["--clips", "4", "--held-out", "1", "--size", "64x64"],
    "train": ["--steps", "1", "--set", "transformer.layers=1", "--set", "train.batch_size=2"],
    "sample": ["--steps", "1"],
    "enhance": ["--steps", "1"],
}
# The hub, a server, hours, or files of others. Their own tests run them.
NOT_HERE = ("reelmill caption mydata --captioner", "reelmill convert", "reelmill recipe", "reelmill evaluate",
            "reelmill --install-completion", "reelmill train vae")  # fmt: skip


@pytest.fixture
def did(monkeypatch: pytest.MonkeyPatch) -> Iterator[Inline]:
    """What the workers do; they work in this process, without Ray."""
    monkeypatch.setattr(session, "session", lambda _: nullcontext())
    with Inline() as counts:
        yield counts


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a folder of videos, and a configuration file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    for seed, name in enumerate("ab"):
        pan = render.pan(seed, (640, 480), fps=10, seconds=5, speed=0.05)
        render.write_video(tmp_path / "videos" / f"{name}.mp4", pan, fps=10)
    (tmp_path / "my.yaml").write_text("spans: {max_seconds: 8}\n")
    (tmp_path / "labels.csv").write_text("path,judgement\nvideos/b.mp4,keep\n")
    return tmp_path


def run(written: Written, *more: str) -> str:
    words = [str(Path(w).expanduser()) if w.startswith("~") else w for w in written.words[1:]]
    done = CliRunner().invoke(app, [*words, *more])
    assert done.exit_code == 0, f"{written.text}\n{done.output}{done.exception!r}"
    return done.output


def those_of(names: set[str]) -> list[Written]:
    """Whole commands, in their order."""
    found = [p for p in COMMANDS if p.words[1] in names and not p.command.startswith(NOT_HERE)]
    return [p for p in found if p.text.startswith("reelmill") and not p.is_name]


@pytest.mark.heavy
def test_the_commands_of_datasets_run(place: Path, did: Inline) -> None:
    """With the default configuration, but for the filters that want a hub's weights or minutes."""
    names = {
        "build",
        "select",
        "status",
        "remove",
        "caption",
        "verify",
        "report",
        "export",
        "judge",
        "advise",
        "corpus",
        "config",
    }
    without = ["--set", "filters.aesthetics=null", "--set", "filters.text=null"]
    told = {}
    for written in those_of(names):
        name = written.words[1]
        measures = name == "build" or "--explain" in written.words
        told[" ".join(written.words)] = run(written, *(without if measures else SMALLER.get(name, [])))
    assert "accepted 2" in told["reelmill build ~/videos --out mydata"]
    assert "accepted 2" in told["reelmill select mydata --set rules.motion.speed.min=0.02"]
    assert "complete" in told["reelmill status mydata"]
    assert "removed 1 sources, 1 clips, 1 shard rows" in told["reelmill remove mydata ~/videos/a.mp4"]
    assert "OK" in told["reelmill verify mydata --decode"]
    assert "agreement 100.0 %" in told["reelmill judge labels.csv mydata"]
    assert (place / "mydata" / "advice.html").is_file()
    assert len(list((place / "tars").glob("*.tar"))) == 1
    assert did.measured == {"a.mp4": 1, "b.mp4": 1}
    assert len(told) >= 15


@pytest.mark.heavy
def test_the_commands_of_models_run(place: Path) -> None:
    synthetic.write_dataset(place / "mydata", 8)
    shutil.copy(place / "videos" / "a.mp4", place / "clip.mp4")
    (place / "FILE").write_text("a\nb\nc\nd\n")
    told = {}
    for written in those_of({"train", "sample", "enhance"}):
        whole = written.command
        if "0003-…" in whole:  # the preview of the last prompt
            (preview,) = (place / "later").glob("0003-*")
            whole = whole.replace("videos/0003-…", str(preview))
        told[written.text] = run(Written(written.text, whole), *SMALLER[written.words[1]])
    assert len(told) == 6
    assert (place / "large.mp4").is_file()
    assert len(list((place / "videos").glob("*/final.mp4"))) == 1
    assert [p.parent.name[:4] for p in (place / "later").glob("*/final.mp4")] == ["0003"]
