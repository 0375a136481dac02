"""A small dataset of chosen spans and scores, written without decoding or Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from curation.store.dataset import Dataset
from curation.verdicts.judge import write_verdicts
from tests.curation import dataset_fixture as fixture

RULES: dict[str, Any] = {"motion.speed": {"min": 0.1}}


@dataclass(frozen=True)
class Span:
    """A clip from start_s to end_s. motion: its score; None: not scored."""

    start_s: float
    end_s: float
    motion: float | None = 0.5
    scores: Mapping[str, float | None] = field(default_factory=dict)


def build(
    location: str,
    sources: Mapping[str, Sequence[Span]],
    rules: Mapping[str, Any] = RULES,
    about: Mapping[str, Mapping[str, Any]] | None = None,
) -> Dataset:
    """A dataset of these sources: uri -> spans. about: uri -> columns of its row that differ."""
    dataset = Dataset(location)
    fixture.write_manifest(dataset, dict(rules))
    for k, (uri, spans) in enumerate(sources.items()):
        row = fixture.source_row(uri, clips=len(spans)) | (about or {}).get(uri, {})
        clips = [
            fixture.clip_row(uri, s.start_s, s.end_s, {"motion.speed": s.motion, **s.scores}, fixture.jpeg(k))
            for s in spans
        ]
        dataset.commit_part(f"p{k:03d}", [row], clips)
    write_verdicts(dataset, fixture.config_of(dict(rules)).verdict_rules, ())
    return dataset
