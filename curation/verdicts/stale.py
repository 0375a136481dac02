"""Finds the scores of a committed clip that are missing or out of date. Pure: it reads and writes no file."""

from __future__ import annotations

from collections.abc import Mapping

from curation.config.schema import Config
from curation.store.rows import ClipRow, keys_of, scores_of, with_scores
from curation.verdicts.judge import spared
from filters import EMBEDDER


class Staleness:
    """Compares the keys in a row of `clips` with the keys of a configuration."""

    def __init__(self, config: Config):
        self._config = config
        self._scorers = config.scorers
        self._keys = config.measure_keys()
        self._rules = config.ordered_rules
        self._order = list(config.scorers)

    def outdated(self, clip: ClipRow) -> list[str]:
        """Names of the scorers that apply to the clip, and whose columns are missing or out of date.

        A column is out of date when another version or other parameters made it. A column that came later is
        missing when a rule asks for it (`Scorer.later`).
        """
        media = "image" if clip["fps"] is None else "video"
        have = keys_of(clip)
        return [
            name
            for name in self._order
            if media in self._scorers[name].applies_to
            and (have.get(name) != self._keys[name] or self._lacks(name, scores_of(clip)))
        ]

    def _lacks(self, name: str, scores: Mapping[str, float | None]) -> bool:
        scorer = self._scorers[name]
        later = [column for column in getattr(scorer, "later", ()) if column in self._rules]
        # A clip of a few frames may have no picture that this scorer looks at: all of its columns are null.
        scored = any(scores.get(column.name) is not None for column in scorer.columns)
        return scored and any(scores.get(column) is None for column in later)

    def wanted(self, clip: ClipRow) -> list[str]:
        """Names of the outdated scorers that a build runs.

        A build skips a model-backed scorer if a cheaper rule already rejects the clip. Outdated cheap
        scores do not count here, because their new values are not known yet.
        """
        outdated = self.outdated(clip)
        if self._config.score_all:
            return outdated
        wanted = []
        is_image = clip["fps"] is None
        for name in outdated:
            before = [n for n in self._order[: self._order.index(name)] if n not in outdated]
            dear = self._scorers[name].uses_model
            cheap = self._config.columns_of(before)
            if not (dear and spared(scores_of(clip), self._rules, cheap, is_image=is_image)):
                wanted.append(name)
        return wanted

    def holds_old_values(self, clip: ClipRow) -> bool:
        """Does the clip hold scores of another version or other parameters? Those scores must not be used."""
        have = keys_of(clip)
        return any(name in have for name in self.outdated(clip))

    def cleared(self, clip: ClipRow) -> ClipRow:
        """The row with its outdated scores (and embedding) set to null, like scores that are missing."""
        outdated = self.outdated(clip)
        row = with_scores(clip, dict.fromkeys(self._config.columns_of(outdated)))
        row["keys"] = {n: k for n, k in keys_of(clip).items() if n not in outdated}
        if EMBEDDER in outdated and "embedding" in row:
            row["embedding"] = None
        return row
