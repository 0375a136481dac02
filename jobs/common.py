"""Shared by the commands: consoles, errors for the user, and interrupts around work.

Exit codes: 0 done; 1 a fault of reelmill; 2 wrong usage; 3 stopped and resumable (a limit of failures, a full
disk; from `status`: not complete); 130 interrupted and resumable.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import typer
from rich.console import Console

from captioning.base import CaptionerMissing
from curation.commands.working import no_room, one_writer
from curation.config.schema import ConfigError
from curation.progress import Stopped, complain, err
from curation.sources.source import SourcesError
from curation.store.dataset import LEASE, DatasetError
from curation.store.lease import LeaseHeld, LeaseLost
from filters.base import MissingModel

out = Console(highlight=False, soft_wrap=True)

_PACKAGES = ("captioning", "curation", "filters", "generation", "jobs")
CONFIGS = Path(__file__).parent / "configs"
# What the system answers where a user may not read or write, or a disk is mounted to be read only.
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


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


@contextlib.contextmanager
def lease(folder: Path, command: str, name: str = LEASE) -> Iterator[Callable[[], None]]:
    """`one_writer` as a `generation.lock.Lock`."""
    with one_writer(folder, command, name) as held:
        yield held.check


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
