"""The clips in shards that wait for a captioning model, and the tasks for the workers."""

from __future__ import annotations

from collections.abc import Collection

from curation.captions.chosen import Captions
from curation.captions.makers import Step, make_captioner, make_rewriter
from curation.config.said import refuse_unsaid
from curation.config.schema import Config
from curation.store.dataset import Dataset
from curation.store.failures import current_failures
from curation.tasks.caption import AskedClip, CaptionTask

# (shard, row group) -> clip_id -> the clip as the worker gets it.
Wanted = dict[tuple[str, int], dict[str, AskedClip]]
STEPS: tuple[Step, ...] = ("caption", "rewrite")
_BATCHES_PER_TASK = 16  # at most so many batches in a task; a small dataset has about as many tasks


def check_captioner(config: Config) -> None:
    """Check before any work that captions can be made.

    Raises `captioning.base.CaptionerMissing` if the captioner or the rewriter cannot work. Raises
    `ConfigError` if only the dataset, and not the user, has named the server or the model.
    """
    refuse_unsaid(config, captions_only=True)
    make_captioner(config).check()
    rewriter = make_rewriter(config)
    if rewriter is not None:
        rewriter.check()


# ---------------------------------------------------------------------------------------------------
# By a model
# ---------------------------------------------------------------------------------------------------


def is_needed(
    dataset: Dataset, config: Config, accepted: Collection[str], *, retry_failed: bool = False
) -> bool:
    """Does any of these clips need a caption from a model, whether the clip is in a shard or not?"""
    captions = Captions.read(dataset, config)
    if config.captions.by_model and not all(map(captions.has, accepted)):
        return True
    failed = set() if retry_failed else _failed_rewrites(dataset)
    return any(
        captions.to_rewrite(i) is not None and (i, captions.rewritten_key(i)) not in failed for i in accepted
    )


def _failed_rewrites(dataset: Dataset) -> set[tuple[str, str | None]]:
    return {(f["clip_id"], f["key"]) for f in dataset.rows("failures") if f["stage"] == "rewrite"}


def wanted(
    dataset: Dataset,
    config: Config,
    step: Step,
    *,
    among: Collection[str] | None = None,
    retry_failed: bool = False,
) -> Wanted:
    """The clips that this step must caption or rewrite. among: only these clips; None: all clips."""
    captioner = make_captioner(config) if step == "caption" else make_rewriter(config)
    if captioner is None or (step == "caption" and not config.captions.by_model):
        return {}
    captions = Captions.read(dataset, config)
    failed = {} if retry_failed else current_failures(dataset, {captions.key})
    failed_rewrites = set() if retry_failed else _failed_rewrites(dataset)

    def asked(clip_id: str) -> AskedClip | None:
        text: str | None = None
        if among is not None and clip_id not in among:
            return None
        if step == "caption":
            done = captions.has(clip_id) or clip_id in failed
        else:
            text = captions.to_rewrite(clip_id)
            done = text is None or (clip_id, captions.rewritten_key(clip_id)) in failed_rewrites
        return None if done else {"clip_id": clip_id, "text": text, "part": None}

    found: Wanted = {}
    for part in dataset.parts("shards"):
        file = dataset.open_part("shards", part)
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=["clip_id"])["clip_id"].to_pylist()
            clips = {i: said for i in ids if (said := asked(i)) is not None}
            if clips:
                found[part, group] = clips
        file.close()
    return found


def waiting(dataset: Dataset, config: Config) -> dict[str, int]:
    """The remaining work of captioning: a description -> the number of clips."""
    todo = {step: wanted(dataset, config, step) for step in STEPS}
    found = {f"clips in shards to {step}": sum(map(len, groups.values())) for step, groups in todo.items()}
    uncaptioned = {clip_id for clips in todo["caption"].values() for clip_id in clips}
    captions = Captions.read(dataset, config)
    columns = ["clip_id", "caption"]
    found["clips in shards to be given another caption"] = sum(
        row["clip_id"] not in uncaptioned and row["caption"] != captions.text(row["clip_id"])
        for row in dataset.rows("shards", columns)
    )
    return found


def tasks(todo: Wanted, batch: int) -> list[CaptionTask]:
    """The tasks for readers. Each task has whole batches of `batch` clips, except the last batch.

    A row group whose clips are in two tasks is read twice.
    """
    clips = [(place, asked) for place, of in todo.items() for asked in of.values()]
    batches = -(-len(clips) // batch)
    size = batch * min(_BATCHES_PER_TASK, max(1, batches // _BATCHES_PER_TASK))
    made: list[CaptionTask] = []
    for first in range(0, len(clips), size):
        groups: dict[tuple[str, int], list[AskedClip]] = {}
        for place, asked in clips[first : first + size]:
            groups.setdefault(place, []).append(asked)
        made.append({"groups": [{"shard": s, "group": g, "clips": of} for (s, g), of in groups.items()]})
    return made


def add_parts(dataset: Dataset, todo: Wanted) -> None:
    """Add to each wanted clip the part of `clips` that holds its embedding."""
    part_of = {
        clip_id: part
        for part, table in dataset.tables("clips", ["clip_id"])
        for clip_id in table["clip_id"].to_pylist()
    }
    for clips in todo.values():
        for clip_id, asked in clips.items():
            asked["part"] = part_of[clip_id]
