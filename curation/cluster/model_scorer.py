"""The worker that runs one model-backed scorer over clips."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import numpy as np
import pyarrow as pa

from curation.cluster.rows import decoded_frames, spent_row, split_jpegs, stream_table
from curation.config.load import validated
from curation.verdicts.judge import columns_of, ordered, spared
from filters.base import Frames, Scorer, measure_key


class ModelScorer:
    """Runs one model-backed scorer over the clips that nothing has rejected yet, in batches. A clip of which
    no frame was kept gets null and the scorer's key, as from a scorer that runs beside the decoder."""

    def __init__(self, config: dict[str, Any], name: str):
        self._config = validated(config)
        self._name = name
        self._scorer: Scorer = self._config.filters[name]
        self._key = measure_key(self._scorer)
        self._rules = ordered(self._config.rules)
        # What is scored before this one: a rule on it that fails spares this one.
        order = list(self._config.filters)
        self._before = columns_of(order[: order.index(name)])
        self._worker = uuid.uuid4().hex

    def __call__(self, batch: pa.Table) -> pa.Table:
        began = time.monotonic()
        rows = batch.to_pylist()
        wanted: list[tuple[int, dict[str, Any], Frames]] = []
        for i, row in enumerate(rows):
            if row["kind"] != "clip":
                continue
            clip = json.loads(row["data"])
            groups = split_jpegs(row["jpegs"], clip["jpegs"])
            mine = groups.pop(self._name, None)
            if mine is None:
                continue
            clip["jpegs"] = {name: len(group) for name, group in groups.items()}
            row["jpegs"] = [jpeg for group in groups.values() for jpeg in group]
            row["data"] = json.dumps(clip)
            # A clip too short for the grid has no frame: it is scored too, as one that cannot be measured, or
            # every build would try it again.
            if self._config.score_all or not spared(clip, self._rules, self._before):
                wanted.append((i, clip, decoded_frames(clip, mine, self._scorer.sampling)))
        if not wanted:
            return stream_table(rows)
        found = self._scorer([frames for _, _, frames in wanted])
        for (i, clip, _), scores in zip(wanted, found, strict=True):
            clip["keys"][self._name] = self._key
            rows[i]["data"] = json.dumps({**clip, **scores.values})
            if scores.embedding is not None:
                rows[i]["embedding"] = scores.embedding.astype(np.float32).tolist()
        return stream_table([*rows, spent_row(self._name, self._worker, time.monotonic() - began)])
