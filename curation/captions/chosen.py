"""The captions of a dataset by clip, and the caption of each clip to train on."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from typing import Literal

import numpy as np
import pyarrow as pa

from captioning.base import Captioner
from curation.captions.makers import make_captioner, make_rewriter
from curation.config.schema import Config
from curation.store.dataset import Dataset
from curation.store.rows import CaptionRow, ClipRow, Scores, ShardCaption, ShardCaptions, scores_of
from curation.store.schema import CAPTION_COLUMNS, CAPTION_FIELDS, CAPTIONS


class Captions:
    """All captions, stored as columns, because millions of Python strings would need too much memory."""

    def __init__(self, tables: Iterable[pa.Table], config: Config):
        made = [t.select(CAPTIONS.names) for t in tables]
        self._table = pa.concat_tables(made).combine_chunks() if made else CAPTIONS.empty_table()
        self._places: dict[str, list[int]] = {}  # clip_id -> row numbers of its captions
        for i, clip_id in enumerate(self._table["clip_id"].to_pylist()):
            self._places.setdefault(clip_id, []).append(i)
        self._keys = self._table["key"].to_pylist()
        self._kinds = self._table["kind"].to_pylist()
        self._checks = {
            c: np.asarray(self._table[c].to_numpy(), dtype=np.float64)  # NaN: null
            for c in CAPTION_COLUMNS
            if self._table[c].null_count < self._table.num_rows
        }
        self._kind = config.captions.kind
        self._rules = config.caption_rules if config.captions.on_failed_check == "reject" else {}
        self.key = make_captioner(config).key
        rewriter = make_rewriter(config)
        self._rewriter_key = rewriter.key if rewriter else None

    @classmethod
    def read(cls, dataset: Dataset, config: Config) -> Captions:
        return cls((table for _, table in dataset.tables("captions")), config)

    def has(self, clip_id: str) -> bool:
        """Does the clip have a caption of the configured captioner, with its current settings?"""
        return self._mine(clip_id) is not None

    def has_any(self, clip_id: str) -> bool:
        """Does the clip have a caption of any captioner?"""
        return clip_id in self._places

    def _mine(self, clip_id: str) -> int | None:
        """The row of the configured captioner's caption: of the configured kind, else the first one."""
        mine = [i for i in self._places.get(clip_id, ()) if self._keys[i] == self.key]
        return next((i for i in mine if self._kinds[i] == self._kind), mine[0] if mine else None)

    def _rewritten(self, clip_id: str) -> int | None:
        if (key := self.rewritten_key(clip_id)) is None:
            return None
        return next((i for i in self._places[clip_id] if self._keys[i] == key), None)

    def twice(self) -> list[str]:
        """Clips with two captions of the same kind and key. In a correct dataset the list is empty."""
        found = []
        for clip_id, places in self._places.items():
            if len({(self._keys[i], self._kinds[i]) for i in places}) < len(places):
                found.append(clip_id)
        return found

    def rewritten_key(self, clip_id: str) -> str | None:
        """The key of the rewritten caption of the clip. None without a rewriter or without a caption.

        The key depends on the text, so that a changed caption is rewritten again.
        """
        place = self._mine(clip_id)
        if self._rewriter_key is None or place is None:
            return None
        text = f"{self._rewriter_key}\n{self._keys[place]}\n{self._table['text'][place].as_py()}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def to_rewrite(self, clip_id: str) -> str | None:
        """The text that still must be rewritten, or None."""
        place = self._mine(clip_id)
        if place is None or self._rewriter_key is None or self._rewritten(clip_id) is not None:
            return None
        text: str = self._table["text"][place].as_py()
        return text

    def _chosen(self, clip_id: str) -> int | None:
        mine = self._mine(clip_id)
        if mine is None or self._kinds[mine] == self._kind or self._rewriter_key is None:
            return mine
        key = self.rewritten_key(clip_id)
        rewritten = [
            i for i in self._places[clip_id] if self._keys[i] == key and self._kinds[i] == self._kind
        ]
        return rewritten[0] if rewritten and self._passes(rewritten[0]) else mine

    def _passes(self, place: int) -> bool:
        values = self._checks_of(place)
        return all(rule.allows(values[c]) for c, rule in self._rules.items() if c in values)

    def _checks_of(self, place: int) -> dict[str, float]:
        return {c: float(values[place]) for c, values in self._checks.items() if not np.isnan(values[place])}

    def checks(self, clip_id: str) -> dict[str, float]:
        """The checks of the caption to train on: columns `caption.*`."""
        place = self._chosen(clip_id)
        return {} if place is None else self._checks_of(place)

    def text(self, clip_id: str) -> str | None:
        """The caption to train on.

        If the configured kind is a rewritten caption that does not exist or breaks a rule, this is the
        captioner's own caption.
        """
        place = self._chosen(clip_id)
        return None if place is None else self._table["text"][place].as_py()

    def in_shards(self, clip_ids: Collection[str]) -> dict[str, ShardCaptions]:
        """clip_id -> the captions of its shard row. The caption to train on comes first."""
        chosen = {c: self._chosen(c) for c in clip_ids}
        places = [i for c in clip_ids for i in self._places.get(c, ())]
        taken = self._table.select([*CAPTION_FIELDS, "key"]).take(pa.array(places, pa.int64()))
        by_place: dict[int, CaptionRow] = dict(zip(places, taken.to_pylist(), strict=True))

        def in_order(clip_id: str) -> list[int]:
            def rank(place: int) -> tuple[bool | str, ...]:
                return place != chosen[clip_id], *(by_place[place][f] or "" for f in _ORDER)

            return sorted(self._places.get(clip_id, ()), key=rank)

        found: dict[str, ShardCaptions] = {}
        for clip_id, first in chosen.items():
            found[clip_id] = {
                "caption": None if first is None else by_place[first]["text"],
                "captions": [_in_shard(by_place[i]) for i in in_order(clip_id)],
            }
        return found


_ORDER: tuple[Literal["captioner", "kind", "model", "revision", "prompt_version", "text", "key"], ...] = (
    "captioner",
    "kind",
    "model",
    "revision",
    "prompt_version",
    "text",
    "key",
)


def _in_shard(row: CaptionRow) -> ShardCaption:
    return {
        "text": row["text"],
        "captioner": row["captioner"],
        "kind": row["kind"],
        "model": row["model"],
        "revision": row["revision"],
        "prompt_version": row["prompt_version"],
    }


def failure_keys(config: Config, captioner: Captioner | None = None) -> frozenset[str]:
    """The keys of the failures that count now: the current encoder settings and the current captioner."""
    return frozenset({config.cut_hash(), (captioner or make_captioner(config)).key})


def with_checks(clip: ClipRow, captions: Captions | None) -> Scores:
    """The scores of a clip with the checks of its caption."""
    scores = scores_of(clip)
    return {**scores, **captions.checks(clip["clip_id"])} if captions else scores
