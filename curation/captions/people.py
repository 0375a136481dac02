"""Captions that people wrote, in files beside the sources. Builds read these captions before the cut."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence

from captioning.base import Caption, Captioner, CaptionRequest
from captioning.sidecar import Sidecar
from curation.captions.makers import make_captioner
from curation.captions.table import commit_captions, said
from curation.config.schema import Config
from curation.store.address import file_of, filesystem, is_remote, refusal
from curation.store.dataset import Dataset
from curation.store.failures import failure
from curation.store.rows import AcceptedClip, CaptionRow, FailureRow, SourceRow
from curation.store.schema import CAPTIONS, FILE_START

_MOST_SAID = 3


# ---------------------------------------------------------------------------------------------------
# By people
# ---------------------------------------------------------------------------------------------------


def read_sidecars(
    dataset: Dataset,
    accepted: Sequence[AcceptedClip],
    config: Config,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[set[str], list[FailureRow]]:
    """Read captions for the accepted clips without a sidecar caption. Returns the ids of the clips that have
    a new caption, and rows of `failures`.

    say: is called with a line for each of the first caption files that are ignored.
    """
    captioner = make_captioner(config)
    if not isinstance(captioner, Sidecar):
        return set(), []
    seen = {c["clip_id"] for c in dataset.rows("captions", ["clip_id", "key"]) if c["key"] == captioner.key}
    rows, failures = _said(dataset, [c for c in accepted if c["clip_id"] not in seen], captioner)
    _say_what_was_left(captioner, say)
    commit_captions(dataset, [row for said in rows.values() for row in said])
    return set(rows), failures


def read_sidecars_again(
    dataset: Dataset,
    accepted: Sequence[AcceptedClip],
    config: Config,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[int, list[FailureRow]]:
    """Read sidecars again that were edited, added or deleted.

    If the source itself is missing (a disk that is not mounted), its clips keep their captions. Returns (the
    number of clips whose caption changed, rows of `failures`).

    say: is called with a line for each of the first caption files that are ignored.
    """
    captioner = make_captioner(config)
    assert isinstance(captioner, Sidecar)
    clips = {c["clip_id"]: c for c in accepted}
    found, failures = _said(dataset, accepted, captioner)
    _say_what_was_left(captioner, say)
    broken = {f["clip_id"] for f in failures}
    changed = 0
    for part, table in list(dataset.tables("captions")):
        rows: list[CaptionRow] = table.to_pylist()
        kept: list[CaptionRow] = []
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
    dataset: Dataset, clips: Sequence[AcceptedClip], captioner: Captioner
) -> tuple[dict[str, list[CaptionRow]], list[FailureRow]]:
    """(rows of `captions` by clip_id, rows of `failures`)."""
    sources = {s["source_id"]: s for s in dataset.rows("sources", ["source_id", "extra", FILE_START])}
    found: dict[str, list[CaptionRow]] = {}
    failures: list[FailureRow] = []
    for clip in clips:
        request = _request(clip, sources.get(clip["source_id"]))
        try:
            for caption in captioner([request]):
                assert isinstance(caption, Caption)
                row: CaptionRow = {**said(caption), "key": captioner.key}
                found.setdefault(caption.clip_id, []).append(row)
        except (OSError, ValueError) as error:
            failures.append(
                failure(clip["clip_id"], "caption", type(error).__name__, str(error), captioner.key)
            )
    return found, failures


def _request(clip: AcceptedClip, source: SourceRow | None) -> CaptionRequest:
    """The clip with the times of players and of people who write subtitles: since the file begins."""
    begins_s = (source["file_start_s"] if source else None) or 0.0
    return CaptionRequest(
        clip["clip_id"],
        clip["uri"],
        clip["start_s"] - begins_s,
        clip["end_s"] - begins_s,
        clip["fps"] is None,
        json.loads((source["extra"] if source else None) or "{}"),
    )


def _say_what_was_left(captioner: Sidecar, say: Callable[[str], None]) -> None:
    for path, reason in list(captioner.left_alone.items())[:_MOST_SAID]:
        say(f"caption file left alone: {path}: {reason}")
    if (more := len(captioner.left_alone) - _MOST_SAID) > 0:
        say(f"more caption files were left alone, for the same reasons: {more}")


def _is_there(uri: str) -> bool:
    uri = file_of(uri)
    if not is_remote(uri):
        return os.path.exists(uri)
    if refusal(uri):
        return False
    fs, path = filesystem(uri)
    return bool(fs.exists(path))
