"""Captioning, from the driver's side: what is wanted, and the commits.

People's captions (sidecars) are read before the cut. Captions by a model are made after it, from the clips
in the shards, so that no source is opened; they are committed in parts as they come. Shards are brought in
line by `shards.align`, which encodes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import fsspec

from captioning.base import Caption, Captioner, CaptionerMissing, CaptionRequest
from captioning.sidecar import Sidecar
from curation import pipeline
from curation.captions.chosen import Captions
from curation.captions.makers import batch_clips, make_captioner, make_rewriter
from curation.cluster.caption_workers import Step, worker
from curation.config.schema import Config
from curation.decode.video import is_remote
from curation.progress import Progress, Stopped
from curation.store.dataset import CAPTIONS, FAILURES, Dataset
from curation.store.spent import Phase
from curation.verdicts.judge import current_failures

Row = dict[str, Any]
# A kill costs what was made since the last part.
_PART_ROWS = 1000
_PART_SECONDS = 10.0
_MOST_IN_A_ROW = 32
_ANSWERED = ("BadAnswer", "BrokenAnswer", "EmptyAnswer", "NoAnswer", "NoOriginal", "NoPictures")
STEPS: tuple[Step, ...] = ("caption", "rewrite")
_BATCHES_PER_TASK = 16  # of a reader, and about as many tasks of a small dataset


def check_captioner(config: Config) -> None:
    """Raises `captioning.base.CaptionerMissing` before any work when captions cannot be made."""
    make_captioner(config).check()
    rewriter = make_rewriter(config)
    if rewriter is not None:
        rewriter.check()


# ---------------------------------------------------------------------------------------------------
# By people
# ---------------------------------------------------------------------------------------------------


def read_sidecars(dataset: Dataset, accepted: Sequence[Row], config: Config) -> list[Row]:
    """Caption the accepted clips that have no sidecar's text yet. Returns rows of `failures`."""
    captioner = make_captioner(config)
    if not isinstance(captioner, Sidecar):
        return []
    seen = {c["clip_id"] for c in dataset.rows("captions", ["clip_id", "key"]) if c["key"] == captioner.key}
    rows, failures = _said(dataset, [c for c in accepted if c["clip_id"] not in seen], captioner)
    commit_captions(dataset, [row for said in rows.values() for row in said])
    return failures


def read_sidecars_again(dataset: Dataset, accepted: Sequence[Row], config: Config) -> tuple[int, list[Row]]:
    """Take over sidecars that were edited, added or taken away. Where the source itself is not there (a disk
    that is not mounted) its clips keep what they have. Returns how many clips have another caption now, and
    rows of `failures`."""
    captioner = make_captioner(config)
    assert isinstance(captioner, Sidecar)
    clips = {c["clip_id"]: c for c in accepted}
    found, failures = _said(dataset, accepted, captioner)
    broken = {f["clip_id"] for f in failures}
    changed = 0
    for part, table in list(dataset.tables("captions")):
        rows = table.to_pylist()
        kept: list[Row] = []
        for row in rows:
            if row["key"] != captioner.key or row["clip_id"] not in clips or row["clip_id"] in broken:
                kept.append(row)
                continue
            said = found.pop(row["clip_id"], [])
            if said and said[0]["text"] != row["text"]:
                changed += 1
                kept.append({**row, **said[0]})
            elif said or not _is_there(clips[row["clip_id"]]["uri"]):
                kept.append(row)
            else:
                changed += 1
        if not kept:
            dataset.remove(f"captions/{part}.parquet")
        elif kept != rows:
            dataset.write_table(f"captions/{part}.parquet", kept, CAPTIONS)
    commit_captions(dataset, [row for said in found.values() for row in said])
    return changed + len(found), failures


def _said(
    dataset: Dataset, clips: Sequence[Row], captioner: Captioner
) -> tuple[dict[str, list[Row]], list[Row]]:
    """Rows of `captions` by clip, and of `failures`."""
    extras = {s["source_id"]: s["extra"] for s in dataset.rows("sources", ["source_id", "extra"])}
    found: dict[str, list[Row]] = {}
    failures: list[Row] = []
    for clip in clips:
        request = CaptionRequest(
            clip["clip_id"],
            clip["uri"],
            clip["start_s"],
            clip["end_s"],
            clip["fps"] is None,
            json.loads(extras.get(clip["source_id"]) or "{}"),
        )
        try:
            for said in captioner([request]):
                assert isinstance(said, Caption)
                found.setdefault(said.clip_id, []).append(_row(said, captioner.key))
        except (OSError, ValueError) as error:
            failures.append(
                _failure(clip["clip_id"], "caption", type(error).__name__, str(error), captioner.key)
            )
    return found, failures


def _row(said: Caption, key: str) -> Row:
    row = {f: getattr(said, f) for f in ("clip_id", "captioner", "kind", "text", "model", "revision")}
    return {**row, "prompt_version": said.prompt_version, "key": key}


def _failure(clip_id: str, stage: str, error: str, message: str, key: str) -> Row:
    return {"clip_id": clip_id, "stage": stage, "error": error, "message": message, "key": key}


def _is_there(uri: str) -> bool:
    if not is_remote(uri):
        return os.path.exists(uri)
    filesystem, path = fsspec.url_to_fs(uri)
    return bool(filesystem.exists(path))


# ---------------------------------------------------------------------------------------------------
# By a model
# ---------------------------------------------------------------------------------------------------


def is_needed(
    dataset: Dataset, config: Config, accepted: Collection[str], *, retry_failed: bool = False
) -> bool:
    """Would a model be asked about any of these clips, in shards or not?"""
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
) -> dict[tuple[str, int], dict[str, Row]]:
    """(shard, row group) -> clip_id -> what the worker is told, of the clips that this step is to do; of
    those `among` which they are to be, where that is said."""
    captioner = make_captioner(config) if step == "caption" else make_rewriter(config)
    if captioner is None or (step == "caption" and not config.captions.by_model):
        return {}
    captions = Captions.read(dataset, config)
    failed = {} if retry_failed else current_failures(dataset, {captions.key})
    failed_rewrites = set() if retry_failed else _failed_rewrites(dataset)

    def asked(clip_id: str) -> Row | None:
        if among is not None and clip_id not in among:
            return None
        if step == "caption":
            return None if captions.has(clip_id) or clip_id in failed else {}
        key = captions.rewritten_key(clip_id)
        text = captions.to_rewrite(clip_id)
        return None if text is None or (clip_id, key) in failed_rewrites else {"text": text}

    found: dict[tuple[str, int], dict[str, Row]] = {}
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
    """What captioning would still do, in words -> clips."""
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


def caption_by_model(
    dataset: Dataset,
    config: Config,
    step: Step,
    progress: Progress,
    *,
    among: Collection[str] | None = None,
    retry_failed: bool = False,
    begin: Callable[[], None] = lambda: None,
) -> int:
    """Caption (or rewrite the captions of) the clips in the shards that wait for it, on Ray, and commit what
    comes in parts. Returns how many clips were asked for. Raises `Stopped` when too many in a row fail.

    `begin` is called before the first commit, and so not at all if the captioner turns out not to work.
    """
    todo = wanted(dataset, config, step, among=among, retry_failed=retry_failed)
    total = sum(map(len, todo.values()))
    if not total:
        return 0
    if step == "caption" and "caption.similarity" in config.rules:
        _add_parts(dataset, todo)
    handed = tasks(todo, batch_clips(config, step))
    captioner = worker(config, step)
    if step == "caption":
        key_of: Callable[[str], str] = _always(captioner.key)
    else:
        captions = Captions.read(dataset, config)
        key_of = lambda clip_id: captions.rewritten_key(clip_id) or ""  # noqa: E731
    progress.start_caption(step, captioner.name, total)
    given = config.run.caption_failures_in_a_row
    most = given or _MOST_IN_A_ROW, given or min(_MOST_IN_A_ROW, max(4, total // 4))
    commits = _Commits(dataset, config, captioner, step, key_of, most, progress, begin)
    left = {clip_id for clips in todo.values() for clip_id in clips}
    phase = Phase()
    for row in pipeline.captioned(handed, config, dataset.address(""), step):
        if row["clip_id"] is None:
            phase.add(json.loads(row["data"]))
        elif row["clip_id"] in left:  # a worker died after its rows were taken, and its work came once more
            left.discard(row["clip_id"])
            commits.take(row["clip_id"], json.loads(row["data"]))
    commits.end()
    assert not left, f"{len(left)} clips were neither captioned nor failed, such as {min(left)}"
    progress.end(phase.commit(dataset))
    return total


def tasks(todo: dict[tuple[str, int], dict[str, Row]], batch: int) -> list[Row]:
    """What a reader reads at a time: whole batches, but for the last one of all. A row group whose clips fall
    to two tasks is read twice."""
    clips = [(place, clip_id, asked) for place, of in todo.items() for clip_id, asked in of.items()]
    batches = -(-len(clips) // batch)
    size = batch * min(_BATCHES_PER_TASK, max(1, batches // _BATCHES_PER_TASK))
    made = []
    for first in range(0, len(clips), size):
        groups: dict[tuple[str, int], dict[str, Row]] = {}
        for place, clip_id, asked in clips[first : first + size]:
            groups.setdefault(place, {})[clip_id] = asked
        rows = [{"shard": part, "group": group, "clips": of} for (part, group), of in groups.items()]
        made.append({"groups": json.dumps(rows)})
    return made


def _always(key: str) -> Callable[[str], str]:
    return lambda clip_id: key


def _add_parts(dataset: Dataset, todo: dict[tuple[str, int], dict[str, Row]]) -> None:
    """Where the embeddings of the clips are."""
    part_of = {
        clip_id: part
        for part, table in dataset.tables("clips", ["clip_id"])
        for clip_id in table["clip_id"].to_pylist()
    }
    for clips in todo.values():
        for clip_id, asked in clips.items():
            asked["part"] = part_of[clip_id]


class _Commits:
    """Rows as they come, in parts: often enough that a kill costs seconds, seldom enough that files are few.

    Failures wait for the next success: what fails because a server is away is no failure of the clips. `most`
    of them may come in a row, and of those that got no answer at all.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: Config,
        captioner: Captioner,
        step: Step,
        key_of: Callable[[str], str],
        most: tuple[int, int],
        progress: Progress,
        begin: Callable[[], None],
    ):
        self._dataset = dataset
        self._config = config
        self._begin = begin
        self._begun = False
        self._captioner = captioner
        self._step = step
        self._key_of = key_of
        self._most, self._most_unanswered = most
        self._progress = progress
        self._rows: list[Row] = []
        self._failures: list[Row] = []
        self._in_a_row: list[Row] = []
        self._unanswered = 0  # the last ones of those
        self._reasons: Counter[str] = Counter()  # errors of what is recorded as failed
        self._messages: dict[str, str] = {}  # one for each
        self._last = time.monotonic()

    def take(self, clip_id: str, answer: Row) -> None:
        if "captions" in answer:
            self._rows += [{**row, "key": self._key_of(clip_id)} for row in answer["captions"]]
            self._record_failures()
        else:
            failed = _failure(clip_id, self._step, answer["error"], answer["message"], self._key_of(clip_id))
            self._in_a_row.append(failed)
            self._unanswered = 0 if answer["error"] in _ANSWERED else self._unanswered + 1
        self._progress.captioned(None if "captions" in answer else f"{answer['error']}: {answer['message']}")
        if len(self._rows) >= _PART_ROWS or time.monotonic() - self._last >= _PART_SECONDS:
            self._commit()
        if len(self._in_a_row) >= self._most or self._unanswered >= self._most_unanswered:
            self._stop(f"{answer['error']}: {answer['message']}")

    def end(self) -> None:
        """The last ones may have failed because the captioner is gone: it is asked."""
        if self._unanswered:
            try:
                self._captioner.check()
            except CaptionerMissing as error:
                self._stop(str(error))
        self._record_failures()
        self._commit()
        if self._reasons:
            self._progress.say(self._summary())

    def _record_failures(self) -> None:
        for failed in self._in_a_row:
            self._reasons[failed["error"]] += 1
            self._messages.setdefault(failed["error"], failed["message"])
        self._failures += self._in_a_row
        self._in_a_row, self._unanswered = [], 0

    def _stop(self, reason: str) -> None:
        # Many are asked at once: an answer that comes after these may have been given before.
        self._failures = [f for f in self._failures if f["error"] in _ANSWERED]
        self._commit()
        stored = self._dataset.manifest()
        # The same one where a build has not ended, or the dataset does not name the captioner yet.
        known = stored["build_ended"] and stored["config_hash"] == self._config.hash()
        go_on = f"go on with: {command(self._dataset)}" if known else "run the same command again"
        raise Stopped(
            f"{len(self._in_a_row)} clips in a row could not be captioned by captions.{self._captioner.name} "
            f"({reason}); what was captioned is kept, and these clips do not count as failed. If it is the "
            "clips and not the captioner, raise run.caption_failures_in_a_row; otherwise mend what is wrong. "
            f"Then {go_on}"
        )

    def _summary(self) -> str:
        (error, count), *_ = self._reasons.most_common(1)
        total = self._reasons.total()
        reason = f"{count} of them for {error}: {self._messages[error]}"
        what = (
            "captioned and have left the shards"
            if self._step == "caption"
            else "rewritten and stay as they are"
        )
        again = f"{command(self._dataset)} --retry-failed"
        return f"{total} clips could not be {what}, {reason}; to try them again: {again}"

    def _commit(self) -> None:
        if not self._begun and (self._rows or self._failures):
            self._begun = True
            self._begin()
        commit_captions(self._dataset, self._rows)
        commit_failures(self._dataset, self._failures)
        self._rows, self._failures = [], []
        self._last = time.monotonic()


# ---------------------------------------------------------------------------------------------------
# Commits
# ---------------------------------------------------------------------------------------------------


def command(dataset: Dataset) -> str:
    """What goes on with captions, for messages."""
    return f"reelmill caption {shlex.quote(dataset.address('').rstrip('/'))}"


def commit_captions(dataset: Dataset, rows: Sequence[Row]) -> None:
    """One part, named by what is in it."""
    if rows:
        ids = "\n".join(f"{r['clip_id']} {r['kind']} {r['key']}" for r in rows)
        name = hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()
        dataset.write_table(f"captions/{rows[0]['captioner']}-{name}.parquet", rows, CAPTIONS)


def commit_failures(dataset: Dataset, rows: Sequence[Row]) -> None:
    if rows:
        ids = "\n".join(f"{r['clip_id']} {r['stage']} {r['key']}" for r in rows)
        name = hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()
        dataset.write_table(f"failures/{name}.parquet", rows, FAILURES)


def forget_failures(dataset: Dataset, stages: Collection[str] | None = None) -> None:
    """So that clips are tried again: those that failed at these stages, or at any."""
    for part, table in list(dataset.tables("failures")):
        kept = [row for row in table.to_pylist() if stages is not None and row["stage"] not in stages]
        if not kept:
            dataset.remove(f"failures/{part}.parquet")
        elif len(kept) < table.num_rows:
            dataset.write_table(f"failures/{part}.parquet", kept, FAILURES)
