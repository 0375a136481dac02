"""Captions as rows of the table, and the commit of these rows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from captioning.base import Caption
from curation.store.dataset import Dataset
from curation.store.rows import CaptionRow, SaidCaption
from curation.store.schema import CAPTIONS


def said(caption: Caption) -> SaidCaption:
    """The row of a caption, without its checks."""
    return {
        "clip_id": caption.clip_id,
        "captioner": caption.captioner,
        "kind": caption.kind,
        "text": caption.text,
        "model": caption.model,
        "revision": caption.revision,
        "prompt_version": caption.prompt_version,
    }


def commit_captions(dataset: Dataset, rows: Sequence[CaptionRow]) -> None:
    """Write the rows as one part. The name of the part is a hash of its clips, kinds and keys."""
    if rows:
        ids = "\n".join(f"{r['clip_id']} {r['kind']} {r['key']}" for r in rows)
        name = hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()
        dataset.write_table(f"captions/{rows[0]['captioner']}-{name}.parquet", rows, CAPTIONS)
