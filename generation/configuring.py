"""Configurations from a preset, a YAML file or plain data, and `key=value` overrides; errors in words."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from generation.allowed import allow
from generation.config import Config
from generation.presets import preset

Over = str | os.PathLike[str] | Mapping[str, Any]  # a YAML file, or its content
M = TypeVar("M", bound=BaseModel)


def stage_config(stage: str, name: str, over: Over | None, overrides: Sequence[str]) -> Config:
    """The preset `name` with the values of `over`, then with `overrides`.

    Raises `ValueError`, whose message names the key, the wrong value and a correct value.
    """
    try:
        data = preset(name, stage)
    except ValueError as error:
        raise ValueError(f"--preset: {error}") from error
    _merge(data, values_of(over))
    is_own = isinstance(over, Mapping) or not str(over).endswith(".json")  # a run's config.json travels
    apply_overrides(data, overrides)
    _locate(data)
    if data["stage"] != stage:
        raise ValueError(f"stage: the configuration is for {data['stage']}, but the command is for {stage}")
    config = checked(data, Config)
    if is_own or any(override.strip().startswith("codec.kind=") for override in overrides):
        allow(config.codec.kind)
    return config


def checked(data: Mapping[str, Any], model: type[M]) -> M:
    """The typed settings `model` from plain data. Raises `ValueError` in words."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ValueError("\n".join(_explain(dict(e), model) for e in error.errors())) from error


def values_of(over: Over | None) -> dict[str, Any]:
    """Plain values that may be changed. Raises `ValueError` for a file that cannot be read."""
    if over is None:
        return {}
    return copy.deepcopy(dict(over)) if isinstance(over, Mapping) else read_yaml(Path(over))


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a YAML file, or of a stage's config.json (JSON is YAML). Raises `ValueError`."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: the file must contain a mapping of sections")
    return data


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set dotted keys in plain data, in place: `train.learning_rate=1e-4`. Raises `ValueError`."""
    for override in [overrides] if isinstance(overrides, str) else overrides:
        key, equals, text = override.partition("=")
        *sections, name = key.strip().split(".")
        if not equals or not all((*sections, name)):
            raise ValueError(f"--set {override}: write key=value, such as train.learning_rate=1e-4")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {override}: the value is not valid YAML (quote it)") from error
        here = data
        for section in sections:
            if here.get(section) is None:
                here[section] = {}
            here = here[section]
            if not isinstance(here, dict):
                raise ValueError(f"--set {override}: {section} is a value, not a section")
        here[name] = value


def _locate(data: dict[str, Any]) -> None:
    """Make paths of folders absolute, so that a trained run works from any working directory."""
    for section, key in (("codec", "model"), ("text", "model"), ("transformer", "pretrained")):
        values = data.get(section)
        if not isinstance(values, dict) or not isinstance(values.get(key), str):
            continue
        folder = Path(values[key]).expanduser()
        if folder.is_dir():
            values[key] = str(folder.absolute())


def _merge(data: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(data.get(key), dict):
            _merge(data[key], value)
        else:
            data[key] = value


def _explain(error: dict[str, Any], model: type[BaseModel]) -> str:
    """One of pydantic's errors in words: the key, the value, and the keys that exist."""
    key = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        *parents, name = (str(part) for part in error["loc"])
        section: Any = model
        for part in parents:
            if not part.isdigit():  # a number is an index of a list
                field = getattr(section, "model_fields", {}).get(part)
                models = _models(field.annotation) if field else []
                if not models and part in model.model_fields:  # a phase changes keys of this section
                    models = _models(model.model_fields[part].annotation)
                section = next(iter(models), None)
        known = f": there are {', '.join(sorted(section.model_fields))} (not {name})" if section else ""
        return f"unknown key {key}{known}"
    if not key:
        return message
    above, _, section_name = key.rpartition(".")
    if message.startswith(f"{section_name}."):  # the message already names the key within the section
        return f"{above}.{message}".lstrip(".")
    given = error.get("input")
    shown = f" (got {given!r})" if not isinstance(given, dict | BaseModel) else ""
    return f"{key}: {message}{shown}"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation names: `Lora` in `Lora | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
