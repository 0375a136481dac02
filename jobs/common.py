"""Shared by the commands: consoles, errors for the user, and interrupts around work.

Exit codes: 0 done; 1 a fault of reelmill; 2 wrong usage; 3 stopped and resumable (a limit of failures, a full
disk; from `status`: not complete); 130 interrupted and resumable.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console

from captioning.base import CaptionerMissing
from curation.config.load import NOTHING, apply_overrides, lay_over, read_config_values, validated
from curation.config.own import Known
from curation.config.schema import Config, ConfigError
from curation.progress import Stopped
from curation.sandbox.words import printable
from curation.sources.source import SourcesError
from curation.store.dataset import LEASE, Dataset, DatasetError
from curation.store.lease import Lease, LeaseHeld, LeaseLost
from filters.base import MissingModel

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_PACKAGES = ("captioning", "curation", "filters", "generation", "jobs")
CONFIGS = Path(__file__).parent / "configs"
BASES = (NOTHING, "default", "demo", "corpus")  # what a configuration file can be laid over
# What the system answers where a user may not read or write, or a disk is mounted to be read only.
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def complain(text: str) -> None:
    """Print a message for the user on the error console."""
    err.print("reelmill: " + "\n".join(map(printable, text.split("\n"))), markup=False)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors that the user can fix into a message and exit code 2, and stops into exit code 3 or 130."""
    try:
        yield
    except (ConfigError, DatasetError, SourcesError, MissingModel, CaptionerMissing, LeaseHeld) as error:
        complain(str(error))
        raise typer.Exit(2) from error
    except (Stopped, LeaseLost) as error:
        complain(f"stopped: {error}")
        raise typer.Exit(3) from error
    except OSError as error:
        if error.errno in _REFUSED and error.filename:
            complain(
                f"{error.filename}: {error.strerror}; check who may read and write there, or name another "
                "place"
            )
            raise typer.Exit(2) from error
        if not no_room(error):
            raise
        where = f" for {error.filename}" if error.filename else ""
        complain(
            f"stopped: the disk is full: no room left{where} ({error.strerror}); finished work is kept. Make "
            "room (on the dataset's disk or on the disk of temporary files) and run the same command again"
        )
        raise typer.Exit(3) from error
    except KeyboardInterrupt as error:
        err.print("\nreelmill: interrupted; run the same command again to continue", markup=False)
        raise typer.Exit(130) from error


@contextlib.contextmanager
def generation_errors() -> Iterator[None]:
    """Like `user_errors`, and also for the errors of `generation`: `ValueError`s and lack of memory."""
    from generation.train.trainer import NotFinite

    with user_errors():
        try:
            yield
        except NotFinite as error:
            raise Stopped(str(error)) from error
        except MemoryError as error:
            raise ConfigError(f"out of memory: {error}") from error
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # PyTorch's
                raise
            raise ConfigError(
                "out of memory on the GPU; use a smaller train.batch_size (with a larger train.accumulate), "
                "transformer.gradient_checkpointing=true, a smaller size, or --offload if the command has it"
            ) from error
        except ValueError as error:
            if not is_for_the_user(error):
                raise
            raise ConfigError(str(error)) from error


def is_for_the_user(error: BaseException) -> bool:
    """Whether reelmill's own code raised the error with a message for the user. An error that a library
    raises is a fault of reelmill."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    place, ours = Path(trace.tb_frame.f_code.co_filename), Path(__file__).parents[1]
    return place.is_relative_to(ours) and place.relative_to(ours).parts[0] in _PACKAGES


def private_ray(config: Config) -> None:
    """Protect a local Ray with a random token for this run. It listens on the loopback interface alone.

    A cluster with an address has its own protection. Ray reads the token when it is imported.
    """
    own = config.run.ray_address is None and not {"RAY_ADDRESS", "RAY_AUTH_MODE"} & os.environ.keys()
    if own and "ray" not in sys.modules:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        # Where a machine may be no part of a cluster (Ray's default on macOS), its address is 127.0.0.1.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def _interrupt(*_: object) -> None:
    # `docker stop`, the time limit of a job and `ray job stop` send SIGTERM.
    raise KeyboardInterrupt


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Within this context SIGTERM has the effect of Ctrl-C."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _interrupt) if is_main else None
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def one_writer(folder: str | Path, command: str, name: str = LEASE) -> Iterator[Lease]:
    """The context of commands that fill a folder without a dataset: one command at a time. SIGTERM acts like
    Ctrl-C. Raises `LeaseHeld`, and `ConfigError` for a file. name: see `curation.store.lease.Lease`."""
    if os.path.isfile(folder):
        raise ConfigError(
            f"{folder}: the folder cannot be made, because a file has this name; name another folder"
        )
    with ended_in_order(), Lease(Dataset(str(folder)), command, say=complain, name=name) as lease:
        yield lease


def load_named_config(name: str, overrides: list[str] | None) -> Config:
    """The configuration that `--config NAME` stands for, with `overrides` (KEY=VALUE).

    Raises `ConfigError`.
    """
    values, manifest = named_values(name)
    apply_overrides(values, overrides or [])
    return validated(values, None if manifest is None else Known(manifest))


def named_values(name: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(the plain values that `--config NAME` stands for, the whole content if it is a dataset.json).

    name: `default`, `demo` or `corpus`, a YAML file, or a dataset.json. A file is laid over the default, or
    over what its key `base` names. The values are a valid configuration. Raises `ConfigError`, which names
    the file.
    """
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


def leave(command: Callable[[], object]) -> NoReturn:
    """Run a command and leave the process immediately, with the command's exit code.

    Ray, the decoders and Arrow have native threads. Their shutdown at the end of the interpreter sometimes
    aborted after all work was committed, and turned exit code 0 into 134.
    """
    code = 0
    try:
        command()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:  # a second Ctrl-C during the reaction to the first
        code = 130
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def alone(command: Callable[..., object]) -> NoReturn:
    """Run one command as a module: `python -m jobs.NAME`, for `ray job submit`."""
    own = typer.Typer(add_completion=False, rich_markup_mode=None)
    own.command()(command)
    leave(own)


def no_room(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
