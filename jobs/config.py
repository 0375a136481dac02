"""`reelmill config schema|show|validate`: what configurations may contain, what they say, what is wrong."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, get_args

import typer
import yaml

from curation.config import said
from curation.config.json_schema import json_schema as schema_of_builds
from curation.config.load import NOTHING, validated
from curation.config.named import BASES, load_named_config, named_values
from curation.config.schema import ConfigError
from generation import configuring
from generation.config import Config
from generation.json_schema import json_schema as schema_of_stage
from jobs.common import complain, out, user_errors

config = typer.Typer(
    help="Describe, print and check configurations.", no_args_is_help=True, rich_markup_mode=None
)

Kind = Literal["build", "vae", "stage1", "stage2"]
For = Annotated[
    Kind, typer.Option("--for", help="build, or a stage of training (then over the preset of --preset)")
]
Preset = Annotated[str | None, typer.Option(help="with --for a stage: its preset; default: tiny")]


@config.command()
def schema(
    for_: Annotated[Kind, typer.Option("--for", help="build, or a stage of training")] = "build",
) -> None:
    """Print the JSON Schema of configuration files, for editors and other checkers."""
    if for_ == "build":
        made = schema_of_builds(BASES, load_named_config("default", None))
    else:
        made = schema_of_stage(for_)
    typer.echo(json.dumps(made, indent=2, ensure_ascii=False))


@config.command()
def show(
    name: Annotated[
        str | None,
        typer.Option(
            "--config", help="as build and train take it; default: the default, or the preset alone"
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="e.g. spans.max_seconds=8")
    ] = None,
    for_: For = "build",
    preset: Preset = None,
) -> None:
    """Print every value that a configuration has, defaults included. The output is a configuration file."""
    with user_errors():
        _check_preset(for_, preset)
        if for_ == "build":
            made = load_named_config(name or "default", set_)
            values: dict[str, Any] = {"base": NOTHING, **made.model_dump(mode="json")}
        else:
            values = _stage_config(for_, preset, name, set_ or []).model_dump(mode="json")
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
        typer.echo(text, nl=False)


@config.command()
def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="YAML files, or a dataset.json")],
    for_: For = "build",
    preset: Preset = None,
) -> None:
    """Check configuration files. Print OK for each that is right. Exit code 2: one of them is wrong."""
    wrong = 0
    with user_errors():
        _check_preset(for_, preset)
        for file in files:
            try:
                _check(file, for_, preset)
            except ConfigError as error:
                message = str(error)
                complain(message if file in message else f"{file}: {message}")
                wrong += 1
            else:
                out.print(f"{file}: OK", markup=False)
    if wrong:
        raise typer.Exit(2)


def _stage_config(stage: str, preset: str | None, file: str | None, overrides: list[str]) -> Config:
    try:
        return configuring.stage_config(stage, preset or "tiny", file, overrides)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check(file: str, kind: Kind, preset: str | None) -> None:
    """Raises `ConfigError` for a file that `build` or `train` would refuse."""
    if kind != "build":
        _stage_config(kind, preset, file, [])
        return
    values, manifest = named_values(file)
    if manifest is None:
        said.check_key_names(validated(values), {})


def _check_preset(kind: Kind, preset: str | None) -> None:
    if preset and kind == "build":
        stages = ", ".join(name for name in get_args(Kind) if name != "build")
        raise ConfigError(f"--preset {preset}: a build has no preset; add --for with one of {stages}")
