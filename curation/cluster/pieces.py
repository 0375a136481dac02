"""Long sources that several workers take apart: all look for cuts, then all score."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import ray.data

from curation.cluster.looker import Looker, probed
from curation.cluster.rows import note, source_row
from curation.cluster.shares import cpu_shares
from curation.cluster.streams import pool, rows
from curation.config.schema import Config
from curation.decode import join, segments
from curation.sandbox.protocol import SourceFailed

Row = dict[str, Any]


def in_pieces(
    long: dict[str, join.Long], config: Config, scored: Callable[[list[Row]], Iterator[Row]]
) -> Iterator[Row]:
    """Rows of `STREAM` for sources that several workers take apart: all look for cuts, then all score.

    `scored` gives the rows of tasks, as of any other source.
    """
    looks, parts = [], []
    for source in long.values():
        try:
            looks += source.looks(probed(source.uri, config), config)
        except (SourceFailed, segments.NotInPieces) as error:
            yield note(f"measured in one piece, as {error}: {source.uri}")
            parts.append(source.whole())
    for row in rows(_looking(looks, config)) if looks else ():
        yield {"part": "", "kind": "spent", "data": row["spent"]}
        try:
            parts += long[row["source_id"]].looked(row, config) or []
        except segments.NotInPieces as error:
            yield note(f"measured in one piece, as {error}: {long[row['source_id']].uri}")
            parts.append(long[row["source_id"]].whole())
    again = []
    for row in scored(parts):
        if row["kind"] != "group":
            yield row
            continue
        done = json.loads(row["data"])
        source = long[done["source_id"]]
        if (went_well := source.scored(done)) is not None:
            if went_well:
                yield {"part": source.part, **source_row(source.source, source.measured(), config, 0)}
            else:
                again.append(source.whole())
    if again:
        yield from scored(again)


def _looking(looks: list[Row], config: Config) -> ray.data.Dataset:
    shares = cpu_shares(config)
    return ray.data.from_items(looks, override_num_blocks=len(looks)).map_batches(
        Looker,
        fn_constructor_args=(config.model_dump(mode="json"),),
        batch_format="pyarrow",
        batch_size=1,  # a piece of a source
        num_cpus=shares.measure_cpus,
        compute=pool(shares.measure_workers, len(looks), elastic=config.run.measure_workers is None),
    )
