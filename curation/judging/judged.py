"""`reelmill judge`: a dataset's verdicts beside a curator's labels."""

from __future__ import annotations

from collections.abc import Sequence

from curation.captions.chosen import Captions, failure_keys
from curation.config.schema import Config, ConfigError
from curation.judging.agreement import Agreement
from curation.judging.changes import compare
from curation.judging.labels import read_labels
from curation.judging.lines import lines
from curation.judging.places import Placed, Places, place_labels
from curation.judging.result import Result, Seconds
from curation.judging.shots import Outcome, is_short, outcomes
from curation.store.dataset import Dataset
from curation.store.rows import VerdictRow
from curation.verdicts.judge import verdict_rows


class Judged(Result):
    """The result of `reelmill judge`. `str` gives it as lines."""

    def lines(self) -> list[str]:
        return lines(self)

    def __str__(self) -> str:
        return "\n".join(self.lines())


def judge_labels(
    dataset: Dataset, config: Config, truth: str, *, min_seconds: float, other_rules: bool
) -> Judged:
    """Nothing is written. other_rules: judge by the rules of `config`, not by the dataset's verdicts."""
    if not min_seconds >= 0:
        raise ConfigError(f"--min-seconds {min_seconds:g}: write 0 or more seconds")
    labels = read_labels(truth)
    places = place_labels(dataset, labels, verdicts_of(dataset, config, other_rules=other_rules))
    found, left_out = outcomes(places, min_seconds)
    by_list = config.spans.by == "list"
    return Judged(
        len(places.sources) + len({placed.uri for placed, _, _ in places.clips}),
        places.unknown,
        left_out,
        min_seconds,
        counted(found),
        _seconds(places, min_seconds),
        found,
        compare(places.sources, trim_seconds=config.spans.trim_seconds, by_list=by_list),
    )


def verdicts_of(dataset: Dataset, config: Config, *, other_rules: bool) -> dict[str, VerdictRow]:
    """clip_id -> its verdict in the dataset, or under the rules of `config`.

    A clip that no rule on a column rejected, such as one of a source that is refused, stays rejected.
    """
    stored = {row["clip_id"]: row for row in dataset.verdicts()}
    if not other_rules:
        return stored
    captions = Captions.read(dataset, config)
    made = verdict_rows(dataset, config.verdict_rules, failure_keys(config), captions)
    known = {*dataset.schema("clips").names, *dataset.schema("captions").names}
    fixed = {
        i: row for i, row in stored.items() if row["status"] == "rejected" and row["reason"] not in known
    }
    return {row["clip_id"]: row for row in made} | fixed


def counted(found: Sequence[Outcome]) -> Agreement:
    """The four counts of these outcomes."""
    pairs = [(outcome.keep, outcome.accepted) for outcome in found]
    return Agreement(
        pairs.count((True, True)),
        pairs.count((False, True)),
        pairs.count((True, False)),
        pairs.count((False, False)),
    )


def _seconds(places: Places, min_seconds: float) -> Seconds:
    """Of the accepted clips of the labelled sources: how many seconds lie in shots to keep, and to reject."""
    parts = [_seconds_of(placed, min_seconds) for placed in places.sources]
    return Seconds(sum(p.keep for p in parts), sum(p.reject for p in parts), sum(p.unlabelled for p in parts))


def _seconds_of(placed: Placed, min_seconds: float) -> Seconds:
    clips = [c for c in placed.clips if c.verdict is not None and c.verdict["status"] == "accepted"]

    def inside(keep: bool) -> float:
        shots = [s for s in placed.shots if s.keep is keep and not is_short(s, min_seconds)]
        shared = (min(s.end, c.end_s) - max(s.first, c.start_s) for s in shots for c in clips)
        return sum(max(0.0, s) for s in shared)

    keep, reject = inside(True), inside(False)
    return Seconds(keep, reject, max(0.0, sum(c.end_s - c.start_s for c in clips) - keep - reject))
