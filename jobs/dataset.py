"""The commands that make, change and check datasets. Thin: parse, call, report."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Annotated, Any, Literal

import typer

from curation.config.load import validated
from curation.config.schema import Config, ConfigError
from curation.progress import Progress
from curation.sandbox.words import printable
from curation.sources.listing import list_sources
from curation.sources.source import Source
from curation.store.address import is_remote
from curation.store.dataset import Dataset, DatasetError
from curation.store.lease import Lease
from filters import SCORERS
from jobs import common
from jobs.common import complain, ended_in_order, load_named_config, out, private_ray, user_errors

Sources = Annotated[
    list[str], typer.Argument(metavar="SOURCES...", help="files, folders, globs, CSV/JSONL/Parquet lists")
]
DatasetArg = Annotated[str, typer.Argument(metavar="DATASET", help="the dataset's folder")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="e.g. rules.motion.speed.min=0.02")
]


@contextlib.contextmanager
def working(dataset: Dataset, command: str) -> Iterator[None]:
    """Around whatever writes: the only one to do so, and ended in good order by SIGTERM too."""
    with ended_in_order(), Lease(dataset, command) as lease:
        dataset.guard = lease.check
        try:
            yield
        except OSError as error:
            # Ray has ended, or is ending, and workers with it that were in the middle of a shard: their
            # files take room, which may be what is missing.
            if common.no_room(error):
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
        complain(
            f"all {nodes} nodes of this cluster must see {' and '.join(local)}: on a disk they share, or "
            "by an address such as s3://bucket/videos"
        )


def _dataset(location: str) -> Dataset:
    return Dataset(location if "://" in location else os.path.abspath(location))


def _stored_config(dataset: Dataset, overrides: list[str] | None) -> Config:
    """The dataset's own configuration, with `--set` on top."""
    from curation.config.load import apply_overrides, stored_config

    manifest = dataset.manifest()
    stored = stored_config(manifest, dataset.location)
    if not overrides:
        return stored
    data: dict[str, Any] = manifest["config"]
    apply_overrides(data, overrides)
    return validated(data)


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
        # Imported now, not at the top: Ray reads its environment when it is imported.
        from curation import pipeline
        from curation.cluster.session import nodes, session
        from curation.driver.prepare import check_models
        from curation.report.page import write_report

        if prune and limit is not None:
            raise ConfigError("--prune with --limit would remove the sources beyond the limit: leave one out")
        dataset = _dataset(out_)
        dataset.check_writable()
        listed = list_sources(sources, limit)
        check_models(settings)
        if dry_run:
            from curation.audit.estimate import estimate

            for line in estimate(dataset, listed, settings, retry_failed=retry_failed, prune=prune):
                out.print(printable(line), markup=False)
            return
        with working(dataset, "build"):
            with closing(Progress()) as progress, session(settings):
                _say_what_nodes_share(dataset, listed, nodes())
                pipeline.build(dataset, listed, settings, progress, retry_failed=retry_failed, prune=prune)
            left_out = [name for name in SCORERS if name not in settings.filters]
            if left_out:
                out.print(f"not measured: {', '.join(left_out)} (not among this configuration's filters)")
            address = write_report(dataset)
            _end(dataset)
        out.print(f"dataset  {dataset.address('')}\nreport   {address}", markup=False)


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
        from curation.cluster.session import session
        from curation.commands.select import reselect
        from curation.driver.apply import not_scored
        from curation.report.page import write_report

        with working(target, "select"):
            with closing(Progress()) as progress:
                reselect(target, settings, progress, lambda: session(settings))
            missing = not_scored(target, settings)
            if missing:
                out.print(
                    f"{missing} clips pass the cheap rules but were spared a dear score, and are rejected as "
                    f"not scored; reelmill build SOURCES --out {dataset} --config "
                    f"{target.address('dataset.json')} scores them",
                    markup=False,
                )
            write_report(target)
            _end(target)


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
        from curation.cluster.session import session
        from curation.commands.caption import recaption
        from curation.report.page import write_report

        with working(target, "caption"):
            with closing(Progress()) as progress:
                recaption(target, settings, progress, lambda: session(settings), retry_failed=retry_failed)
            write_report(target)
            _end(target)


def remove(
    dataset: DatasetArg,
    sources: Annotated[list[str], typer.Argument(metavar="SOURCES...", help="path, uri or source_id")],
    undo: Annotated[bool, typer.Option("--undo", help="let builds take them again")] = False,
) -> None:
    """Remove sources for good, and copies of them: clips, captions, shard rows. Builds leave them out."""
    from curation.commands.remove import remove as remove_sources
    from curation.report.page import write_report
    from curation.sources.removed import Removed

    with user_errors():
        target = _dataset(dataset)
        settings = _stored_config(target, None)
        with working(target, "remove"):
            if undo:
                if not (count := Removed(target).forget(sources)):
                    raise DatasetError(f"{', '.join(sources)}: not among the removed sources of {dataset}")
                out.print(f"{count} sources may be taken again by the next build that names them")
                return
            count, clips, rows = remove_sources(target, sources, settings)
            what = f"removed {count} sources, {clips} clips, {rows} shard rows" if count else "removed before"
            out.print(f"{what}; builds leave them out")
            write_report(target)
            _end(target)


def report(dataset: DatasetArg) -> None:
    """Write DATASET/report.html again."""
    from curation.report.page import write_report

    with user_errors():
        target = _dataset(dataset)
        target.manifest()
        out.print(write_report(target), markup=False)


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
    from curation.commands.status import captions_wait, waiting
    from curation.store.lease import holder
    from curation.verdicts.explain import explain as lines
    from curation.verdicts.todo import as_listed, find_work

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
            out.print(printable(running), markup=False)
        left = waiting(target, settings)
        complete = not left and not wrong
        if not complete:
            left = left or "; ".join(wrong)
            again = f"reelmill build SOURCES --out {dataset} --config {target.address('dataset.json')}"
            if not wrong and captions_wait(target, settings):
                again = f"reelmill caption {dataset}"
            out.print(f"not complete: {left}; to go on: {again}", markup=False)
            raise typer.Exit(3)
        else:
            out.print("complete", markup=False)


def verify(
    dataset: DatasetArg,
    decode: Annotated[bool, typer.Option("--decode", help="decode every clip with decord, too")] = False,
) -> None:
    """Check invariants and checksums. Exit code 1: something is wrong; 3: its build has not ended."""
    from curation.audit.verify import verify as check
    from curation.commands.status import waiting

    with user_errors():
        target = _dataset(dataset)
        target.manifest()
        problems = check(target, decode=decode)
        for problem in problems:
            out.print(printable(problem), markup=False)
        try:
            left = waiting(target, _stored_config(target, None))
        except (ConfigError, DatasetError):
            if not problems:
                raise
            left = ""  # what tells it was found damaged just now
        if left:
            out.print(f"not complete, and so not to be judged: {left}; see reelmill status", markup=False)
            raise typer.Exit(3)
        if problems:
            raise typer.Exit(1)
        out.print("sound", markup=False)


def export(
    dataset: DatasetArg,
    to: Annotated[Literal["webdataset", "files"], typer.Option(help="webdataset, or files (mp4 + txt)")],
    out_: Annotated[str, typer.Option("--out", metavar="DIR")],
) -> None:
    """Copy the accepted clips into another form."""
    from curation.shards.export import export as copy

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
    from curation.audit.accounting import accounting

    counts = accounting(dataset)
    for line in counts.lines():
        out.print(printable(line), markup=False)
    return counts.check()


def _end(dataset: Dataset) -> None:
    """Print the accounting of work that has ended. Sums that differ are a fault of ours, never hidden."""
    wrong = _print_accounting(dataset)
    assert not wrong, "; ".join(wrong)
