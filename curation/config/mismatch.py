"""Settings of a configuration that do not fit each other, although each of them is right."""

from __future__ import annotations

from curation.config.schema import Config

_LENGTH = "duration.seconds"


def mismatches(config: Config) -> list[str]:
    """One sentence for each: what will happen, and which key to change."""
    rule, spans = config.rules.get(_LENGTH), config.spans
    if rule is None:
        return []
    longest = f"spans.max_seconds is {spans.max_seconds:g}"
    shortest = f"spans.min_seconds is {spans.min_seconds:g}"
    least = rule.min or 0.0
    if spans.max_seconds < least:
        return [
            f"{longest} and rules.{_LENGTH}.min is {least:g}: every clip of a video will be rejected; set "
            f"spans.max_seconds to at least {least:g}, or rules.{_LENGTH}.min to less"
        ]
    found = []
    if rule.max is not None and spans.max_seconds > rule.max:
        found.append(
            f"{longest} and rules.{_LENGTH}.max is {rule.max:g}: clips of a length between them will be "
            f"rejected, where scenes could be divided into clips that pass; set both to the same number"
        )
    if spans.min_seconds < least:
        found.append(
            f"{shortest} and rules.{_LENGTH}.min is {least:g}: clips of a length between them will be "
            "rejected; set both to the same number"
        )
    return found
