"""A filter by its name in the configuration: of this package, of an installed package, or by import path.

duration                          a filter of this package
colourfulness                     a filter of an installed package: its entry-point group is GROUP
mypackage.colour:Colourfulness    any class, by the import path of its module and its name
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from filters import SCORERS
from filters.base import Scorer

GROUP = "reelmill.filters"
IMPORT_PATH = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
_PREFIX = re.compile(r"[a-z][a-z0-9_]*")


class NoSuchFilter(ValueError):
    """The name of a filter stands for no class. The message names the remedy."""


def is_import_path(name: str) -> bool:
    """Does the configuration name a class by `package.module:Class`? Then using it runs that module."""
    return re.fullmatch(IMPORT_PATH, name) is not None


def scorer_class(name: str) -> type[Scorer]:
    """The class of a filter. Raises `NoSuchFilter`."""
    if name in SCORERS:
        return SCORERS[name]
    if is_import_path(name):
        return _checked(name, imported(name))
    installed = _installed()
    if name not in installed:
        known = ", ".join([*SCORERS, *sorted(installed)])
        raise NoSuchFilter(
            f"unknown measure {name!r}: there are {known}; a filter of your own is named by its import path, "
            f"such as mypackage.colour:Colourfulness, or by an entry point of the group {GROUP}"
        )
    try:
        return _checked(name, installed[name].load())
    except (ImportError, AttributeError) as error:
        raise NoSuchFilter(f"{name}: the entry point {installed[name].value} fails: {error}") from error


def imported(path: str) -> Any:
    """The object that `package.module:Name` stands for. Raises `NoSuchFilter`.

    Modules of the working folder are found, too: after installed ones, so that none of them is replaced.
    """
    module, _, name = path.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise NoSuchFilter(
            f"{path}: {error}; modules are looked for in the working folder, in PYTHONPATH and among "
            "installed packages (on a cluster: ray job submit --working-dir, or py_modules)"
        ) from error
    except AttributeError as error:
        raise NoSuchFilter(f"{path}: {error}") from error


@cache
def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _checked(name: str, found: Any) -> type[Scorer]:
    """Raises `NoSuchFilter` for a class that could not work, before any clip is measured."""
    if not (isinstance(found, type) and issubclass(found, Scorer)):
        raise NoSuchFilter(f"{name}: {found!r} is no class that derives from filters.base.Scorer")
    if not dataclasses.is_dataclass(found) or "__dataclass_fields__" not in vars(found):
        raise NoSuchFilter(f"{name}: write @dataclass(frozen=True) above class {found.__name__}")
    if not _PREFIX.fullmatch(found.name) or found.name == "caption":
        raise NoSuchFilter(
            f"{name}: its name {found.name!r} begins its columns: take small letters, digits and _, and not "
            "the word caption"
        )
    wrong = [c.name for c in found.columns if not re.fullmatch(rf"{found.name}\.[a-z0-9_]+", c.name)]
    if wrong or not found.columns:
        raise NoSuchFilter(f"{name}: its columns are named {found.name}.value; {wrong} are not")
    return found
