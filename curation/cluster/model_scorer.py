"""The worker that runs one model-backed scorer over clips."""

from __future__ import annotations

import time
import uuid
from typing import Any

import numpy as np
import pyarrow as pa

from curation.cluster.rows import decoded_frames, spent_row
from curation.config.load import validated
from curation.tasks.arrow import rows_of, table_of
from curation.tasks.measure import STREAM, MeasuredClip, StreamRow
from curation.verdicts.judge import spared
from filters.base import Frames, Scorer, measure_key


class ModelScorer:
    """Runs one model-backed scorer, in batches, over the clips that no rule has rejected yet.

    A clip without any kept frame gets a null score and the scorer's key. A scorer beside the decoder does the
    same.
    """

    def __init__(self, config: dict[str, Any], name: str):
        self._config = validated(config)
        self._name = name
        self._scorer: Scorer = self._config.scorers[name]
        self._key = measure_key(self._scorer)
        self._rules = self._config.ordered_rules
        # Scores before this scorer. If a rule rejects a clip by these scores, this scorer skips the clip.
        order = list(self._config.scorers)
        self._before = self._config.columns_of(order[: order.index(name)])
        self._worker = uuid.uuid4().hex

    def __call__(self, batch: pa.Table) -> pa.Table:
        began = time.monotonic()
        rows: list[StreamRow] = rows_of(batch)
        wanted: list[tuple[MeasuredClip, Frames]] = []
        for row in rows:
            clip = row["clip"]
            if clip is None:
                continue
            jpegs = clip["jpegs"].pop(self._name, None)
            # A clip too short for the grid has no frame. The clip still gets a null score and a key, or every
            # build would try the clip again.
            if jpegs is not None and not self._is_spared(clip):
                wanted.append((clip, decoded_frames(clip, jpegs, self._scorer.sampling)))
        if not wanted:
            return table_of(rows, STREAM)
        found = self._scorer([frames for _, frames in wanted])
        for (clip, _), scores in zip(wanted, found, strict=True):
            clip["scores"] |= scores.values
            clip["keys"][self._name] = self._key
            if scores.embedding is not None:
                clip["embedding"] = scores.embedding.astype(np.float32).tolist()
        return table_of([*rows, spent_row(self._name, self._worker, time.monotonic() - began)], STREAM)

    def _is_spared(self, clip: MeasuredClip) -> bool:
        is_image = clip["fps"] is None
        return not self._config.score_all and spared(
            clip["scores"], self._rules, self._before, is_image=is_image
        )
