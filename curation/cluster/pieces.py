"""Measures long sources with several workers: first all workers look for cuts, then all workers score."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import ray.data

from curation.cluster.looker import Looker, probed
from curation.cluster.rows import note
from curation.cluster.shares import cpu_shares
from curation.cluster.streams import pool, rows, stream_of
from curation.config.schema import Config
from curation.decode import join, segments
from curation.sandbox.protocol import SourceFailed
from curation.tasks.look import LOOK_TASKS, LookTask
from curation.tasks.measure import MeasureTask, StreamRow, stream_row


def in_pieces(
    long: dict[str, join.Long], config: Config, scored: Callable[[list[MeasureTask]], Iterator[StreamRow]]
) -> Iterator[StreamRow]:
    """Yield the rows of long sources. First all workers look for cuts, and then all workers score.

    `scored` gives the rows of tasks, as for any other source.
    """
    looks: list[LookTask] = []
    parts: list[MeasureTask] = []
    for source in long.values():
        try:
            looks += source.looks(probed(source.uri, config), config)
        except (SourceFailed, segments.NotInPieces) as error:
            yield note(f"measured in one piece, because {error}: {source.uri}")
            parts.append(source.whole())
    for look in rows(_looking(looks, config)) if looks else ():
        yield stream_row("", spent=look["spent"])
        try:
            parts += long[look["source_id"]].looked(look, config) or []
        except segments.NotInPieces as error:
            yield note(f"measured in one piece, because {error}: {long[look['source_id']].uri}")
            parts.append(long[look["source_id"]].whole())
    again = []
    for row in scored(parts):
        if (done := row["group"]) is None:
            yield row
            continue
        source = long[done["source_id"]]
        if (went_well := source.scored(done)) is not None:
            if went_well:
                yield stream_row(source.part, source=source.measured(config))
            else:
                again.append(source.whole())
    if again:
        yield from scored(again)


def _looking(looks: list[LookTask], config: Config) -> ray.data.Dataset:
    shares = cpu_shares(config)
    return stream_of(looks, LOOK_TASKS).map_batches(
        Looker,
        fn_constructor_args=(config.for_workers(),),
        batch_format="pyarrow",
        batch_size=1,  # one piece of a source
        num_cpus=shares.measure_cpus,
        compute=pool(shares.measure_workers, len(looks), elastic=config.run.measure_workers is None),
    )
