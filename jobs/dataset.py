"""The commands that make, change and check datasets. They parse options, call `curation`, and report."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from curation import api
from curation.audit.accounting import Accounting, accounting
from curation.audit.captioned import captioned_line
from curation.config.named import load_named_config
from curation.config.schema import ConfigError
from curation.sandbox.words import printable
from curation.sources.listing import list_sources
from curation.store.dataset import DatasetError
from jobs.common import out, user_errors

Sources = Annotated[
    list[str],
    typer.Argument(metavar="SOURCES...", help="files, folders, globs, lists (CSV, JSON, Parquet …)"),
]
DatasetArg = Annotated[str, typer.Argument(metavar="DATASET", help="the dataset's folder")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="e.g. rules.motion.speed.min=0.02")
]


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
        if dry_run:
            lines = api.estimate(
                sources,
                out_,
                config=config,
                set=set_ or (),
                limit=limit,
                retry_failed=retry_failed,
                prune=prune,
            )
            for line in lines:
                out.print(printable(line), markup=False)
            return
        made = api.build(
            sources,
            out_,
            config=config,
            set=set_ or (),
            limit=limit,
            retry_failed=retry_failed,
            prune=prune,
        )
        if made.not_measured:
            out.print(
                f"not measured: {', '.join(made.not_measured)} (not among this configuration's filters)"
            )
        _print(made)
        out.print(f"dataset  {made.dataset}\nreport   {made.report}", markup=False)


def select(dataset: DatasetArg, set_: Overrides = None) -> None:
    """Apply other rules without scoring. New accepted clips are cut, and captioned if a model captions."""
    with user_errors():
        made = api.select(dataset, set=set_ or ())
        if made.not_scored:
            out.print(
                f"{made.not_scored} clips pass the cheap rules, but an expensive score was skipped, so they "
                f"are rejected as not scored; reelmill build SOURCES --out {dataset} --config "
                f"{api.dataset_at(dataset).address('dataset.json')} scores them",
                markup=False,
            )
        _print(made)


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
        _print(api.caption(dataset, captioner=captioner, set=set_ or (), retry_failed=retry_failed))


def remove(
    dataset: DatasetArg,
    sources: Annotated[list[str], typer.Argument(metavar="SOURCES...", help="path, uri or source_id")],
    undo: Annotated[bool, typer.Option("--undo", help="let builds use the sources again")] = False,
) -> None:
    """Remove sources and their copies permanently, with clips, captions and shard rows. Builds skip them."""
    from curation.commands.remove import remove as remove_sources
    from curation.commands.working import working
    from curation.sources.removed import Removed

    with user_errors():
        target = api.dataset_at(dataset)
        settings = api.its_config(target)
        with working(target, "remove"):
            if undo:
                if not (count := Removed(target).forget(sources)):
                    raise DatasetError(f"{', '.join(sources)}: not among the removed sources of {dataset}")
                out.print(f"the next build that names these {count} sources may use them again")
                return
            count, clips, rows = remove_sources(target, sources, settings)
            what = f"removed {count} sources, {clips} clips, {rows} shard rows" if count else "removed before"
            out.print(f"{what}; builds skip them")
            _print(api.finished(target))


def report(dataset: DatasetArg) -> None:
    """Write DATASET/report.html again."""
    with user_errors():
        out.print(api.report(dataset), markup=False)


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
        target = api.dataset_at(dataset)
        settings = api.its_config(target)
        counts = accounting(target)
        _print(counts)
        if captioned := captioned_line(target):
            out.print(printable(captioned), markup=False)
        wrong = counts.check()
        if explain:
            wanted = load_named_config(config, set_) if config else api.its_config(target, set_ or ())
            listed = list_sources(sources) if sources else as_listed(target)
            api.allow_typed(sources or [])
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
    from curation.commands.status import waiting

    with user_errors():
        problems = api.verify(dataset, decode=decode)
        for problem in problems:
            out.print(printable(problem), markup=False)
        try:
            target = api.dataset_at(dataset)
            left = waiting(target, api.its_config(target))
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
    with user_errors():
        try:
            count = api.export(dataset, to, out_)
        except ValueError as error:
            raise DatasetError(str(error)) from error
        out.print(f"{count} clips in {out_}", markup=False)


def _print(counts: Accounting) -> None:
    """Print the sums."""
    for line in counts.lines():
        out.print(printable(line), markup=False)
