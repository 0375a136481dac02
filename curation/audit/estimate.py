"""`--dry-run` says what a build would do, and estimates time and size from a sample of the sources."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Sequence

from curation.config.schema import Config
from curation.decode import answers
from curation.sandbox.parent import Child
from curation.sandbox.protocol import SourceFailed
from curation.shards.plan import estimated_bytes
from curation.sources.source import Source
from curation.sources.spans import listed_spans
from curation.store.dataset import Dataset
from curation.store.rows import Shape
from curation.verdicts.explain import describe, explain
from curation.verdicts.todo import find_work, source_row

_SAMPLE = 16  # sources that are probed
_MEASURED = 3  # probed sources that are also measured, to find the speed
_MEASURE_SECONDS = 20.0  # at most, per measured source


def estimate(
    dataset: Dataset,
    listed: Sequence[Source],
    config: Config,
    *,
    retry_failed: bool = False,
    prune: bool = False,
) -> Iterator[str]:
    """Yield lines to print. The sources are read; nothing is written."""
    todo = find_work(dataset, listed, config, retry_failed=retry_failed, prune=prune)
    yield from explain(dataset, listed, config, todo) if dataset.exists() else describe(todo, listed)
    sources = [s for group in todo.parts.values() for s in group if s.source_id not in todo.rescore]
    if not sources:
        return
    step = max(1, len(sources) // _SAMPLE)
    sample = sources[::step][:_SAMPLE]
    seconds: list[float] = []
    sizes: list[float] = []
    unreadable = 0
    with Child(config.run.child_memory_mb, config.run.child_output_mb) as child:
        for source in sample:
            try:
                request = {"op": "probe", "uri": source.uri}
                info = answers.probed(child.request(request, config.run.deadline_seconds))
            except SourceFailed:
                unreadable += 1
                continue
            duration = info.declared_duration_s or 0.0
            seconds.append(duration)
            size: Shape = {
                "start_s": 0.0,
                "end_s": duration,
                "fps": info.fps,
                "width": info.width,
                "height": info.height,
            }
            sizes.append(estimated_bytes(size, config))
        if unreadable:
            yield f"{unreadable} of {len(sample)} sampled sources could not be read: they fail in a build"
        if not seconds:
            return
        scale = (len(sources) - len(sources) * unreadable / len(sample)) / len(seconds)
        total = sum(seconds) * scale
        yield f"about {_span(total)} of video (from {len(seconds)} of {len(sources)} sources)"
        speed = _speed(child, sample, config)
    if speed:
        workers = os.cpu_count() or 1
        yield (
            f"measuring: about {_span(total / speed / workers)} on {workers} CPUs, plus the start "
            f"({speed:.1f}x real time each, model-backed filters not counted)"
        )
    yield f"shards: at most about {sum(sizes) * scale / 1e6:.0f} MB, if every second were accepted"


def _span(seconds: float) -> str:
    for unit, name in ((3600.0, "h"), (60.0, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def _speed(child: Child, sample: Sequence[Source], config: Config) -> float | None:
    """Seconds of video that are measured per second: the median of a few sources. None if all fail."""
    plain = config.for_workers()
    speeds = []
    for source in sample[:_MEASURED]:
        began = time.monotonic()
        seen = 0.0
        listed = listed_spans(source_row(source)["extra"]) if config.spans.by == "list" else []
        named = {"uri": source.uri, "source_id": source.source_id, "listed": listed}
        request = {"op": "measure", **named, "config": plain}
        try:
            for answer in answers.measured(child.request(request, config.run.deadline_seconds)):
                if isinstance(answer, answers.ClipAnswer):
                    seen = max(seen, answer.end_s)
                if time.monotonic() - began > _MEASURE_SECONDS:
                    break  # a part of a long source is enough (the child is replaced)
        except SourceFailed:
            continue
        if seen:
            speeds.append(seen / (time.monotonic() - began))
    return statistics.median(speeds) if speeds else None
