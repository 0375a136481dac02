"""What the commands share: consoles, errors for the user, the lease and interrupts around work.

Exit codes: 0 done, 1 a fault of ours, 2 wrong usage, 3 stopped and resumable (a limit of failures, no room
left; from `status`: not complete), 130 interrupted and resumable.
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
from typing import NoReturn

import typer
from rich.console import Console

from captioning.base import CaptionerMissing
from curation.config.load import read_config_file
from curation.config.schema import Config, ConfigError
from curation.progress import Stopped
from curation.sandbox.words import printable
from curation.sources.source import SourcesError
from curation.store.dataset import DatasetError
from curation.store.lease import LeaseHeld, LeaseLost
from filters.base import MissingModel

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_PACKAGES = ("captioning", "curation", "filters", "generation", "jobs")
CONFIGS = Path(__file__).parent / "configs"
# What the system answers where a user may not read or write, or a disk is mounted to be read only.
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def complain(text: str) -> None:
    err.print("reelmill: " + "\n".join(map(printable, text.split("\n"))), markup=False)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Errors that the user can mend become one message and exit code 2."""
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
            f"stopped: there is no room left{where} ({error.strerror}); what was finished is kept. Make room "
            "(the dataset's disk, or the one of temporary files) and run the same command again"
        )
        raise typer.Exit(3) from error
    except KeyboardInterrupt as error:
        err.print("\nreelmill: interrupted; run the same command again to continue", markup=False)
        raise typer.Exit(130) from error


@contextlib.contextmanager
def generation_errors() -> Iterator[None]:
    """As `user_errors`; and what `generation` says of wrong input, with its `ValueError`s."""
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
                "out of memory on the GPU; take a smaller train.batch_size (with a larger train.accumulate), "
                "transformer.gradient_checkpointing=true, a smaller size, or --offload where there is one"
            ) from error
        except ValueError as error:
            if not is_for_the_user(error):
                raise
            raise ConfigError(str(error)) from error


def is_for_the_user(error: BaseException) -> bool:
    """Whether one of our own lines raised it, with a message for the user; a library's is a fault of ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    place, ours = Path(trace.tb_frame.f_code.co_filename), Path(__file__).parents[1]
    return place.is_relative_to(ours) and place.relative_to(ours).parts[0] in _PACKAGES


def private_ray(config: Config) -> None:
    """A Ray of our own listens on the loopback interface alone, its ports for metrics included, and talks to
    whoever knows a token that is drawn for this run.

    A cluster that is named has its own way. Ray reads this when it is imported.
    """
    own = config.run.ray_address is None and not {"RAY_ADDRESS", "RAY_AUTH_MODE"} & os.environ.keys()
    if own and "ray" not in sys.modules:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        # Where a machine may be no part of a cluster (Ray's default on macOS), its address is 127.0.0.1.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def _interrupt(*_: object) -> None:
    # `docker stop`, a job's time limit and `ray job stop` send SIGTERM: it ends as a Ctrl-C does.
    raise KeyboardInterrupt


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """SIGTERM ends what is within as a Ctrl-C does."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _interrupt) if is_main else None
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


def load_named_config(name: str, overrides: list[str] | None) -> Config:
    """`default`, `demo`, or a file."""
    path = CONFIGS / f"{name}.yaml"
    return read_config_file(path if path.exists() else name, overrides or [])


def leave(command: Callable[[], object]) -> NoReturn:
    """Run a command and leave the process at once, with its exit code.

    Ray, the decoders and Arrow each bring native threads; at the end of the interpreter their teardown has
    aborted now and then, after everything was committed, and turned exit code 0 into 134.
    """
    code = 0
    try:
        command()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:  # once more, while the first one was answered
        code = 130
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def alone(command: Callable[..., object]) -> NoReturn:
    """Run one command as a module of its own: `python -m jobs.NAME`, for `ray job submit`."""
    own = typer.Typer(add_completion=False, rich_markup_mode=None)
    own.command()(command)
    leave(own)


def no_room(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
