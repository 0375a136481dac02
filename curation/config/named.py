"""Configurations by name: those that come with the package, and files that are laid over them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curation.config.load import NOTHING, apply_overrides, lay_over, read_config_values, validated
from curation.config.own import Known
from curation.config.schema import Config, ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"
BASES = (NOTHING, "default", "demo", "corpus")  # what a configuration file can be laid over


def load_named_config(name: str | Mapping[str, Any], overrides: Sequence[str] | None) -> Config:
    """The configuration that `--config NAME` stands for, with `overrides` (KEY=VALUE).

    Raises `ConfigError`.
    """
    values, manifest = named_values(name)
    apply_overrides(values, overrides or [])
    return validated(values, None if manifest is None else Known(manifest))


def named_values(name: str | Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(the plain values that `--config NAME` stands for, the whole content if it is a dataset.json).

    name: `default`, `demo` or `corpus`, a YAML file, a dataset.json, or the values of a file. A file is laid
    over the default, or over what its key `base` names. The values are a valid configuration. Raises
    `ConfigError`, which names the file.
    """
    if isinstance(name, Mapping):
        return _on_its_base(copy.deepcopy(dict(name))), None
    path = CONFIGS / f"{name}.yaml"
    file = str(path) if path.exists() else name
    over, manifest = read_config_values(file)
    try:
        if manifest is None:
            return _on_its_base(over), None
        validated(over, Known(manifest))  # no code that it names is imported
        return over, manifest
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def _on_its_base(over: dict[str, Any]) -> dict[str, Any]:
    """The valid values of a file, laid over its base. Raises `ConfigError`."""
    base = over.pop("base", "default")
    if base not in BASES:
        raise ConfigError(f"base: {base!r} is no configuration to start from; write {', '.join(BASES)}")
    if base == NOTHING:
        validated(over)
        return over
    values, _ = named_values(base)
    lay_over(values, over)
    try:
        validated(values)
    except ConfigError as error:
        raise ConfigError(f"{error}{_of_base(base, over, str(error))}") from error
    return values


def _of_base(base: str, over: dict[str, Any], message: str) -> str:
    """What to add to the message of a mistake that the file would not have by itself."""
    try:
        validated(over)
    except ConfigError as alone:
        if str(alone) == message:
            return ""
    return f" (with the values of {base}, over which this file is laid; with base: none it stands by itself)"
