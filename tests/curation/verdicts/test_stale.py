"""Which scores of a clip are to be made again."""

from __future__ import annotations

from typing import Any, cast

from curation.config.load import load_config
from curation.store.rows import ClipRow
from curation.verdicts.stale import Staleness

CONFIG = load_config(
    "{base: none, filters: {quality: {}}, rules: {quality.combing: {max: 0.15}, quality.dark: {max: 0.9}}}"
)


def clip(**scores: float) -> ClipRow:
    columns: dict[str, Any] = dict.fromkeys(CONFIG.columns_of(["quality"]))
    return cast(ClipRow, {"fps": 25.0, "keys": list(CONFIG.measure_keys().items()), **columns, **scores})


def test_a_clip_that_was_scored_before_a_column_came_is_scored_again() -> None:
    assert Staleness(CONFIG).outdated(clip(**{"quality.sharpness": 0.5})) == ["quality"]
    assert Staleness(CONFIG).outdated(clip(**{"quality.sharpness": 0.5, "quality.combing": 0.0})) == []


def test_a_clip_without_a_picture_for_a_scorer_is_not_scored_for_ever() -> None:
    """A scene of one or two frames may lie between the frames that are looked at."""
    assert Staleness(CONFIG).outdated(clip()) == []
