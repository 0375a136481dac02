"""Formats numbers, times and texts for the page."""

from __future__ import annotations

_MOST_TEXT = 600  # characters of one message, name or caption


# ---------------------------------------------------------------------------------------------------
# Formats
# ---------------------------------------------------------------------------------------------------


def short(text: str) -> str:
    return text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + " …"


def number(value: float | None) -> str:
    """A number as text, such as 12,345 or 0.0213."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def clock(seconds: float) -> str:
    """A time in a video as text, such as 1:02:03.4. `seconds` counts from the start."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    text = f"{minutes:02d}:{tenths / 10:04.1f}" if hours else f"{minutes}:{tenths / 10:04.1f}"
    return f"{hours}:{text}" if hours else text


def duration(seconds: float | None) -> str:
    """A duration as text, such as 12.3 s, 4.5 min or 6.7 h."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:,.1f} h"


def share(value: float) -> str:
    return f"{100 * value:.1f} %"
