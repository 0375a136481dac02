"""A configuration from files, plain data and `key=value` overrides, and its errors in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import (
    BaseModel,
    ValidationError,
)

from curation.config.own import Known
from curation.config.schema import Config, ConfigError
from curation.store.address import is_remote, open_source

NOTHING = "none"  # the value of `base` for a file that is complete by itself


def load_config(text: str, overrides: Sequence[str] = (), known: Known | None = None) -> Config:
    """A configuration from exactly this YAML text and `key=value` overrides. Raises `ConfigError`."""
    data = _values(text)
    if data.get("base") == NOTHING:
        del data["base"]  # it says what holds here anyway
    apply_overrides(data, overrides)
    return validated(data, known)


def lay_over(data: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Set the values of `over` in plain data, in place. Mappings are laid over mappings, key by key."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(data.get(key), dict):
            lay_over(data[key], value)
        else:
            data[key] = value


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set dotted keys in plain data, in place. Raises `ConfigError`."""
    for override in overrides:
        _apply(data, override)


def validated(data: Any, known: Known | None = None) -> Config:
    """A configuration from plain data. Raises `ConfigError`.

    known: what is known of the filters of a dataset.json. None: the data is the user's own, or was checked
    by the command that started this worker.
    """
    try:
        return Config.model_validate(data, context={"known": known})
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(dict(e)) for e in error.errors())) from error


def stored_config(manifest: Mapping[str, Any], location: str) -> Config:
    """The configuration in the dataset.json of a dataset. Raises `ConfigError` that names the file."""
    try:
        return validated(manifest["config"], Known(manifest))
    except ConfigError as error:
        raise ConfigError(
            f"{location}/dataset.json holds a configuration that is none: {error}; take the file from a copy "
            "of the dataset, or build again into a new folder"
        ) from error


def read_config_values(name: str | Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(the plain values of a YAML file or a dataset.json, the whole content if it is a dataset.json).

    name: a local path or an fsspec address. Another person may have written a dataset.json. The values are
    not checked. Raises `ConfigError`.
    """
    path = str(name)
    try:
        with open_source(path, typed=True) as file:
            text = file.read().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read the configuration {path}: it is not text") from error
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror or error}") from error
    except Exception as error:
        if not is_remote(path):
            raise
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    try:
        if not path.endswith(".json"):
            return _values(text), None
        data = json.loads(text)  # a dataset.json under any name can build its dataset again
        if "schema_version" in data or Path(path).name == "dataset.json":
            for part in (data["config"], data.get("measures") or {}):
                if not isinstance(part, dict):
                    raise ConfigError("config and measures must be mappings; take the file from a copy of it")
            return dict(data["config"]), data
        return _values(text), None
    except (ConfigError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _values(text: str) -> dict[str, Any]:
    """The plain values of YAML text. Raises `ConfigError`."""
    try:
        data = yaml.safe_load(text) or {}
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError("the file must hold a mapping of sections")
    return data


def _apply(data: dict[str, Any], override: str) -> None:
    """Set one dotted key. The name of a rule's column also contains a dot: rules.motion.speed.min."""
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"--set {override}: write key=value, such as rules.motion.speed.min=0.02")
    if path[0] == "filters" and ":" in key:  # an import path has dots: filters.mypackage.colour:Colour.frames
        module, _, rest = key.strip().removeprefix("filters.").partition(":")
        name, *parameter = rest.split(".")
        path = ["filters", f"{module}:{name}", *parameter]
    if path[0] == "rules":
        if len(path) not in (3, 4) or (len(path) == 4 and path[3] not in ("min", "max")):
            raise ConfigError(
                f"--set {override}: a rule is set as rules.<column>.min or .max, and removed by "
                "rules.<column>=null"
            )
        path = ["rules", f"{path[1]}.{path[2]}", *path[3:]]
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML (quote it)") from error
    here = data
    for part in path[:-1]:
        if here.get(part) is None:
            here[part] = {}
        here = here[part]
        if not isinstance(here, dict):
            raise ConfigError(f"--set {override}: {part} is a value, not a section")
    here[path[-1]] = value


def _explain(error: dict[str, Any]) -> str:
    """One of pydantic's errors in words: the key, the value, and the keys that exist."""
    key = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        *parents, name = (str(part) for part in error["loc"])
        section: Any = Config
        for part in parents:
            field = getattr(section, "model_fields", {}).get(part)
            section = next(iter(_models(field.annotation)), None) if field else None
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
