"""The driver's side of captioning by a model: answers come in any order and are committed in parts."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable, Collection

from captioning.base import CaptionerMissing
from curation.captions.chosen import Captions
from curation.captions.makers import Step, batch_clips, worker
from curation.captions.table import commit_captions
from curation.captions.wanted import add_parts, tasks, wanted
from curation.config.said import refuse_unsaid
from curation.config.schema import Config
from curation.progress import Progress, Stopped
from curation.store.dataset import Dataset
from curation.store.failures import commit_failures, failure
from curation.store.rows import CaptionRow, FailureRow
from curation.store.spent import Phase
from curation.tasks.caption import CaptionAnswer

# A kill loses the captions that were made since the last part.
_PART_ROWS = 1000
_PART_SECONDS = 10.0
_MOST_IN_A_ROW = 32
_ANSWERED = ("BadAnswer", "BrokenAnswer", "EmptyAnswer", "NoAnswer", "NoOriginal", "NoPictures")


class CaptionCommits:
    """Takes answers as they come, and commits them in parts.

    Commits are so frequent that a kill loses only seconds of work, and so rare that there are few files.

    A failure is recorded only after the next success: when a server is away, the clips have not failed.
    `run.caption_failures_in_a_row` limits how many failures may come in a row. The limit is lower for
    failures without any answer.

    `begin` is called before the first commit. So `begin` is never called if the captioner does not work.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: Config,
        step: Step,
        progress: Progress,
        *,
        among: Collection[str] | None = None,
        retry_failed: bool = False,
        begin: Callable[[], None] = lambda: None,
    ):
        todo = wanted(dataset, config, step, among=among, retry_failed=retry_failed)
        if step == "caption" and "caption.similarity" in config.rules:
            add_parts(dataset, todo)
        self._dataset = dataset
        self._config = config
        self._step = step
        self._progress = progress
        self._begin = begin
        self._begun = False
        self._left = {clip_id for clips in todo.values() for clip_id in clips}
        self.total = len(self._left)
        self.tasks = tasks(todo, batch_clips(config, step)) if todo else []
        given = config.run.caption_failures_in_a_row
        self._most = given or _MOST_IN_A_ROW
        self._most_unanswered = given or min(_MOST_IN_A_ROW, max(4, self.total // 4))
        self._rows: list[CaptionRow] = []
        self._failures: list[FailureRow] = []
        self._in_a_row: list[FailureRow] = []
        self._unanswered = 0  # how many failures at the end of `_in_a_row` had no answer
        self._reasons: Counter[str] = Counter()  # error -> how many clips are recorded with it
        self._messages: dict[str, str] = {}  # error -> its first message
        self._last = time.monotonic()
        self._phase = Phase()
        if self.total:
            refuse_unsaid(config, captions_only=True)
            self._captioner = worker(config, step)
            self._captions = Captions.read(dataset, config)
            progress.start_caption(step, self._captioner.name, self.total)

    def take(self, answer: CaptionAnswer) -> None:
        """Take the captions of a clip, or its error. Raises `Stopped` when too many clips in a row fail."""
        if answer["spent"] is not None:
            self._phase.add(answer["spent"])
        elif (id_ := answer["clip_id"]) in self._left:  # rows of a worker that died may come twice
            self._left.discard(id_)
            self._take(id_, answer)

    def _key_of(self, clip_id: str) -> str:
        if self._step == "caption":
            return self._captioner.key
        return self._captions.rewritten_key(clip_id) or ""

    def _take(self, clip_id: str, answer: CaptionAnswer) -> None:
        error, message, key = answer["error"], answer["message"] or "", self._key_of(clip_id)
        if error is None:
            self._rows += [{**row, "key": key} for row in answer["captions"]]
            self._record_failures()
        else:
            self._in_a_row.append(failure(clip_id, self._step, error, message, key))
            self._unanswered = 0 if error in _ANSWERED else self._unanswered + 1
        self._progress.captioned(None if error is None else f"{error}: {message}")
        if len(self._rows) >= _PART_ROWS or time.monotonic() - self._last >= _PART_SECONDS:
            self._commit()
        if len(self._in_a_row) >= self._most or self._unanswered >= self._most_unanswered:
            self._stop(f"{error}: {message}")

    def end(self) -> int:
        """Commit the rest. Returns the number of clips for which a caption was wanted.

        The last clips may have failed because the captioner is gone. So the captioner is checked first.
        """
        if not self.total:
            return 0
        if self._unanswered:
            try:
                self._captioner.check()
            except CaptionerMissing as error:
                self._stop(str(error))
        self._record_failures()
        self._commit()
        if self._reasons:
            self._progress.say(self._summary())
        assert not self._left, (
            f"{len(self._left)} clips were neither captioned nor failed, such as {min(self._left)}"
        )
        self._progress.end(self._phase.commit(self._dataset))
        return self.total

    def _record_failures(self) -> None:
        for failed in self._in_a_row:
            self._reasons[failed["error"]] += 1
            self._messages.setdefault(failed["error"], failed["message"])
        self._failures += self._in_a_row
        self._in_a_row, self._unanswered = [], 0

    def _stop(self, reason: str) -> None:
        # Many clips are asked about at once, and answers come in any order. So a failure without an answer
        # may come from the lost captioner, even before the last success. Such a failure is not recorded.
        self._failures = [f for f in self._failures if f["error"] in _ANSWERED]
        self._commit()
        stored = self._dataset.manifest()
        # `reelmill caption` resumes only if a build has ended and the dataset already names the captioner.
        known = stored["build_ended"] and stored["config_hash"] == self._config.hash()
        go_on = f"resume with: {command(self._dataset)}" if known else "run the same command again"
        raise Stopped(
            f"{len(self._in_a_row)} clips in a row could not be captioned by captions.{self._captioner.name} "
            f"({reason}); what was captioned is kept, and these clips do not count as failed. If the "
            "clips cause this, raise run.caption_failures_in_a_row; otherwise repair the captioner. "
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
    """The command that resumes captioning, as messages print it."""
    return f"reelmill caption {shlex.quote(dataset.address('').rstrip('/'))}"
