"""Servers, models and limits in a dataset's own configuration, and whether this user allowed them.

Another person may have made the dataset and written its dataset.json. The servers, names of keys and models
in that file are used only if this user gave the same values. The user can give a value with an option, in a
configuration file, or in an earlier command. Values of earlier commands are stored in the user's own folder
(`_file`). The user also decides how commands run. So a dataset.json cannot set the keys of the section `run`
that limit memory or time, or the address of a cluster.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import os
import re
import shlex
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from curation.config.changes import flat
from curation.config.filters import params_of
from curation.config.load import apply_overrides, validated
from curation.config.own import Known
from curation.config.schema import Config, ConfigError, Run
from filters.find import is_import_path

Values = dict[str, str]  # by dotted key

# What reelmill does with the value of each key, in words.
_WORDS = {
    "captions.endpoint.url": "clips are sent to",
    "captions.endpoint.api_key_env": "the key that is sent is the content of the variable",
    "captions.rewrite.url": "captions are sent to",
    "captions.rewrite.api_key_env": "the key that is sent is the content of the variable",
    "captions.transformers.model": "the model is loaded from",
    "captions.transformers.revision": "the model's revision is",
    "captions.rewrite.model": "the model is loaded from",
    "captions.rewrite.revision": "the model's revision is",
    "filters.aesthetics.model": "the model is loaded from",
    "filters.aesthetics.pretrained": "weights are loaded from",
    "filters.aesthetics.head": "weights are loaded from",
    "filters.text.models": "weights are loaded from",
}
KEYS = frozenset(_WORDS)
# Keys of `run`. A dataset that could set these keys could remove the limits for its own files.
_OWN_RUN = (
    "ray_address",
    "deadline_seconds",
    "deadline_per_second",
    "deadline_max_seconds",
    "child_memory_mb",
    "child_output_mb",
    "read_retries",
    "retry_seconds",
)
_KEY_NAME = re.compile(r".*(_API_KEY|_TOKEN|_KEY)")
_KNOWN_NAME = re.compile(r"[\w-]+")  # a name of open_clip or reelmill, not a file, folder or repository


def typed(overrides: Sequence[str]) -> Values:
    """The values that the user set on the command line, by dotted key."""
    data: dict[str, Any] = {}
    apply_overrides(data, overrides)
    return _texts(flat(data))


def of_dataset(
    stored: Mapping[str, Any],
    overrides: Sequence[str],
    places: Iterable[str],
    manifest: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration `stored` in a dataset.json with the user's `overrides`.

    places: the datasets for which earlier permissions of this user count. manifest: the whole content of
    the dataset.json. Code that an import path names is imported only if the user allowed it.

    The result's `unsaid` holds the values of `reaching` that this user has not allowed, now or before. Its
    `not_taken` holds the keys of `run` that stay at their defaults for the same reason. Raises `ConfigError`.
    """
    now = typed(overrides)
    said = {key: value for place in places for key, value in _recalled(place).items()} | now
    data = copy.deepcopy(dict(stored))  # overrides are applied in place
    not_taken: Values = {}
    if isinstance(data.get("run"), dict):
        data["run"] = dict(data["run"])
        for name in _OWN_RUN:
            value = data["run"].get(name)
            if value != Run.model_fields[name].default and said.get(f"run.{name}") != str(value):
                del data["run"][name]
                not_taken[f"run.{name}"] = str(value)
    apply_overrides(data, overrides)
    not_taken = {key: value for key, value in not_taken.items() if key not in now}
    paths = [path for path in data.get("filters") or () if is_import_path(str(path))]
    may_import = [p for p in paths if any(f"{key}.".startswith(f"filters.{p}.") for key in said)]
    for section, key in (("captions", "captioner"), ("shots", "detector")):
        path = str((data.get(section) or {}).get(key)) if isinstance(data.get(section), dict) else ""
        if is_import_path(path) and said.get(f"{section}.{key}") == path:
            may_import.append(path)
    config = validated(data, Known(manifest or {}, may_import))
    said |= {f"filters.{path}": path for path in paths if path in may_import}
    unsaid = {key: value for key, value in reaching(config).items() if said.get(key) != value}
    config.mark(unsaid, not_taken)
    return config


def reaching(config: Config, *, unused: bool = False) -> Values:
    """Settings that contact a server, send a key or load a model, without the defaults of reelmill.

    unused: include captioners and models that are configured but not used.
    """
    found: dict[str, Any] = {f"filters.{path}": path for path in config.filters if is_import_path(path)}
    captions = config.captions
    if is_import_path(captions.captioner):
        found["captions.captioner"] = captions.captioner
    if is_import_path(config.shots.detector):
        found["shots.detector"] = config.shots.detector
    if captions.endpoint is not None and (unused or captions.captioner == "endpoint"):
        found |= _server("captions.endpoint", captions.endpoint)
    if captions.transformers is not None and (unused or captions.captioner == "transformers"):
        found |= _other("captions.transformers", captions.transformers, ("model", "revision"))
    if captions.rewrite is not None and getattr(captions.rewrite, "by", None) == "endpoint":
        found |= _server("captions.rewrite", captions.rewrite)
    elif captions.rewrite is not None:
        found |= _other("captions.rewrite", captions.rewrite, ("model", "revision"))
    if scorer := config.scorers.get("aesthetics"):
        for name in ("model", "pretrained", "head"):
            if not _KNOWN_NAME.fullmatch(getattr(scorer, name)):
                found[f"filters.aesthetics.{name}"] = getattr(scorer, name)
    if (scorer := config.scorers.get("text")) and scorer.models != "auto":
        found["filters.text.models"] = scorer.models
    return {key: str(value) for key, value in found.items()}


def _server(section: str, asked: Any) -> dict[str, Any]:
    found = {f"{section}.url": asked.url}
    if asked.api_key_env != "OPENAI_API_KEY":
        found[f"{section}.api_key_env"] = asked.api_key_env
    return found


def _other(section: str, made: Any, names: Iterable[str]) -> dict[str, Any]:
    """The values that differ from the defaults of the section's class and are not null."""
    defaults = {field.name: field.default for field in dataclasses.fields(made)}
    return {
        f"{section}.{name}": getattr(made, name)
        for name in names
        if name in defaults and getattr(made, name) not in (None, defaults[name])
    }


def refuse_unsaid(config: Config, *, captions_only: bool = False) -> None:
    """Raises `ConfigError` if a dataset.json has settings that need permission and the user gave none.

    captions_only: the command only captions or rewrites captions. It does not score.
    """
    compares = "caption.similarity" in config.rules  # this check runs the model of the filter
    used = ("captions.", "filters.aesthetics." if compares else "captions.") if captions_only else ("",)
    unsaid = {key: value for key, value in config.unsaid.items() if key.startswith(used)}
    if not unsaid:
        return
    wants = "; ".join(f"{_words(key)} {value} ({key})" for key, value in unsaid.items())
    options = " ".join(f"--set {shlex.quote(_option(config, key, value))}" for key, value in unsaid.items())
    raise ConfigError(
        f"the dataset's own dataset.json wants this, and you have not said so: {wants}. A dataset may be "
        f"somebody else's, so nothing was contacted or run; to allow it, add {options}"
    )


def _words(key: str) -> str:
    return _WORDS.get(key, "code is run that is found as")


def _option(config: Config, key: str, value: str) -> str:
    """The override that allows a setting, and changes nothing."""
    path = key.removeprefix("filters.")
    if path not in config.filters:
        return f"{key}={value}"
    return f"{key}={json.dumps(params_of(config.filters[path]))}"


def check_key_names(config: Config, said: Mapping[str, str]) -> None:
    """Raises `ConfigError` if `api_key_env` does not look like the name of a key.

    A name that the user typed is always accepted.
    """
    for section in ("endpoint", "rewrite"):
        key = f"captions.{section}.api_key_env"
        name = getattr(getattr(config.captions, section), "api_key_env", None)
        if name and not _KEY_NAME.fullmatch(name) and said.get(key) != name:
            raise ConfigError(
                f"{key}: {name} is sent to a server as a key, and its name does not end in _API_KEY, _TOKEN "
                f"or _KEY: if you mean it, add --set {key}={name}"
            )


def remember(place: str, config: Config) -> None:
    """Store in the user's own folder which values the user allowed for the dataset at `place`.

    The new values replace the stored values. Nothing is stored while a setting still needs permission.
    """
    if config.unsaid:
        return
    said = reaching(config, unused=True)
    run = {name: getattr(config.run, name) for name in _OWN_RUN}
    said |= {f"run.{n}": str(value) for n, value in run.items() if value != Run.model_fields[n].default}
    if said == _recalled(place):
        return
    path = _file(place)
    text = json.dumps({"dataset": place, "said": said}, indent=1)
    # If the file cannot be written, the next command asks the user for the options again.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = path.with_name(f"_{path.name}.{uuid.uuid4().hex}")
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)


def _recalled(place: str) -> Values:
    """The values that the user allowed before for the dataset at `place`."""
    try:
        noted = json.loads(_file(place).read_text(encoding="utf-8"))["said"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return _texts(noted) if isinstance(noted, dict) else {}


def _file(place: str) -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    name = hashlib.blake2b(place.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    return Path(base) / "reelmill" / "datasets" / f"{name}.json"


def _texts(values: Mapping[str, Any]) -> Values:
    return {str(key): str(value) for key, value in values.items()}
