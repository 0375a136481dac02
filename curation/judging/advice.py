"""`reelmill advise`: what the rules cost, and other cut-offs."""

from __future__ import annotations

import math

import numpy as np

from curation.captions.chosen import Captions
from curation.config.schema import Config, ConfigError
from curation.judging.costs import costs, judging
from curation.judging.findings import By, Findings, Labels
from curation.judging.fitted import Fitted, fit
from curation.judging.labels import read_labels
from curation.judging.places import place_labels
from curation.judging.proposals import lines
from curation.judging.share import propose
from curation.judging.shots import belongs, is_short
from curation.report.read import Clips, read_clips
from curation.report.sheet import Cut, write_sheet
from curation.store.dataset import Dataset
from curation.store.schema import is_score
from filters.rules import Rule


class Advice(Findings):
    """What `reelmill advise` found. `str` gives it as lines."""

    def lines(self) -> list[str]:
        return list(lines(self))

    def __str__(self) -> str:
        return "\n".join(self.lines())


def advise_on(
    dataset: Dataset,
    config: Config,
    *,
    keep: str | float | None,
    by: By,
    labels: str | None,
    min_seconds: float,
) -> Advice:
    """Writes the contact sheet, and nothing else. Raises `ConfigError`."""
    wanted = None if keep is None else share_of(keep)
    clips = read_clips(dataset, Captions.read(dataset, config))
    judged = judging(clips, config.verdict_rules, config.columns_of(config.model_scorers))
    passing = judged.passes
    found = Advice(
        len(clips),
        float(clips.seconds.sum()),
        int(passing.sum()),
        float(clips.seconds[passing].sum()),
        dict(judged.rules),
        costs(judged),
        by,
    )
    if wanted is not None:
        found.share = propose(judged, wanted, clips.seconds if by == "seconds" else np.ones(len(clips)))
    if labels is not None:
        found.labels = labels_of(dataset, labels, clips, min_seconds)
        found.fitted = _fitted(clips, found.labels, found.rules)
    found.page = write_sheet(dataset, config, clips, _cuts(found), found.lines())
    return found


def share_of(keep: str | float) -> float:
    """The share that `--keep` names: 30% or 0.3. Raises `ConfigError`."""
    text = str(keep).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ConfigError(f"--keep {keep}: write a share, such as 30% or 0.3, above 0 and at most 100%")
    return share


def labels_of(dataset: Dataset, name: str, clips: Clips, min_seconds: float) -> Labels:
    """The judgements of the dataset's clips. Labelled shots shorter than `min_seconds` do not count."""
    places = place_labels(dataset, read_labels(name), {})
    said: dict[str, set[bool]] = {}
    for placed in places.sources:
        for shot in placed.shots:
            if shot.keep is not None and not is_short(shot, min_seconds):
                for clip in placed.clips:
                    if belongs(shot, clip):
                        said.setdefault(clip.clip_id, set()).add(shot.keep)
    for _, clip, label in places.clips:
        if label.keep is not None:
            said[clip.clip_id] = {label.keep}
    numbers = {id_: i for i, id_ in enumerate(clips.ids.to_pylist())}
    keep = {numbers[id_]: next(iter(judgements)) for id_, judgements in said.items() if len(judgements) == 1}
    return Labels(dict(sorted(keep.items())), len(said) - len(keep), tuple(places.unknown))


def _fitted(clips: Clips, labels: Labels, rules: dict[str, Rule]) -> list[Fitted]:
    """The best bounds on all score columns: those that rules have now, and others that help."""
    places = np.array(list(labels.keep), dtype=np.int64)
    judgements = np.array(list(labels.keep.values()), dtype=bool)
    found = []
    for column, scores in clips.scores.items():
        if not is_score(column) or not len(places):
            continue
        scored = np.isfinite(scores[places])
        for bound in ("min", "max"):
            now = getattr(rules[column], bound) if column in rules else None
            fitted = fit(column, bound, scores[places][scored], judgements[scored], now)
            if fitted is not None and (now is not None or fitted.is_clear):
                found.append(fitted)
    return found


def _cuts(found: Findings) -> dict[str, list[Cut]]:
    """The cut-offs of the contact sheet by column: those of now, and those that are proposed."""
    cuts: dict[str, list[Cut]] = {}
    for column, rule in found.rules.items():
        cuts[column] = _bounds(rule, "now")
    for column, rule in (found.share.rules if found.share else {}).items():
        cuts[column] += [c for c in _bounds(rule, "for the wanted share") if c not in cuts[column]]
    for fitted in found.clear:
        cuts.setdefault(fitted.column, []).append(Cut(fitted.value, fitted.bound == "min", "from the labels"))
    return {column: _different(of_column) for column, of_column in cuts.items()}


def _bounds(rule: Rule, why: str) -> list[Cut]:
    pairs = ((rule.min, True), (rule.max, False))
    return [Cut(value, is_min, why) for value, is_min in pairs if value is not None]


def _different(cuts: list[Cut]) -> list[Cut]:
    """Each cut-off once, with its first reason."""
    return list({(cut.value, cut.is_min): cut for cut in reversed(cuts)}.values())[::-1]
