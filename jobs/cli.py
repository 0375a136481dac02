"""The `reelmill` command. Thin: parse, call, report.

Exit codes: 0 done, 1 a fault of ours, 2 wrong usage, 3 stopped and resumable (a limit of failures, no room
left; from `status`: not complete), 130 interrupted and resumable.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console

from captioning.base import CaptionerMissing
from curation.child import printable
from curation.config import Config, ConfigError, read_config_file, validated
from curation.dataset import Dataset, DatasetError, reelmill_version
from curation.lease import Lease, LeaseHeld, LeaseLost
from curation.progress import Progress, Stopped
from curation.sources import Source, SourcesError, list_sources
from curation.video import is_remote
from filters import SCORERS
from filters.base import MissingModel
from jobs import generate
from jobs.corpus import corpus
from jobs.evaluate import evaluate
from jobs.recipe import recipe

app = typer.Typer(
    help="Raw videos in, a trained two-stage text-to-video model out.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

CONFIGS = Path(__file__).parent / "configs"

Sources = Annotated[
    list[str], typer.Argument(metavar="SOURCES...", help="files, folders, globs, CSV/JSONL/Parquet lists")
]
DatasetArg = Annotated[str, typer.Argument(metavar="DATASET", help="the dataset's folder")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="e.g. rules.motion.speed.min=0.02")
]


def _complain(text: str) -> None:
    err.print("reelmill: " + "\n".join(map(printable, text.split("\n"))), markup=False)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Errors that the user can mend become one message and exit code 2."""
    try:
        yield
    except (ConfigError, DatasetError, SourcesError, MissingModel, CaptionerMissing, LeaseHeld) as error:
        _complain(str(error))
        raise typer.Exit(2) from error
    except (Stopped, LeaseLost) as error:
        _complain(f"stopped: {error}")
        raise typer.Exit(3) from error
    except OSError as error:
        if not generate.no_room(error):
            raise
        where = f" for {error.filename}" if error.filename else ""
        _complain(
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
    ours = Path(__file__).parents[1]
    return trace is not None and Path(trace.tb_frame.f_code.co_filename).parent.parent == ours


def private_ray(config: Config) -> None:
    """A Ray of our own listens on the network: only who knows a token, drawn for this run, may talk to it.

    A cluster that is named has its own way. Ray reads this when it is imported.
    """
    own = config.run.ray_address is None and not {"RAY_ADDRESS", "RAY_AUTH_MODE"} & os.environ.keys()
    if own and "ray" not in sys.modules:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


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


@contextlib.contextmanager
def _working(dataset: Dataset, command: str) -> Iterator[None]:
    """Around whatever writes: the only one to do so, and ended in good order by SIGTERM too."""
    with ended_in_order(), Lease(dataset, command) as lease:
        dataset.guard = lease.check
        try:
            yield
        except OSError as error:
            # Ray has ended, or is ending, and workers with it that were in the middle of a shard: their
            # files take room, which may be what is missing.
            if generate.no_room(error):
                with contextlib.suppress(OSError):
                    dataset.clean()
            raise
        finally:
            dataset.guard = None


def _say_what_nodes_share(dataset: Dataset, listed: Sequence[Source], nodes: int) -> None:
    """A path may be that of a disk that all nodes share, which nobody here can see."""
    local = [s.uri for s in listed if not is_remote(s.uri)][:1]
    local += [dataset.location] if dataset.is_local else []
    if nodes > 1 and local:
        _complain(
            f"all {nodes} nodes of this cluster must see {' and '.join(local)}: on a disk they share, or "
            "by an address such as s3://bucket/videos"
        )


def load_named_config(name: str, overrides: list[str] | None) -> Config:
    """`default`, `demo`, or a file."""
    path = CONFIGS / f"{name}.yaml"
    return read_config_file(path if path.exists() else name, overrides or [])


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"reelmill {reelmill_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print it")
    ] = False,
) -> None:
    """Raw videos in, a trained two-stage text-to-video model out."""


def _dataset(location: str) -> Dataset:
    return Dataset(location if "://" in location else os.path.abspath(location))


def _stored_config(dataset: Dataset, overrides: list[str] | None) -> Config:
    """The dataset's own configuration, with `--set` on top."""
    from curation.config import apply_overrides

    data: dict[str, Any] = dataset.manifest()["config"]
    apply_overrides(data, overrides or [])
    return validated(data)


@app.command()
def build(
    sources: Sources,
    out_: Annotated[str, typer.Option("--out", metavar="DATASET", help="folder to make or to continue")],
    config: Annotated[
        str, typer.Option(help="default, demo, corpus, a YAML file, or a dataset.json")
    ] = "default",
    set_: Overrides = None,
    limit: Annotated[int | None, typer.Option(min=1, help="take only the first N sources")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="count and estimate; write nothing")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="try failed sources and clips again")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="remove the sources that are not named, with their clips")
    ] = False,
) -> None:
    """Make a dataset from raw videos, or continue one."""
    with user_errors():
        settings = load_named_config(config, set_)
        private_ray(settings)
        from curation import build as builder
        from curation import pipeline
        from curation.report import write_report

        if prune and limit is not None:
            raise ConfigError("--prune with --limit would remove the sources beyond the limit: leave one out")
        dataset = _dataset(out_)
        dataset.check_writable()
        listed = list_sources(sources, limit)
        builder.check_models(settings)
        if dry_run:
            from curation.estimate import estimate

            for line in estimate(dataset, listed, settings, retry_failed=retry_failed, prune=prune):
                out.print(printable(line), markup=False)
            return
        with _working(dataset, "build"):
            with closing(Progress()) as progress, pipeline.session(settings):
                _say_what_nodes_share(dataset, listed, pipeline.nodes())
                builder.build(dataset, listed, settings, progress, retry_failed=retry_failed, prune=prune)
            left_out = [name for name in SCORERS if name not in settings.filters]
            if left_out:
                out.print(f"not measured: {', '.join(left_out)} (not among this configuration's filters)")
            address = write_report(dataset)
            _end(dataset)
        out.print(f"dataset  {dataset.address('')}\nreport   {address}", markup=False)


@app.command()
def select(dataset: DatasetArg, set_: Overrides = None) -> None:
    """Apply other rules: no scorer runs; newly accepted clips are cut, captioned where a model captions."""
    with user_errors():
        for override in set_ or []:
            if not override.startswith("rules."):
                raise ConfigError(
                    f"--set {override}: select changes rules only (rules.<column>.min or .max); for anything "
                    "else run reelmill build with the changed configuration"
                )
        target = _dataset(dataset)
        settings = _stored_config(target, set_)
        private_ray(settings)
        from curation import build as builder
        from curation import pipeline
        from curation.report import write_report

        with _working(target, "select"):
            with closing(Progress()) as progress:
                builder.reselect(target, settings, progress, lambda: pipeline.session(settings))
            missing = builder.not_scored(target, settings)
            if missing:
                out.print(
                    f"{missing} clips pass the cheap rules but were spared a dear score, and are rejected as "
                    f"not scored; reelmill build SOURCES --out {dataset} --config "
                    f"{target.address('dataset.json')} scores them",
                    markup=False,
                )
            write_report(target)
            _end(target)


@app.command()
def caption(
    dataset: DatasetArg,
    captioner: Annotated[
        str | None, typer.Option(help="none, sidecar, transformers or endpoint; default, the dataset's")
    ] = None,
    set_: Overrides = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="try clips again whose captioning failed")
    ] = False,
) -> None:
    """Caption, or choose other captions for, what is there: nothing is measured or encoded again."""
    with user_errors():
        overrides = [*([f"captions.captioner={captioner}"] if captioner else []), *(set_ or [])]
        for override in overrides:
            if not override.startswith(("captions.", "rules.caption.", "run.")):
                raise ConfigError(
                    f"--set {override}: caption changes captions.* and rules.caption.* only (and run.*); for "
                    "other rules run reelmill select, for anything else reelmill build"
                )
        target = _dataset(dataset)
        settings = _stored_config(target, overrides)
        private_ray(settings)
        from curation import build as builder
        from curation import pipeline
        from curation.report import write_report

        with _working(target, "caption"):
            with closing(Progress()) as progress:
                builder.recaption(
                    target, settings, progress, lambda: pipeline.session(settings), retry_failed=retry_failed
                )
            write_report(target)
            _end(target)


@app.command()
def remove(
    dataset: DatasetArg,
    sources: Annotated[list[str], typer.Argument(metavar="SOURCES...", help="path, uri or source_id")],
    undo: Annotated[bool, typer.Option("--undo", help="let builds take them again")] = False,
) -> None:
    """Remove sources for good, and copies of them: clips, captions, shard rows. Builds leave them out."""
    from curation import build as builder
    from curation.remove import Removed
    from curation.report import write_report

    with user_errors():
        target = _dataset(dataset)
        settings = _stored_config(target, None)
        with _working(target, "remove"):
            if undo:
                if not (count := Removed(target).forget(sources)):
                    raise DatasetError(f"{', '.join(sources)}: not among the removed sources of {dataset}")
                out.print(f"{count} sources may be taken again by the next build that names them")
                return
            count, clips, rows = builder.remove(target, sources, settings)
            what = f"removed {count} sources, {clips} clips, {rows} shard rows" if count else "removed before"
            out.print(f"{what}; builds leave them out")
            write_report(target)
            _end(target)


@app.command()
def report(dataset: DatasetArg) -> None:
    """Write DATASET/report.html again."""
    from curation.report import write_report

    with user_errors():
        target = _dataset(dataset)
        target.manifest()
        out.print(write_report(target), markup=False)


@app.command()
def status(
    dataset: DatasetArg,
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="[SOURCES...]", help="with --explain: default, those it has")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="what a build would do, and why")] = False,
    config: Annotated[str | None, typer.Option(help="with --explain: default, the dataset's own")] = None,
    set_: Overrides = None,
) -> None:
    """The accounting of a dataset, and whether its build is complete. Exit code 3 when it is not."""
    from curation import build as builder
    from curation.lease import holder
    from curation.work import as_listed, find_work
    from curation.work import explain as lines

    with user_errors():
        if not explain and (sources or config or set_):
            raise ConfigError("SOURCES, --config and --set go with --explain")
        target = _dataset(dataset)
        settings = _stored_config(target, None)
        wrong = _print_accounting(target)
        if explain:
            wanted = load_named_config(config, set_) if config else _stored_config(target, set_)
            listed = list_sources(sources) if sources else as_listed(target)
            for line in lines(target, listed, wanted, find_work(target, listed, wanted)):
                out.print(printable(line), markup=False)
        running = holder(target)
        if running:
            out.print(running, markup=False)
        waiting = builder.waiting(target, settings)
        complete = not waiting and not wrong
        if not complete:
            waiting = waiting or "; ".join(wrong)
            again = f"reelmill build SOURCES --out {dataset} --config {target.address('dataset.json')}"
            if not wrong and builder.captions_wait(target, settings):
                again = f"reelmill caption {dataset}"
            out.print(f"not complete: {waiting}; to go on: {again}", markup=False)
            raise typer.Exit(3)
        else:
            out.print("complete", markup=False)


@app.command()
def verify(
    dataset: DatasetArg,
    decode: Annotated[bool, typer.Option("--decode", help="decode every clip with decord, too")] = False,
) -> None:
    """Check invariants and checksums. Exit code 1: something is wrong; 3: its build has not ended."""
    from curation import build as builder
    from curation.verify import verify as check

    with user_errors():
        target = _dataset(dataset)
        target.manifest()
        problems = check(target, decode=decode)
        for problem in problems:
            out.print(printable(problem), markup=False)
        waiting = builder.waiting(target, _stored_config(target, None))
        if waiting:
            out.print(f"not complete, and so not to be judged: {waiting}; see reelmill status", markup=False)
            raise typer.Exit(3)
        if problems:
            raise typer.Exit(1)
        out.print("sound", markup=False)


@app.command()
def export(
    dataset: DatasetArg,
    to: Annotated[Literal["webdataset", "files"], typer.Option(help="webdataset, or files (mp4 + txt)")],
    out_: Annotated[str, typer.Option("--out", metavar="DIR")],
) -> None:
    """Copy the accepted clips into another form."""
    from curation.export import export as copy

    with user_errors():
        target = _dataset(dataset)
        target.manifest()
        try:
            count = copy(target, to, out_)
        except ValueError as error:
            raise DatasetError(str(error)) from error
        out.print(f"{count} clips in {out_}", markup=False)


def _print_accounting(dataset: Dataset) -> list[str]:
    """Print the sums; return what is wrong with them."""
    from curation.verify import accounting

    counts = accounting(dataset)
    for line in counts.lines():
        out.print(line, markup=False)
    return counts.check()


def _end(dataset: Dataset) -> None:
    """Print the accounting of work that has ended. Sums that differ are a fault of ours, never hidden."""
    wrong = _print_accounting(dataset)
    assert not wrong, "; ".join(wrong)


app.command()(generate.train)
app.command()(generate.sample)
app.command()(generate.enhance)
app.command()(generate.convert)
app.command()(corpus)
app.command()(evaluate)
app.command()(recipe)


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


def main() -> NoReturn:
    leave(lambda: app(prog_name="reelmill"))


if __name__ == "__main__":
    main()
