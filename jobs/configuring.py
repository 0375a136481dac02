"""The configuration of a training stage, from a preset, a YAML file and `--set`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from curation.config.load import apply_overrides, explain, lay_over
from curation.config.schema import ConfigError
from generation.config import Config
from generation.presets import preset


def stage_config(
    stage: str, name: str, over: str | dict[str, Any] | None, overrides: Sequence[str]
) -> Config:
    """The preset `name` with the values of `over` (a YAML file or its content), then with `overrides`.

    Raises `ConfigError`, whose message names the key, the wrong value and a correct value.
    """
    try:
        data = preset(name, stage)
    except ValueError as error:
        raise ConfigError(f"--preset: {error}") from error
    if over:
        lay_over(data, read_yaml(Path(over)) if isinstance(over, str) else over)
    apply_overrides(data, overrides)
    _locate(data)
    if data["stage"] != stage:
        raise ConfigError(f"stage: the configuration is for {data['stage']}, but the command is for {stage}")
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(dict(e), Config) for e in error.errors())) from error


def _locate(data: dict[str, Any]) -> None:
    """Make paths of folders absolute, so that a trained run works from any working directory."""
    for section, key in (("codec", "model"), ("text", "model"), ("transformer", "pretrained")):
        values = data.get(section)
        if not isinstance(values, dict) or not isinstance(values.get(key), str):
            continue
        folder = Path(values[key]).expanduser()
        if folder.is_dir():
            values[key] = str(folder.absolute())


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a YAML file, or of a stage's config.json (JSON is YAML). Raises `ConfigError`."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: the file must contain a mapping of sections")
    return data
