"""Classes of your own in a configuration: by import path, and only if the user named that path.

A dataset.json may be somebody else's. The code that it names is not imported: `Known` says what the user
allowed, and what the dataset recorded of the code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from captioning.base import CaptionerMissing, OwnCaptioner, Pictures
from filters.find import NoSuchFilter, imported, is_import_path


@dataclass(frozen=True)
class Known:
    """What is known of the code that a stored configuration names.

    manifest: the content of dataset.json. may_import: the import paths that this user allowed.
    """

    manifest: Mapping[str, Any] = field(default_factory=dict)
    may_import: Collection[str] = ()

    @property
    def records(self) -> Mapping[str, Any]:
        """What dataset.json says of each filter, by its name in the configuration."""
        return self.manifest.get("measures") or {}

    def captioner_key(self, params: Mapping[str, Any]) -> str:
        """The key of the captions of a captioner of your own. "" with other parameters than the recorded."""
        config = self.manifest.get("config")
        captions = config.get("captions") if isinstance(config, dict) else None
        recorded = captions.get("own") if isinstance(captions, dict) else None
        return str(self.manifest.get("captioner_key")) if (recorded or {}) == params else ""


def check_said(path: str, known: Known | None) -> None:
    """Raises `NoSuchFilter` for an import path that only a dataset.json names."""
    if known is not None and path not in known.may_import:
        raise NoSuchFilter(f"it is code of the module {path.partition(':')[0]}, which you did not name")


def check_name(section: str, key: str, name: str, names: Collection[str], own: Mapping[str, Any]) -> None:
    """Raises `ValueError` for a name that is neither one of `names` nor an import path."""
    if name not in names and not is_import_path(name):
        raise ValueError(
            f"{section}.{key}: unknown {name!r}: there are {', '.join(names)}, and classes of your own by "
            "their import path, such as mypackage.mine:Mine"
        )
    if own and name in names:
        raise ValueError(
            f"{section}.own: these are parameters of a class of your own, and {key} is {name}: take them out "
            f"with --set {section}.own={{}}"
        )


def without_own(plain: dict[str, Any]) -> dict[str, Any]:
    """Configurations without classes of your own look, and are hashed, as they were before."""
    return plain if plain.get("own") else {key: value for key, value in plain.items() if key != "own"}


@dataclass(frozen=True)
class RecordedCaptioner:
    """A captioner of a dataset that cannot run here. Its captions in the dataset can be used."""

    path: str
    key: str
    why: str
    name: str = "own"
    pictures: Pictures | None = None

    def check(self) -> None:
        """Raises `CaptionerMissing`, because this captioner cannot run."""
        raise CaptionerMissing(f"captions.captioner: {self.path}: {self.why}")

    def __call__(self, clips: Any) -> Any:
        return self.check()


def read_captioner(path: str, params: Mapping[str, Any], known: Known | None) -> Any:
    """A captioner of your own. Raises `ValueError`; for a stored configuration the error is kept for later,
    because only captioning needs the code."""
    try:
        check_said(path, known)
        return made(_checked(path, imported(path), OwnCaptioner), "captions.own", params)
    except ValueError as error:
        if known is None:
            raise ValueError(f"captions.captioner: {error}") from error
        return RecordedCaptioner(path, known.captioner_key(params), str(error).removeprefix(f"{path}: "))


def own_detector(path: str, params: Mapping[str, Any], base: type[Any]) -> Any:
    """A new shot detector of your own. Raises `ValueError`."""
    try:
        return made(_checked(path, imported(path), base), "shots.own", params)
    except ValueError as error:
        raise ValueError(f"shots.detector: {error}") from error


def _checked(path: str, found: Any, base: type[Any]) -> type[Any]:
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{path}: {found!r} is no class that derives from {base.__module__}.{base.__name__}")
    if "__dataclass_fields__" not in vars(found):
        raise ValueError(f"{path}: write @dataclass above class {found.__name__}")
    return found


def made(kind: type[Any], name: str, params: Any) -> Any:
    """An object of the dataclass `kind` from plain parameters. Raises `ValueError` for a wrong parameter."""
    if dataclasses.is_dataclass(params):
        return params
    if not isinstance(params, Mapping):
        raise ValueError(f"{name}: expected its parameters, or null to take it out, got {params!r}")
    known = {f.name for f in dataclasses.fields(kind) if f.init}
    unknown = sorted(map(str, set(params) - known))
    if unknown:
        raise ValueError(
            f"unknown key {name}.{unknown[0]}: {name} has {', '.join(sorted(known)) or 'no parameters'}"
        )
    try:
        # Values are converted to the declared types, because 10 and 10.0 must be the same measure.
        return adapter(kind).validate_python(dict(params))  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in (name, *first["loc"]))
        message = str(first["msg"]).removeprefix("Value error, ")
        given = f" (got {first['input']!r})" if first["loc"] else ""
        raise ValueError(f"{key}: {message}{given}") from error


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)  # creating an adapter takes milliseconds
