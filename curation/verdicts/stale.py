"""Which scores of a committed clip are missing or out of date under a configuration. Pure."""

from __future__ import annotations

from curation.config.schema import Config
from curation.store.rows import ClipRow, keys_of, scores_of, with_scores
from curation.verdicts.judge import columns_of, ordered, spared
from filters import EMBEDDER


class Staleness:
    """Compares the keys that a row of `clips` carries with those of a configuration."""

    def __init__(self, config: Config):
        self._config = config
        self._keys = config.measure_keys()
        self._rules = ordered(config.rules)
        self._order = list(config.filters)

    def outdated(self, clip: ClipRow) -> list[str]:
        """Scorers that apply to the clip and whose columns it has not, or has from another version or
        other parameters."""
        media = "image" if clip["fps"] is None else "video"
        have = keys_of(clip)
        return [
            name
            for name in self._order
            if media in self._config.filters[name].applies_to and have.get(name) != self._keys[name]
        ]

    def wanted(self, clip: ClipRow) -> list[str]:
        """Those of the outdated scorers that a build runs: not the model-backed ones that a cheaper rule
        spares. What is outdated itself spares nothing: that is seen when it has been computed."""
        outdated = self.outdated(clip)
        if self._config.score_all:
            return outdated
        wanted = []
        is_image = clip["fps"] is None
        for name in outdated:
            before = [n for n in self._order[: self._order.index(name)] if n not in outdated]
            dear = self._config.filters[name].uses_model
            if not (dear and spared(scores_of(clip), self._rules, columns_of(before), is_image=is_image)):
                wanted.append(name)
        return wanted

    def holds_old_values(self, clip: ClipRow) -> bool:
        """Has the clip numbers of another version or parameters, which nobody should read any more?"""
        have = keys_of(clip)
        return any(name in have for name in self.outdated(clip))

    def cleared(self, clip: ClipRow) -> ClipRow:
        """The row without its outdated numbers (and embedding): null, as of a score that is missing."""
        outdated = self.outdated(clip)
        row = with_scores(clip, dict.fromkeys(columns_of(outdated)))
        row["keys"] = {n: k for n, k in keys_of(clip).items() if n not in outdated}
        if EMBEDDER in outdated and "embedding" in row:
            row["embedding"] = None
        return row
