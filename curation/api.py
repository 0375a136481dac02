"""The commands as functions: a dataset is built, changed, checked and read. The commands call them, too.

A function that writes holds the lease of the dataset, opens a Ray session if there is none, and prints its
progress on standard error. Ctrl-C and SIGTERM raise `KeyboardInterrupt`; the same call goes on. What the user
can mend is a `ValueError` that names the remedy. `curation.progress.Stopped` is a stop at a limit that the
user set, and `OSError` for example a full disk; the same call goes on after both.

Ray is imported inside of the functions only, since it reads the environment when it is imported.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from captioning.makers import NAMES
from curation.audit.accounting import Accounting, accounting
from curation.audit.captioned import captioned_line
from curation.cluster.private import private_ray
from curation.commands.working import ended_in_order, one_writer, working
from curation.config import said
from curation.config.changes import flat
from curation.config.load import apply_overrides, stored_config, validated
from curation.config.named import named_values
from curation.config.schema import LATER, Config, ConfigError
from curation.judging.advice import Advice, advise_on
from curation.judging.judged import Judged, judge_labels
from curation.progress import Progress, complain, err
from curation.sources.listing import list_sources
from curation.sources.media import is_list
from curation.sources.source import Source
from curation.store.address import allow, is_remote
from curation.store.dataset import Dataset, DatasetError
from curation.store.intact import intact_groups
from filters import SCORERS

Place = str | os.PathLike[str]  # of a file or folder, or an address such as s3://bucket/mydata
Configuration = Place | Mapping[str, Any]  # default, demo, corpus; a file; or the values of a file
Table = Literal["shards", "clips", "sources", "captions", "failures", "verdicts"]


@dataclass
class Summary(Accounting):
    """What a dataset holds: the accounting, and where it is. `str` gives the sums, as commands print them."""

    dataset: str = ""  # its address
    report: str = ""  # the address of its page
    not_measured: tuple[str, ...] = ()  # filters that the configuration left out; of `build`
    not_scored: int = 0  # clips that lack an expensive score, and are rejected for it; of `select`
    waiting: str = ""  # what a build would still do; of `status`
    captioned: str = ""  # how many accepted clips have a caption, and from where; "": there are none

    def lines(self) -> list[str]:
        return [*super().lines(), *([self.captioned] if self.captioned else [])]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def build(
    sources: Place | Sequence[Place],
    out: Place,
    *,
    config: Configuration = "default",
    set: Sequence[str] = (),
    limit: int | None = None,
    retry_failed: bool = False,
    prune: bool = False,
) -> Summary:
    """Make a dataset from raw videos and images, or continue one. Writes report.html, too.

    sources: files, folders, globs, or CSV, JSONL and Parquet lists. set: as `rules.motion.speed.min=0.02`.
    limit: only the first sources. retry_failed: try failed sources and clips again. prune: remove sources
    that are not named, and their clips.
    """
    target, settings, listed = _asked(sources, out, config, set, limit, prune)
    from curation import pipeline
    from curation.cluster.session import nodes, session

    said.remember(target.location, settings)
    with working(target, "build"):
        with closing(Progress(err)) as progress, session(settings):
            _say_what_nodes_share(target, listed, nodes())
            pipeline.build(target, listed, settings, progress, retry_failed=retry_failed, prune=prune)
        left_out = tuple(name for name in SCORERS if name not in settings.scorers)
        return finished(target, not_measured=left_out)


def estimate(
    sources: Place | Sequence[Place],
    out: Place,
    *,
    config: Configuration = "default",
    set: Sequence[str] = (),
    limit: int | None = None,
    retry_failed: bool = False,
    prune: bool = False,
) -> list[str]:
    """What `build` with the same arguments would do, how long it takes, and how large the result is, as
    lines to print. Writes nothing."""
    target, settings, listed = _asked(sources, out, config, set, limit, prune)
    from curation.audit.estimate import estimate as lines

    return list(lines(target, listed, settings, retry_failed=retry_failed, prune=prune))


def select(dataset: Place, *, set: Sequence[str] = ()) -> Summary:
    """Apply other rules without scoring. New accepted clips are cut, and captioned if a model captions.

    set: rules (`rules.COLUMN.min`, `.max`, or `rules.COLUMN=null`), `cut.hdr=reject` and back, and `run.*`.
    """
    target, overrides = dataset_at(dataset), _several(set)
    for override in overrides:
        is_rule = override.startswith(("rules.", "run.")) or _rejects_hdr(override, target)
        if not is_rule and not _allows(override, target):
            raise ConfigError(
                f"--set {override}: select changes rules only (rules.<column>.min or .max; and run.*; "
                "cut.hdr=reject, and tonemap after it); for anything else run reelmill build with the "
                "changed configuration"
            )
    settings = _confirmed(target, overrides)
    session = _session(settings)
    from curation.commands.select import reselect
    from curation.driver.apply import not_scored

    with working(target, "select"):
        with closing(Progress(err)) as progress:
            reselect(target, settings, progress, session)
        return finished(target, not_scored=not_scored(target, settings))


def caption(
    dataset: Place,
    *,
    captioner: str | None = None,
    set: Sequence[str] = (),
    retry_failed: bool = False,
) -> Summary:
    """Caption the existing clips, or choose other captions, without measuring or encoding again.

    captioner: none, sidecar, transformers or endpoint; None: the dataset's. set: `captions.*`,
    `rules.caption.*` and `run.*`.
    """
    asked = [f"captions.captioner={captioner}"] if captioner else []
    if captioner in NAMES:  # parameters of a captioner of your own, which the dataset had before
        asked.append("captions.own={}")
    overrides = [*asked, *_several(set)]
    for override in overrides:
        if not override.startswith(("captions.", "rules.caption.", "run.")):
            raise ConfigError(
                f"--set {override}: caption changes captions.*, rules.caption.* and run.* only; for "
                "other rules run reelmill select, for other settings reelmill build"
            )
    target = dataset_at(dataset)
    settings = _confirmed(target, overrides)
    session = _session(settings)
    from curation.commands.caption import recaption

    with working(target, "caption"):
        with closing(Progress(err)) as progress:
            recaption(target, settings, progress, session, retry_failed=retry_failed)
        return finished(target)


def verify(dataset: Place, *, decode: bool = False) -> list[str]:
    """What is wrong with a dataset, one line each; none where all invariants and checksums hold.

    decode: also decode every clip. `status` says whether the dataset is complete.
    """
    from curation.audit.verify import verify as check

    target = dataset_at(dataset)
    target.manifest()
    with closing(Progress(err)) as progress:
        return check(target, decode=decode, told=partial(progress.counted, "verify", "clips"))


def status(dataset: Place) -> Summary:
    """The accounting of a dataset, and in `waiting` the work that a build would still do. Writes nothing."""
    from curation.commands.status import waiting

    target = dataset_at(dataset)
    return _summary(target, waiting=waiting(target, its_config(target)))


def report(dataset: Place) -> str:
    """Write report.html of a dataset again. Returns the address of the page."""
    from curation.report.page import write_report
    from curation.store.lease import holder

    target = dataset_at(dataset)
    target.manifest()
    # The lease of the one file: another command may work on the dataset meanwhile, such as a long build.
    with one_writer(target.location, "report", "_lease-report.html.json"):
        if not holder(target):  # who works on the dataset writes its report, too
            target.remove_unfinished("report.html")
        return write_report(target)


def judge(truth: Place, dataset: Place, *, min_seconds: float = 2.0, set: Sequence[str] = ()) -> Judged:
    """Compare the verdicts of a dataset with a curator's labels (docs/labels.md). Writes nothing.

    truth: a file of labels. min_seconds: shorter labelled shots are left out. set: rules to judge by, such as
    `rules.motion.speed.min=0.02`, in place of the dataset's verdicts.
    """
    target, overrides = dataset_at(dataset), _several(set)
    for override in overrides:
        if not override.startswith("rules."):
            raise ConfigError(
                f"--set {override}: judge takes rules only (rules.<column>.min or .max); for anything else "
                "build with the changed configuration first"
            )
    settings, name = its_config(target, overrides), os.fspath(truth)
    return judge_labels(target, settings, name, min_seconds=min_seconds, other_rules=bool(overrides))


def advise(
    dataset: Place,
    *,
    keep: str | float | None = None,
    by: Literal["clips", "seconds"] = "clips",
    labels: Place | None = None,
    min_seconds: float = 2.0,
) -> Advice:
    """Say what each rule rejects, and propose other cut-offs. Writes advice.html, a contact sheet of clips on
    both sides of cut-offs, and changes nothing else (docs/labels.md).

    keep: a wanted share, such as "30%", of the clips or seconds (by). labels: a file of labels, as `judge`
    takes it; shots that are shorter than min_seconds are left out.
    """
    from curation.report.sheet import PAGE
    from curation.store.lease import holder

    target = dataset_at(dataset)
    settings = its_config(target)
    name = None if labels is None else os.fspath(labels)
    with one_writer(target.location, "advise", f"_lease-{PAGE}.json"):
        if not holder(target):
            target.remove_unfinished(PAGE)
        return advise_on(target, settings, keep=keep, by=by, labels=name, min_seconds=min_seconds)


def export(dataset: Place, to: Literal["webdataset", "files"], out: Place) -> int:
    """Copy the accepted clips to the folder `out`: as tars, or as mp4 and txt files. Returns their number."""
    from curation.shards.export import export as copy_clips

    target = dataset_at(dataset)
    target.manifest()
    with ended_in_order(), closing(Progress(err)) as progress:
        return copy_clips(target, to, os.fspath(out), told=partial(progress.counted, "export", "shards"))


def rows(
    dataset: Place, columns: Sequence[str] | None = None, *, table: Table = "shards"
) -> Iterator[dict[str, Any]]:
    """The rows of one table, in order, as dictionaries. docs/dataset.md describes the columns.

    Of `shards` one row group is in memory at a time, and each clip that is read (`video`) is compared with
    its hash. Raises `DatasetError` for an unknown column or table, and for damage.
    """
    target = dataset_at(dataset)
    target.manifest()
    if table not in (known := ("shards", "clips", "sources", "captions", "failures", "verdicts")):
        raise DatasetError(f"table {table!r}: the tables are {', '.join(known)}")
    names = target.schema(table).names
    for column in columns or ():
        if column not in names:
            raise DatasetError(f"table {table} has no column {column!r}; the columns are {', '.join(names)}")
    return _rows(target, list(columns) if columns else None, table)


def _rows(target: Dataset, columns: list[str] | None, table: Table) -> Iterator[dict[str, Any]]:
    if table == "verdicts":
        yield from target.verdict_table(columns).to_pylist()
    elif table == "shards":
        for part in target.parts("shards"):
            for group in intact_groups(target, part, columns):
                yield from (group.select(columns) if columns else group).to_pylist()
    else:
        for _, content in target.tables(table, columns):
            yield from content.to_pylist()


# ---- shared with the commands


def dataset_at(place: Place) -> Dataset:
    """The dataset of a local folder or of an address. It need not exist."""
    location = os.fspath(place)
    return Dataset(location if "://" in location else os.path.abspath(location))


def its_config(dataset: Dataset, overrides: Sequence[str] = ()) -> Config:
    """The dataset's own configuration, changed by `overrides`. Settings that reach outside the dataset, such
    as servers, count only if the user gave them (`curation.config.said`)."""
    manifest = dataset.manifest()
    stored_config(manifest, dataset.location)  # names the file if the configuration in it is wrong
    return said.of_dataset(manifest["config"], overrides, [dataset.location], manifest)


def allow_typed(sources: Sequence[str]) -> None:
    """Allow the protocols that the user typed. The protocol of a list file does not count for its rows."""
    allow(name for name in sources if not is_list(name))


def finished(dataset: Dataset, **more: Any) -> Summary:
    """The report and the accounting of finished work. Raises `AssertionError` for wrong sums, a fault of
    reelmill."""
    from curation.report.page import write_report

    write_report(dataset)
    summary = _summary(dataset, **more)
    wrong = summary.check()
    assert not wrong, "; ".join(wrong)
    return summary


# ---- configurations


def _asked(
    sources: Place | Sequence[Place],
    out: Place,
    config: Configuration,
    set: Sequence[str],
    limit: int | None,
    prune: bool,
) -> tuple[Dataset, Config, list[Source]]:
    """What `build` is to work on. Everything is checked before any work."""
    target = dataset_at(out)
    settings = _wanted(config, _several(set), target)
    private_ray(settings)
    from curation.driver.prepare import check_models

    if prune and limit is not None:
        raise ConfigError("--prune with --limit would remove sources beyond the limit: use only one")
    target.check_writable()
    names = [os.fspath(s) for s in ([sources] if isinstance(sources, str | os.PathLike) else sources)]
    listed = list_sources(names, limit, complain)
    allow_typed(names)
    check_models(settings)
    return target, settings, list(listed)


def _wanted(config: Configuration, overrides: Sequence[str], dataset: Dataset) -> Config:
    """The configuration that the user gave `build`. Raises `ConfigError`, also for settings that a
    dataset.json wants and the user has not confirmed."""
    name = config if isinstance(config, Mapping) else os.fspath(config)
    values, manifest = named_values(name)
    if manifest is None:
        apply_overrides(values, overrides)
        settings = validated(values)
        said.check_key_names(settings, said.typed(overrides))
        return settings
    its_own = dataset_at(str(name).rpartition("/")[0] or ".").location
    settings = said.of_dataset(values, overrides, [its_own, dataset.location], manifest)
    said.refuse_unsaid(settings)
    _say_what_is_not_taken(settings)
    return settings


def _confirmed(dataset: Dataset, overrides: Sequence[str]) -> Config:
    """The dataset's own configuration for a command that writes. What the user said is remembered."""
    settings = its_config(dataset, overrides)
    _say_what_is_not_taken(settings)
    said.remember(dataset.location, settings)
    return settings


def _say_what_is_not_taken(config: Config) -> None:
    if config.not_taken:
        options = " ".join(f"--set {shlex.quote(f'{k}={v}')}" for k, v in config.not_taken.items())
        complain(
            f"the dataset's own dataset.json sets {', '.join(config.not_taken)}, and you have not said so: "
            f"the defaults are used; to use the dataset's values, add {options}"
        )


def _allows(override: str, dataset: Dataset) -> bool:
    """Does the override repeat a setting of dataset.json that reaches outside the dataset?

    Such an override confirms the setting and changes nothing.
    """
    key, _, value = override.partition("=")
    return key in said.KEYS and flat(dataset.manifest()["config"]).get(key) == value


def _rejects_hdr(override: str, dataset: Dataset) -> bool:
    """Does the override have HDR sources rejected, or accepted again? To keep HDR they are measured again."""
    key, _, value = override.partition("=")
    before = flat(dataset.manifest()["config"]).get(key, LATER.get(key))
    return key == "cut.hdr" and {before, value} <= {"tonemap", "reject"}


def _several(words: Sequence[str]) -> list[str]:
    return [words] if isinstance(words, str) else list(words)


# ---- sessions and sums


def _session(settings: Config) -> Callable[[], AbstractContextManager[None]]:
    """Opens a session when it is called, if there is work for one."""
    private_ray(settings)
    from curation.cluster.session import session

    return lambda: session(settings)


def _say_what_nodes_share(dataset: Dataset, listed: Sequence[Source], nodes: int) -> None:
    """Warn about local paths on a cluster. This process cannot see whether all nodes share them."""
    local = [s.uri for s in listed if not is_remote(s.uri)][:1]
    local += [dataset.location] if dataset.is_local else []
    if nodes > 1 and local:
        complain(
            f"all {nodes} nodes of this cluster must see {' and '.join(local)}: on a disk they share, or "
            "at an address such as s3://bucket/videos"
        )


def _summary(dataset: Dataset, **more: Any) -> Summary:
    more |= {"dataset": dataset.address(""), "report": dataset.address("report.html")}
    more["captioned"] = captioned_line(dataset) or ""
    return Summary(**vars(accounting(dataset)), **more)
