"""From sources to shards. `from curation import build` gives a function of `api.py` (docs/python.md).

    api.py        the commands as functions, for Python and for the command line
    pipeline.py   the flow: measure, select, cut and caption, and build, which calls them in order
    commands/     one module for each command that is not a build
    driver/       what the driver does around the workers: it prepares, hands out tasks and commits
    cluster/      Ray: the workers, their shares of CPUs and GPUs, the session
    judging/      verdicts beside a curator's labels, and other cut-offs
    report/       the page of a dataset           audit/      accounting, verify, estimate
    verdicts/     judged by rules; what is stale, what is to be done
    shards/       planned, written, aligned with the verdicts, exported
    captions/     whose caption is trained on; what captioners are to be asked
    decode/       foreign bytes: frames, shots, spans, scores, encoding. It runs in the decoding child
    sources/      what the user named, as a list of files
    config/       the one typed configuration
    store/        the dataset on disk: schema, whole files, lease
    sandbox/      the decoding child as its parent sees it
    corpus/       rendered footage whose truth is known; no part of the flow
    tasks/        what travels between the driver and its workers
    progress.py   progress on the terminal
    configs/      the configurations that come with the package

A room may import the rooms that stand below it here, and `filters` and `captioning`. Ray is imported in
`pipeline.py` and `cluster/` alone. `lint-imports` holds this (pyproject.toml).
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curation.api import (
        advise,
        build,
        caption,
        estimate,
        export,
        judge,
        report,
        rows,
        select,
        status,
        verify,
    )

__all__ = (
    "advise",
    "build",
    "caption",
    "estimate",
    "export",
    "judge",
    "report",
    "rows",
    "select",
    "status",
    "verify",
)


def __getattr__(name: str) -> Any:
    """A function of `api`, which is imported only now: workers and the decoding child need nothing of it."""
    if name in __all__:
        return getattr(import_module("curation.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _CallableRoom(ModuleType):
    """A room that has the name of a function of `api`: to call the room is to call the function."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return getattr(import_module("curation.api"), self.__name__.rpartition(".")[2])(*arguments, **options)


import_module("curation.report").__class__ = _CallableRoom  # its map alone is imported
