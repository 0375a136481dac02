"""The flow: five verbs lead from sources to shards. Read `build` first.

`measure`, `cut` and `caption` hand tasks to workers and commit the rows that come back. `measured`, `written`
and `captioned` are the streams of Ray Data in between. The same code runs on a laptop and on a cluster.
Workers write only shards. Each shard appears whole under a planned name. The driver commits everything else,
and only once: Ray Data replaces a killed worker, and the new worker may send the same rows again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray.data

from curation.captions.makers import Step
from curation.captions.people import read_sidecars
from curation.captions.wanted import STEPS
from curation.cluster.caption_workers import ClipReader, ModelCaptioner
from curation.cluster.cutter import Cutter
from curation.cluster.measurer import Measurer
from curation.cluster.model_scorer import ModelScorer
from curation.cluster.pieces import in_pieces
from curation.cluster.shares import caption_shares, cluster, cpu_shares
from curation.cluster.streams import made_with, pool, rows, stream_of
from curation.config.schema import Config
from curation.decode.join import set_apart
from curation.driver.apply import apply_rules, in_shards
from curation.driver.captions import CaptionCommits
from curation.driver.cuts import ShardCommits
from curation.driver.manifest import write_manifest
from curation.driver.parts import PartCommits
from curation.driver.prepare import prepare, tidy
from curation.progress import Progress
from curation.sources.source import Source
from curation.store.dataset import Dataset
from curation.store.failures import commit_failures
from curation.store.rows import AcceptedClip
from curation.tasks.caption import CAPTION_TASKS, CaptionAnswer, CaptionTask
from curation.tasks.cut import CUT_TASKS, CutTask, WrittenShard
from curation.tasks.measure import MEASURE_TASKS, MeasureTask, StreamRow
from curation.verdicts.todo import Todo


def build(
    dataset: Dataset, listed: Sequence[Source], config: Config, progress: Progress, **options: bool
) -> Todo:
    """Run the whole build. `options` are `retry_failed` and `prune` of `prepare`.

    The caller has checked the models and the folder, holds the lease, and has opened a Ray session. Raises
    `progress.Stopped`.
    """
    todo = prepare(dataset, listed, config, progress, **options)
    measure(dataset, todo, config, progress, len(listed))
    tidy(dataset, todo, config, progress)
    accepted = select(dataset, config, progress.say)
    cut(dataset, accepted, config, progress)
    for step in STEPS:  # a new caption is judged before it is rewritten
        if caption(dataset, config, step, progress):
            apply_rules(dataset, config)
    write_manifest(dataset, config, ended=True)
    return todo


def measure(
    dataset: Dataset, todo: Todo, config: Config, progress: Progress, named: int | None = None
) -> None:
    """Decode each source once, and commit its candidate clips and their scores, part by part."""
    commits = PartCommits(dataset, todo, config, progress, named)
    if tasks := commits.tasks():
        for row in measured(tasks, config, dataset.address("")):
            commits.take(row)
    commits.end()


def select(
    dataset: Dataset, config: Config, say: Callable[[str], None] = lambda _: None
) -> list[AcceptedClip]:
    """Judge all clips by the rules, and read the caption files of the accepted clips. No scorer runs.

    Returns the accepted clips. `say` gets a line about caption files that are not used.
    """
    accepted = apply_rules(dataset, config)
    captioned, failures = read_sidecars(dataset, accepted, config, say)
    if failures:
        commit_failures(dataset, failures)
    # Clips that are in shards already have got a caption if the configuration names another column.
    if failures or in_shards(dataset, captioned):
        accepted = apply_rules(dataset, config)
    return accepted


def cut(dataset: Dataset, accepted: Sequence[AcceptedClip], config: Config, progress: Progress) -> int:
    """Encode only the accepted clips that are in no shard yet. Returns the number of these clips."""
    commits = ShardCommits(dataset, accepted, config, progress)
    for tasks in commits.waves():
        for row in written(tasks, config, dataset.address(""), config.hash()):
            commits.take(row)
    return commits.end()


def caption(dataset: Dataset, config: Config, step: Step, progress: Progress, **options: Any) -> int:
    """Let a model caption the clips in the shards, or rewrite their captions. Returns the number of clips.

    `options` are those of `CaptionCommits`. Raises `progress.Stopped`.
    """
    commits = CaptionCommits(dataset, config, step, progress, **options)
    if commits.tasks:
        for row in captioned(commits.tasks, config, dataset.address(""), step):
            commits.take(row)
    return commits.end()


def measured(tasks: list[MeasureTask], config: Config, location: str) -> Iterator[StreamRow]:
    """Yield the clips of each source with their scores, and then the row of the source."""
    tasks, long = set_apart(tasks, cpu_shares(config).measure_workers, config)
    if tasks:
        yield from scored(tasks, config, location)
    if long:  # a long source would delay all others, so several workers share it
        yield from in_pieces(long, config, lambda pieces: scored(pieces, config, location))


def scored(tasks: list[MeasureTask], config: Config, location: str) -> Iterator[StreamRow]:
    plain, run, shares = config.for_workers(), config.run, cpu_shares(config)
    workers = pool(shares.measure_workers, len(tasks), elastic=run.measure_workers is None)
    cpu, gpu = shares.model_cpus, shares.model_gpus
    # A batch is one task, with a few sources.
    stream = stream_of(tasks, MEASURE_TASKS).map_batches(
        Measurer, **made_with(plain, location), num_cpus=shares.measure_cpus, compute=workers
    )
    for name in config.model_scorers:
        models = ray.data.ActorPoolStrategy(size=run.model_workers)
        options = {**made_with(plain, name), "batch_size": run.model_batch_clips}
        stream = stream.map_batches(ModelScorer, **options, num_cpus=cpu, num_gpus=gpu, compute=models)
    yield from rows(stream)


def written(tasks: list[CutTask], config: Config, location: str, config_hash: str) -> Iterator[WrittenShard]:
    """Yield one row per written shard: its name, rows, bytes, seconds of video, and failures."""
    plain, cpus = config.for_workers(), config.run.cut_cpus
    workers = pool(max(1, int(cluster("CPU") // cpus)), len(tasks))
    options = {**made_with(plain, location, config_hash), "num_cpus": cpus, "compute": workers}
    yield from rows(stream_of(tasks, CUT_TASKS).map_batches(Cutter, **options))


def captioned(tasks: list[CaptionTask], config: Config, location: str, step: Step) -> Iterator[CaptionAnswer]:
    """Yield the captions of each clip of the tasks."""
    plain, shares = config.for_workers(), caption_shares(config, step)
    readers = ray.data.ActorPoolStrategy(size=min(shares.readers, len(tasks)))
    models = ray.data.ActorPoolStrategy(size=shares.workers)
    stream = stream_of(tasks, CAPTION_TASKS).map_batches(
        ClipReader, **made_with(plain, location, step), num_cpus=shares.reader_cpus, compute=readers
    )
    # A row is a batch of clips.
    options = {**made_with(plain, step), "num_cpus": shares.cpus, "num_gpus": shares.gpus, "compute": models}
    yield from rows(stream.map_batches(ModelCaptioner, **options))
