"""`reelmill recipe`, and `python -m jobs.recipe --out DIR`: from footage to samples and their evaluation.

A recipe runs other commands in sequence, with the settings of a level. Each command is printed and can also
be run by hand. OUT/recipe.json records finished steps, and each command can resume its own work. So a
recipe that was killed resumes where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import BaseModel, ConfigDict, Field

from curation.config.schema import ConfigError
from curation.store.dataset import LEASE
from generation.config import changed
from generation.configuring import apply_overrides, checked, read_yaml, stage_config
from jobs.common import CONFIGS, alone, err, generation_errors, one_writer, out
from jobs.corpus import corpus
from jobs.dataset import build
from jobs.evaluate import evaluate
from jobs.generate import Device, places, sample, train

STAGES = ("vae", "stage1", "stage2", "lossless")  # the trainings of a recipe
BUILDING = ("corpus", "build", "build held-out")  # the steps before training
_MISSED = 1  # exit code of evaluate if a bar is missed
_WRONG = 2  # exit code of all commands for wrong usage


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StageSettings(_Section):
    preset: str = "tiny"
    config: dict[str, Any] = Field(default_factory=dict)  # changes to the preset


class Build(_Section):
    config: str = "default"
    set: tuple[str, ...] = ()


class RenderedCorpus(_Section):
    """The settings that apply if the recipe renders its own footage."""

    options: dict[str, int | float | str] = Field(default_factory=dict)  # options of `reelmill corpus`
    build: Build = Build(config="corpus")
    evaluate: dict[str, Any] = Field(default_factory=dict)  # changes to the recipe's `evaluate`
    lossless: dict[str, Any] = Field(default_factory=dict)


class Recipe(_Section):
    """The settings of a level."""

    threads: Annotated[int, Field(ge=1)] | None = None  # threads of PyTorch; null: PyTorch's default
    corpus: RenderedCorpus = RenderedCorpus()
    build: Build = Build()
    vae: StageSettings | None = None  # null: no VAE is trained; the stages have their own codec
    stage1: StageSettings = StageSettings()
    stage2: StageSettings = StageSettings()
    # A second Stage II with the lossless codec, whose evaluation has no errors of an autoencoder; null: none.
    lossless: StageSettings | None = None
    evaluate: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    name: str
    arguments: list[str]  # arguments of `reelmill`

    @property
    def told(self) -> str:
        return shlex.join(["reelmill", *self.arguments])


def recipe(
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="[SOURCES...]", help="footage; default: rendered footage")
    ] = None,
    out_: Annotated[str, typer.Option("--out", metavar="DIR", help="folder to make or to continue")] = "",
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATASET", help="an existing dataset: no build, no Ray"),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(
            "--held-out", metavar="DATASET", help="with --data: a dataset of clips for the evaluation"
        ),
    ] = None,
    level: Annotated[str, typer.Option(help="smoke, cpu, gpu, or a YAML file")] = "cpu",
    seed: Annotated[int, typer.Option(help="another seed gives other footage, weights and noise")] = 0,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="e.g. evaluate.clips=32"),
    ] = None,
    device: Device = None,
) -> None:
    """From footage to samples: build, train, sample, enhance, evaluate. The result is a page."""

    with generation_errors():
        from generation.train.parallel import join

        settings = recipe_settings(level, set_ or [])
        if not sources and not data:
            _check_not_overlaid(set_ or [], settings.corpus)
        join(device)  # it exists
        if not out_:
            raise ConfigError("--out: name a folder to make or to continue")
        if sources and data:
            raise ConfigError("give SOURCES, or a dataset with --data, not both")
        if held_out and not data:
            raise ConfigError("--held-out needs --data; without --data the recipe holds clips out itself")
        recipe_run = RecipeRun(Path(os.path.abspath(out_)), settings, seed, device)
        dataset, others = _place(data), _place(held_out)
        asked = {"sources": sources or [], "data": dataset, "held_out": others, "level": level}
        with one_writer(recipe_run.out, "recipe"):  # its steps have leases of their own, in folders below
            recipe_run.check(asked)
            missed = recipe_run.run(sources or [], dataset, others)
        out.print(f"page     {recipe_run.out / 'recipe.html'}", markup=False)
        if missed:
            out.print(f"missed bars in {', '.join(missed)}: the page shows the bars", markup=False)
            raise typer.Exit(_MISSED)


def recipe_settings(level: str, overrides: list[str]) -> Recipe:
    """The checked settings of a level. Raises `ConfigError`, which names the key, the value and a remedy."""

    from generation.evaluate.settings import Settings

    path = CONFIGS / f"recipe-{level}.yaml"
    if not path.exists() and not Path(level).is_file():
        raise ConfigError(f"--level {level}: write smoke, cpu, gpu, or the name of a YAML file")
    values = read_yaml(path if path.exists() else Path(level))
    apply_overrides(values, overrides)
    recipe = checked(values, Recipe)
    for section in (recipe.evaluate, recipe.corpus.evaluate, recipe.corpus.lossless):
        if "seed" in section:
            raise ConfigError("evaluate.seed: a recipe has one seed for all steps; set --seed")
    for name in STAGES:
        if (wanted := getattr(recipe, name)) is not None:
            with _within(f"{name}.config"):
                stage_config(_stage(name), wanted.preset, stage_values(wanted, "run/vae"), [])
                codec = wanted.config.get("codec", {})
                if codec.get("kind") == "slice" and not codec.get("model") and recipe.vae is None:
                    raise ConfigError("codec.kind: slice, but no VAE is trained; name a VAE in codec.model")
    for over in (recipe.corpus.evaluate, recipe.corpus.lossless):
        with _within("evaluate"):
            checked({**recipe.evaluate, **over}, Settings)
    return recipe


def _check_not_overlaid(overrides: Sequence[str], corpus: RenderedCorpus) -> None:
    """Raise `ConfigError` for an override without effect: with rendered footage, some settings of `corpus`
    replace the overridden setting."""
    for override in overrides:
        section, _, key = override.partition("=")[0].strip().partition(".")
        above = [
            f"corpus.{name}.{key}"
            for name, over in (("evaluate", corpus.evaluate), ("lossless", corpus.lossless))
            if section == "evaluate" and key.partition(".")[0] in over
        ]
        if above:
            raise ConfigError(
                f"evaluate.{key}: has no effect with rendered footage; set {' and '.join(above)}"
            )


@contextlib.contextmanager
def _within(section: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{section}: {error}") from error


def _stage(name: str) -> str:
    return "stage2" if name == "lossless" else name


def stage_values(wanted: StageSettings, vae: str) -> dict[str, Any]:
    """Changes to the preset of a stage. A slice codec without a model gets the recipe's own VAE `vae`."""
    codec = wanted.config.get("codec", {})
    if codec.get("kind") != "slice":
        return wanted.config
    return {**wanted.config, "codec": {"model": vae, **codec}}


def _sampled_of(made_of: dict[str, Any]) -> list[Any]:
    """The settings that decide the videos, apart from the weights."""
    settings = made_of["settings"]
    stages = [settings[name]["config"].get("sampling") for name in ("stage1", "stage2")]
    prompts = [of.get("prompts") for of in (settings["evaluate"], settings["corpus"]["evaluate"])]
    return [made_of["held_out"], stages, prompts]


def _trained_of(made_of: dict[str, Any]) -> dict[str, Any]:
    """The settings of a recipe, without settings that are only used after training."""
    settings = {key: value for key, value in made_of["settings"].items() if key != "evaluate"}
    for name in STAGES:
        if settings[name]:
            config = {k: v for k, v in settings[name]["config"].items() if k != "sampling"}
            settings[name] = {**settings[name], "config": config}
    settings["corpus"] = {k: v for k, v in settings["corpus"].items() if k not in ("evaluate", "lossless")}
    return {**settings, **{key: made_of[key] for key in ("sources", "data", "level", "seed")}}


class RecipeRun:
    """A recipe's folder, and the steps that fill it."""

    def __init__(self, folder: Path, settings: Recipe, seed: int, device: str | None):
        self.out, self.settings, self.seed, self.device = folder, settings, seed, device
        self._record = folder / "recipe.json"
        self._state: dict[str, Any] = {}

    def check(self, asked: dict[str, Any]) -> None:
        """Read the record of an earlier start. Raises `ConfigError` if settings of the training changed."""
        made_of = {**asked, "seed": self.seed, "settings": self.settings.model_dump(mode="json")}
        if self._record.is_file():
            self._state = json.loads(self._record.read_text(encoding="utf-8"))
            if self._state["made_of"] != made_of and not any(
                s["done"] for s in self._state["steps"].values()
            ):
                (self.out / "prompts.txt").unlink(missing_ok=True)
                self._state = {"made_of": made_of, "steps": {}}  # no step was finished
                self._save()
            other = changed(_trained_of(self._state["made_of"]), _trained_of(made_of))
            if other:
                raise ConfigError(
                    f"{self.out} was started with other settings: {'; '.join(other)}. Use the same settings "
                    "or another --out (evaluate, each stage's config.sampling, and --held-out may change)"
                )
            if self._state["made_of"] != made_of:
                self._do_again(made_of)
            return
        with places():
            self.out.mkdir(parents=True, exist_ok=True)
        # A recipe that was killed before it had begun leaves its lease, and an unfinished record.
        if any(path.name not in (LEASE, f"_{self._record.name}") for path in self.out.iterdir()):
            raise ConfigError(
                f"--out {self.out}: this folder is not empty and has no recipe; name another folder"
            )
        self._state = {"made_of": made_of, "steps": {}}
        self._save()

    def _do_again(self, made_of: dict[str, Any]) -> None:
        """Repeat all steps after the builds. Finished trainings end immediately and record the new sampling
        settings. Evaluations keep the parts that do not depend on the changes."""
        if _sampled_of(self._state["made_of"]) != _sampled_of(made_of):
            shutil.rmtree(self.out / "evaluation" / "videos", ignore_errors=True)
            (self.out / "prompts.txt").unlink(missing_ok=True)
        (self.out / "recipe.html").unlink(missing_ok=True)  # it shows results of the old settings
        for name, done in self._state["steps"].items():
            if name not in BUILDING:
                done["done"] = False
        self._state["made_of"] = made_of
        self._save()

    def run(self, sources: Sequence[str], data: str | None, held_out: str | None) -> list[str]:
        """Run all steps and write the page. Returns the evaluations that missed a bar."""
        import torch

        from generation.report.page import write_recipe_page

        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        is_corpus = not sources and data is None
        self._write_configs(is_corpus)
        before: list[Step] = []
        if data is None:
            before, data, held_out = self._curation(sources)
        training = self._training(data)
        total = len(before) + len(training) + 3 + (self.settings.lossless is not None)
        for step in before:
            self._run(step, total)
        prompts = self._prompts(data, held_out)  # before hours of training
        if not before and held_out:  # with --data; the recipe's own corpus needs no check
            self._check_apart(data, held_out)
        for step in training:
            self._run(step, total)
        missed = []
        for step in self._using(data, held_out, prompts, is_corpus):
            if self._run(step, total) == _MISSED:
                missed.append(step.name)
        costs = [(name, done["command"], done["seconds"]) for name, done in self._state["steps"].items()]
        stages = [(name, self.out / "run" / name) for name in ("vae", "stage1", "stage2")]
        stages.append(("stage2, lossless codec", self.out / "lossless" / "stage2"))
        evaluations = [("run", self.out / "evaluation"), ("lossless", self.out / "evaluation-lossless")]
        write_recipe_page(
            self.out,
            f"reelmill recipe, level {self._state['made_of']['level']}",
            [(name, place) for name, place in evaluations if place.is_dir()],
            [(name, place) for name, place in stages if place.is_dir()],
            costs,
        )
        return missed

    # ---- the steps

    def _curation(self, sources: Sequence[str]) -> tuple[list[Step], str, str | None]:
        """Steps, the dataset, and the dataset of held-out clips (None if the footage is not rendered)."""
        dataset, corpus = str(self.out / "dataset"), self.settings.corpus
        if sources:
            return [self._build("build", sources, dataset, self.settings.build)], dataset, None
        folder, others = self.out / "corpus", str(self.out / "held-out")
        options = [
            word
            for key, value in {"seed": self.seed, **corpus.options}.items()
            for word in (f"--{key.replace('_', '-')}", str(value))
        ]
        return (
            [
                Step("corpus", ["corpus", "--out", str(folder), *options]),
                self._build("build", [str(folder / "videos")], dataset, corpus.build),
                self._build("build held-out", [str(folder / "held-out")], others, corpus.build),
            ],
            dataset,
            others,
        )

    def _build(self, name: str, sources: Sequence[str], dataset: str, build: Build) -> Step:
        changes = [word for change in build.set for word in ("--set", change)]
        return Step(name, ["build", *sources, "--out", dataset, "--config", build.config, *changes])

    def _training(self, data: str) -> list[Step]:
        steps = []
        for name in ("vae", "stage1", "stage2", "lossless"):
            wanted: StageSettings | None = getattr(self.settings, name)
            if wanted is None:
                continue
            stage, run = ("stage2", "lossless") if name == "lossless" else (name, "run")
            arguments = [
                "train",
                stage,
                "--data",
                data,
                "--out",
                str(self.out / run),
                "--preset",
                wanted.preset,
            ]
            steps.append(
                Step(f"train {name}", [*arguments, "--config", str(self._config(name)), *self._device()])
            )
        return steps

    def _using(self, data: str, held_out: str | None, prompts: Path, is_corpus: bool) -> list[Step]:
        run, videos = str(self.out / "run"), str(self.out / "evaluation" / "videos")
        sample = [
            "sample",
            "--prompts",
            str(prompts),
            "--run",
            run,
            "--out",
            videos,
            "--seed",
            str(self.seed),
        ]
        of = ["--data", data, *(["--held-out", held_out] if held_out else []), *self._device()]

        def evaluate(name: str, run: str, *more: str) -> Step:
            place = str(self.out / name)
            config = str(self._config(name))
            return Step(name, ["evaluate", "--run", run, *of, "--out", place, "--config", config, *more])

        steps = [
            Step("sample", [*sample, "--preview-only"]),
            Step("enhance", sample),
            evaluate("evaluation", run, "--prompts", str(prompts)),
        ]
        if self.settings.lossless:
            steps.append(evaluate("evaluation-lossless", str(self.out / "lossless"), "--part", "stage2"))
        return steps

    def _device(self) -> list[str]:
        return ["--device", self.device] if self.device else []

    def _run(self, step: Step, total: int) -> int:
        """Run a step unless it is done. Returns its exit code. Raises `typer.Exit` if the step fails."""
        done = self._state["steps"].setdefault(step.name, {"seconds": 0.0, "done": False, "code": 0})
        done["command"] = step.told
        place = list(self._state["steps"]).index(step.name) + 1
        if done["done"]:
            err.print(f"[{place}/{total}] {step.name}: done before", markup=False)
            return int(done["code"])
        err.print(f"[{place}/{total}] {step.name}: {step.told}", markup=False)
        self._save()
        began = time.perf_counter()
        try:
            code = _command(step.arguments)
        finally:
            done["seconds"] += time.perf_counter() - began
            self._save()
        judged = step.name.startswith("evaluation") and (self.out / step.name / "evaluation.json").is_file()
        if code and not (code == _MISSED and judged):
            if code == _WRONG and step.name in BUILDING:
                section = "build.set" if "corpus" not in self._state["steps"] else "corpus.build.set"
                err.print(
                    f"A recipe sets options of the build with --set '{section}=[KEY=VALUE, …]'", markup=False
                )
            raise typer.Exit(code)
        done |= {"done": True, "code": code}
        self._save()
        return code

    # ---- files

    def _config(self, name: str) -> Path:
        return self.out / "configs" / f"{name}.yaml"

    def _write_configs(self, is_corpus: bool) -> None:
        settings, corpus = self.settings, self.settings.corpus
        evaluate = {"seed": self.seed, **settings.evaluate, **(corpus.evaluate if is_corpus else {})}
        lossless = {"seed": self.seed, **settings.evaluate, **(corpus.lossless if is_corpus else {})}
        configs = {"evaluation": evaluate, "evaluation-lossless": lossless}
        for name in STAGES:
            if (wanted := getattr(settings, name)) is not None:
                configs[name] = {"seed": self.seed, **stage_values(wanted, str(self.out / "run" / "vae"))}
        for name, values in configs.items():
            _write(self._config(name), yaml.safe_dump(values, sort_keys=False))

    def _prompts(self, data: str, held_out: str | None) -> Path:
        """OUT/prompts.txt with captions of held-out clips. Raises `ConfigError` if no clip has a caption."""
        from generation.evaluate.real_clips import captions
        from generation.evaluate.settings import Settings

        path = self.out / "prompts.txt"
        if not path.is_file():
            wanted = checked(read_yaml(self._config("evaluation")), Settings).prompts
            preset, config = self.settings.stage1.preset, str(self._config("stage1"))
            settings = stage_config("stage1", preset, config, []).data
            found = captions(held_out or data, settings, "all" if held_out else "held out", wanted)
            if not found:
                raise ConfigError(
                    f"{held_out or data}: no held-out clip has a caption, so there are no prompts for the "
                    "model; put NAME.txt or NAME.vtt beside the videos and run "
                    f"reelmill caption {data}, or let a model write captions with --captioner transformers "
                    "(docs/captions.md); then run the same command again"
                )
            _write(path, "".join(f"{' '.join(text.split())}\n" for text in found))
        return path

    def _check_apart(self, data: str, held_out: str) -> None:
        """Raise `ValueError` if held-out clips are among the training clips."""
        from generation.evaluate.real_clips import check_apart, ids

        stages = [name for name in STAGES if getattr(self.settings, name) is not None]
        configs = [
            stage_config(_stage(name), getattr(self.settings, name).preset, str(self._config(name)), []).data
            for name in stages
        ]
        check_apart(
            data,
            configs,
            held_out,
            ids(held_out, configs[-1].model_copy(update={"validation_fraction": 0.0})),
        )

    def _save(self) -> None:
        _write(self._record, json.dumps(self._state, indent=1))


def _write(path: Path, text: str) -> None:
    from generation.disk import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def _command(arguments: Sequence[str]) -> int:
    """Run a command of `reelmill` in this process. Returns its exit code."""

    steps = typer.Typer()
    for step in (build, corpus, evaluate, sample, train):
        steps.command()(step)
    main: Callable[..., Any] = typer.main.get_command(steps).main
    code = main(list(arguments), prog_name="reelmill", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _place(dataset: str | None) -> str | None:
    return dataset if dataset is None or "://" in dataset else os.path.abspath(dataset)


if __name__ == "__main__":
    alone(recipe)
