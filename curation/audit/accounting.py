"""The accounting counts sources and clips by their result, and checks the sums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc

from curation.store.dataset import Dataset
from curation.store.schema import (
    CAPTION_COLUMNS,
)

STATUSES = ("accepted", "rejected", "failed")


# ---------------------------------------------------------------------------------------------------
# The accounting
# ---------------------------------------------------------------------------------------------------


@dataclass
class Accounting:
    """Numbers of sources and clips by their result. `accepted_seconds` is in seconds of video."""

    sources: int = 0
    measured: int = 0
    failed_sources: int = 0
    duplicates: int = 0  # measured sources that are identical to another source
    clips: int = 0
    accepted: int = 0
    rejected: int = 0
    failed_clips: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)  # column of a rule, or failed stage -> clips
    shard_rows: int = 0
    accepted_seconds: float = 0.0

    def lines(self) -> list[str]:
        """Lines to print: the two sums, and then their parts."""
        are = "=" if self.sources == self.measured + self.failed_sources else "!="
        lines = [f"sources {self.sources} {are} measured {self.measured} + failed {self.failed_sources}"]
        if self.duplicates:
            are = "is a duplicate" if self.duplicates == 1 else "are duplicates"
            lines.append(f"  {self.duplicates} of the measured {are} of another source")
        judged = self.accepted + self.rejected + self.failed_clips
        line = f"accepted {self.accepted} + rejected {self.rejected} + failed {self.failed_clips}"
        if judged < self.clips:  # the build has not judged these clips yet
            line += f" + not judged yet {self.clips - judged}"
        lines.append(f"clips {self.clips} {'=' if judged <= self.clips else '!='} {line}")
        for reason, clips in self.by_reason.items():
            lines.append(f"  {'rejected' if _is_column(reason) else 'failed'} {clips} by {reason}")
        return lines

    def check(self) -> list[str]:
        """One line for each sum that is wrong."""
        wrong = []
        if self.sources != self.measured + self.failed_sources:
            wrong.append(
                f"sources {self.sources} is not measured {self.measured} + failed {self.failed_sources}"
            )
        if self.clips != self.accepted + self.rejected + self.failed_clips:
            wrong.append(
                f"clips {self.clips} is not accepted {self.accepted} + rejected {self.rejected} "
                f"+ failed {self.failed_clips}"
            )
        if sum(self.by_reason.values()) != self.rejected + self.failed_clips:
            wrong.append(
                f"{sum(self.by_reason.values())} clips have a reason, and {self.rejected} are rejected "
                f"+ {self.failed_clips} failed"
            )
        if self.shard_rows != self.accepted:
            wrong.append(f"{self.accepted} clips are accepted, and the shards have {self.shard_rows} rows")
        return wrong


def accounting(dataset: Dataset) -> Accounting:
    """Count sources, clips, verdicts and shard rows. Reads a few small columns."""
    a = Accounting()
    for _, table in dataset.tables("sources", ["status", "duplicate_of"]):
        status = table["status"]
        a.sources += table.num_rows
        a.measured += _count(status, "measured")
        a.failed_sources += _count(status, "failed")
        a.duplicates += table.num_rows - table["duplicate_of"].null_count
    status_of: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    accepted: set[str] = set()
    for verdict in dataset.verdicts():
        status_of[verdict["status"]] += 1
        if verdict["reason"] is not None:
            reasons[verdict["reason"]] += 1
        if verdict["status"] == "accepted":
            accepted.add(verdict["clip_id"])
    for clip in dataset.rows("clips", ["clip_id", "start_s", "end_s"]):
        a.clips += 1
        if clip["clip_id"] in accepted:
            a.accepted_seconds += clip["end_s"] - clip["start_s"]
    a.accepted, a.rejected, a.failed_clips = (status_of[s] for s in STATUSES)
    in_order = sorted(reasons, key=partial(_cascade_place, dataset.score_columns))
    a.by_reason = {reason: reasons[reason] for reason in in_order}
    a.shard_rows = sum(table.num_rows for _, table in dataset.tables("shards", ["clip_id"]))
    return a


def _count(column: pa.ChunkedArray, value: str) -> int:
    return cast(int, pc.sum(pc.equal(column, value)).as_py() or 0)


def _is_column(reason: str) -> bool:
    """Is the reason the column of a rule (`measure.value`)? A failed stage is a single word."""
    return "." in reason


def _cascade_place(score_columns: Sequence[str], reason: str) -> tuple[int, str]:
    columns = (*score_columns, *CAPTION_COLUMNS)
    place = columns.index(reason) if reason in columns else len(columns)
    return place + (not _is_column(reason)), reason
