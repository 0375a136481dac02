"""Configurations by name: those that come with the package, and files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from curation.config.load import read_config_file
from curation.config.schema import Config

CONFIGS = Path(__file__).parents[1] / "configs"


def config_file(name: str) -> Path | str:
    """The file of the configuration `default`, `demo` or `corpus`; any other name is itself a file."""
    path = CONFIGS / f"{name}.yaml"
    return path if path.exists() else name


def load_named_config(name: str, overrides: Sequence[str] | None) -> Config:
    """The configuration `default`, `demo` or `corpus`, or that of a file, with `overrides` (KEY=VALUE).

    Raises `ConfigError`.
    """
    return read_config_file(config_file(name), overrides or ())
