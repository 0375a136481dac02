"""The commands that make, change and check datasets. They parse options, call `curation`, and report."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Annotated, Literal

import typer

from curation.config import said
from curation.config.changes import flat
from curation.config.load import apply_overrides, stored_config, validated
from curation.config.schema import Config, ConfigError
from curation.progress import Progress
from curation.sandbox.words import printable
from curation.sources.listing import list_sources
from curation.sources.media import is_list
from curation.sources.source import Source
from curation.store.address import allow, is_remote
from curation.store.dataset import Dataset, DatasetError
from curation.store.lease import Lease
from filters import SCORERS
from jobs import common
from jobs.common import (
    complain,
    ended_in_order,
    err,
    load_named_config,
    named_values,
    one_writer,
    out,
    private_ray,
    user_errors,
)

Sources = Annotated[
    list[str],
    typer.Argument(metavar="SOURCES...", help="files, folders, globs, lists (CSV, JSON, Parquet …)"),
]
DatasetArg = Annotated[str, typer.Argument(metavar="DATASET", help="the dataset's folder")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="e.g. rules.motion.speed.min=0.02")
]


@contextlib.contextmanager
def working(dataset: Dataset, command: str) -> Iterator[None]:
    """The context of commands that write: one command at a time per dataset. SIGTERM acts like Ctrl-C."""
    with ended_in_order(), Lease(dataset, command, say=complain) as lease:
        dataset.guard, dataset.token = lease.check, lease.token
        try:
            yield
        except OSError as error:
            # Ray and its workers end. Their unfinished shards may fill the disk, so they are removed.
            if common.no_room(error):
                with contextlib.suppress(OSError):
                    dataset.clean()
            raise
        finally:
            dataset.guard = dataset.token = None


def _say_what_nodes_share(dataset: Dataset, listed: Sequence[Source], nodes: int) -> None:
    """Warn about local paths on a cluster. This process cannot see whether all nodes share them."""
    local = [s.uri for s in listed if not is_remote(s.uri)][:1]
    local += [dataset.location] if dataset.is_local else []
    if nodes > 1 and local:
        complain(
            f"all {nodes} nodes of this cluster must see {' and '.join(local)}: on a disk they share, or "
            "at an address such as s3://bucket/videos"
        )


def _dataset(location: str) -> Dataset:
    return Dataset(location if "://" in location else os.path.abspath(location))


def _stored_config(dataset: Dataset, overrides: list[str] | None) -> Config:
    """The dataset's own configuration, changed by `overrides`. Settings that reach outside the dataset, such
    as servers, count only if the user gave them (`curation.config.said`)."""
    manifest = dataset.manifest()
    stored_config(manifest, dataset.location)  # names the file if the configuration in it is wrong
    return said.of_dataset(manifest["config"], overrides or [], [dataset.location], manifest)


def _wanted_config(name: str, overrides: list[str] | None, dataset: Dataset) -> Config:
    """The configuration that the user gave `build` with `--config` and `--set`. Raises `ConfigError`, also
    for settings that a dataset.json wants and the user has not confirmed."""
    values, manifest = named_values(name)
    if manifest is None:
        apply_overrides(values, overrides or [])
        settings = validated(values)
        said.check_key_names(settings, said.typed(overrides or []))
        return settings
    its_own = _dataset(name.rpartition("/")[0] or ".").location
    settings = said.of_dataset(values, overrides or [], [its_own, dataset.location], manifest)
    said.refuse_unsaid(settings)
    _say_what_is_not_taken(settings)
    return settings


def _say_what_is_not_taken(config: Config) -> None:
    if config.not_taken:
        options = " ".join(f"--set {shlex.quote(f'{k}={v}')}" for k, v in config.not_taken.items())
        complain(
            f"the dataset's own dataset.json sets {', '.join(config.not_taken)}, and you have not said so: "
            f"the defaults are used; to use the dataset's values, add {options}"
        )


def _allow_typed(sources: Sequence[str]) -> None:
    """Allow the protocols that the user typed. The protocol of a list file does not count for its rows."""
    allow(name for name in sources if not is_list(name))


def build(
    sources: Sources,
    out_: Annotated[str, typer.Option("--out", metavar="DATASET", help="folder to make or to continue")],
    config: Annotated[
        str, typer.Option(help="default, demo, corpus, a YAML file over the default, or a dataset.json")
    ] = "default",
    set_: Overrides = None,
    limit: Annotated[int | None, typer.Option(min=1, help="take only the first N sources")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="count and estimate; write nothing")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="try failed sources and clips again")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="remove sources that are not named, and their clips")
    ] = False,
) -> None:
    """Make a dataset from raw videos, or continue one."""
    with user_errors():
        dataset = _dataset(out_)
        settings = _wanted_config(config, set_, dataset)
        private_ray(settings)
        # Imported only here: Ray reads the environment at import, and `private_ray` sets the environment.
        from curation import pipeline
        from curation.cluster.session import nodes, session
        from curation.driver.prepare import check_models
        from curation.report.page import write_report

        if prune and limit is not None:
            raise ConfigError("--prune with --limit would remove sources beyond the limit: use only one")
        dataset.check_writable()
        listed = list_sources(sources, limit, complain)
        _allow_typed(sources)
        check_models(settings)
        if dry_run:
            from curation.audit.estimate import estimate

            for line in estimate(dataset, listed, settings, retry_failed=retry_failed, prune=prune):
                out.print(printable(line), markup=False)
            return
        said.remember(dataset.location, settings)
        with working(dataset, "build"):
            with closing(Progress(err)) as progress, session(settings):
                _say_what_nodes_share(dataset, listed, nodes())
                pipeline.build(dataset, listed, settings, progress, retry_failed=retry_failed, prune=prune)
            left_out = [name for name in SCORERS if name not in settings.scorers]
            if left_out:
                out.print(f"not measured: {', '.join(left_out)} (not among this configuration's filters)")
            address = write_report(dataset)
            _end(dataset)
        out.print(f"dataset  {dataset.address('')}\nreport   {address}", markup=False)


def select(dataset: DatasetArg, set_: Overrides = None) -> None:
    """Apply other rules without scoring. New accepted clips are cut, and captioned if a model captions."""
    with user_errors():
        target = _dataset(dataset)
        for override in set_ or []:
            if not override.startswith(("rules.", "run.")) and not _allows(override, target):
                raise ConfigError(
                    f"--set {override}: select changes rules only (rules.<column>.min or .max; and run.*); "
                    "for anything else run reelmill build with the changed configuration"
                )
        settings = _stored_config(target, set_)
        _say_what_is_not_taken(settings)
        said.remember(target.location, settings)
        private_ray(settings)
        from curation.cluster.session import session
        from curation.commands.select import reselect
        from curation.driver.apply import not_scored
        from curation.report.page import write_report

        with working(target, "select"):
            with closing(Progress(err)) as progress:
                reselect(target, settings, progress, lambda: session(settings))
            missing = not_scored(target, settings)
            if missing:
                out.print(
                    f"{missing} clips pass the cheap rules, but an expensive score was skipped, so they are "
                    f"rejected as not scored; reelmill build SOURCES --out {dataset} --config "
                    f"{target.address('dataset.json')} scores them",
                    markup=False,
                )
            write_report(target)
            _end(target)


def _allows(override: str, dataset: Dataset) -> bool:
    """Does the override repeat a setting of dataset.json that reaches outside the dataset?

    Such an override confirms the setting and changes nothing.
    """
    key, _, value = override.partition("=")
    return key in said.KEYS and flat(dataset.manifest()["config"]).get(key) == value


def caption(
    dataset: DatasetArg,
    captioner: Annotated[
        str | None, typer.Option(help="none, sidecar, transformers or endpoint; default: the dataset's")
    ] = None,
    set_: Overrides = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="try clips with failed captioning again")
    ] = False,
) -> None:
    """Caption the existing clips, or choose other captions, without measuring or encoding again."""
    with user_errors():
        overrides = [*([f"captions.captioner={captioner}"] if captioner else []), *(set_ or [])]
        for override in overrides:
            if not override.startswith(("captions.", "rules.caption.", "run.")):
                raise ConfigError(
                    f"--set {override}: caption changes captions.*, rules.caption.* and run.* only; for "
                    "other rules run reelmill select, for other settings reelmill build"
                )
        target = _dataset(dataset)
        settings = _stored_config(target, overrides)
        _say_what_is_not_taken(settings)
        said.remember(target.location, settings)
        private_ray(settings)
        from curation.cluster.session import session
        from curation.commands.caption import recaption
        from curation.report.page import write_report

        with working(target, "caption"):
            with closing(Progress(err)) as progress:
                recaption(target, settings, progress, lambda: session(settings), retry_failed=retry_failed)
            write_report(target)
            _end(target)


def remove(
    dataset: DatasetArg,
    sources: Annotated[list[str], typer.Argument(metavar="SOURCES...", help="path, uri or source_id")],
    undo: Annotated[bool, typer.Option("--undo", help="let builds use the sources again")] = False,
) -> None:
    """Remove sources and their copies permanently, with clips, captions and shard rows. Builds skip them."""
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
                out.print(f"the next build that names these {count} sources may use them again")
                return
            count, clips, rows = remove_sources(target, sources, settings)
            what = f"removed {count} sources, {clips} clips, {rows} shard rows" if count else "removed before"
            out.print(f"{what}; builds skip them")
            write_report(target)
            _end(target)


def report(dataset: DatasetArg) -> None:
    """Write DATASET/report.html again."""
    from curation.report.page import write_report
    from curation.store.lease import holder

    with user_errors():
        target = _dataset(dataset)
        target.manifest()
        # The lease of the one file: another command may work on the dataset meanwhile, such as a long build.
        with one_writer(target.location, "report", "_lease-report.html.json"):
            if not holder(target):  # who works on the dataset writes its report, too
                target.remove_unfinished("report.html")
            address = write_report(target)
        out.print(address, markup=False)


def status(
    dataset: DatasetArg,
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SOURCES...]", help="with --explain; default: the dataset's sources"),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="print what a build would do, and why")] = False,
    config: Annotated[
        str | None, typer.Option(help="with --explain; default: the dataset's configuration")
    ] = None,
    set_: Overrides = None,
) -> None:
    """Print the accounting of a dataset, and whether its build is complete. Exit code 3: it is not."""
    from curation.commands.status import captions_wait, waiting
    from curation.store.lease import holder
    from curation.verdicts.explain import explain as lines
    from curation.verdicts.todo import as_listed, find_work

    with user_errors():
        if not explain and (sources or config or set_):
            raise ConfigError("SOURCES, --config and --set need --explain")
        target = _dataset(dataset)
        settings = _stored_config(target, None)
        wrong = _print_accounting(target)
        if explain:
            wanted = load_named_config(config, set_) if config else _stored_config(target, set_)
            listed = list_sources(sources) if sources else as_listed(target)
            _allow_typed(sources or [])
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
            out.print(printable(f"not complete: {left}; to resume: {again}"), markup=False)
            raise typer.Exit(3)
        else:
            out.print("complete", markup=False)


def verify(
    dataset: DatasetArg,
    decode: Annotated[bool, typer.Option("--decode", help="also decode every clip with decord")] = False,
) -> None:
    """Check invariants and checksums; print OK if all hold. Exit code 1: errors; 3: build not complete."""
    from curation.audit.verify import verify as check
    from curation.commands.status import waiting

    with user_errors():
        target = _dataset(dataset)
        target.manifest()
        with closing(Progress(err)) as progress:
            problems = check(target, decode=decode, told=partial(progress.counted, "verify", "clips"))
        for problem in problems:
            out.print(printable(problem), markup=False)
        try:
            left = waiting(target, _stored_config(target, None))
        except (ConfigError, DatasetError):
            if not problems:
                raise
            left = ""  # what tells it was found damaged just now
        if left:
            out.print(
                printable(f"not complete, so not fully checked: {left}; see reelmill status"), markup=False
            )
            raise typer.Exit(3)
        if problems:
            raise typer.Exit(1)
        out.print("OK", markup=False)


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
            with ended_in_order(), closing(Progress(err)) as progress:
                count = copy(target, to, out_, told=partial(progress.counted, "export", "shards"))
        except ValueError as error:
            raise DatasetError(str(error)) from error
        out.print(f"{count} clips in {out_}", markup=False)


def _print_accounting(dataset: Dataset) -> list[str]:
    """Print the sums. Returns the errors of the sums."""
    from curation.audit.accounting import accounting
    from curation.audit.captioned import captioned_line

    counts = accounting(dataset)
    for line in (*counts.lines(), *filter(None, [captioned_line(dataset)])):
        out.print(printable(line), markup=False)
    return counts.check()


def _end(dataset: Dataset) -> None:
    """Print the accounting of finished work. Raises `AssertionError` for wrong sums, a fault of reelmill."""
    wrong = _print_accounting(dataset)
    assert not wrong, "; ".join(wrong)
