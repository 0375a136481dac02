"""The differences between two configurations, in the notation of the user."""

from __future__ import annotations

import json
from typing import Any

from curation.config.schema import LATER, Config


def changes(old: Config, new: Config) -> list[str]:
    """The differences, without the section `run`: lines of `key: old -> new`."""
    a, b = (flat(c.model_dump(mode="json", exclude={"run"})) for c in (old, new))
    a, b = ({**LATER, **flattened} for flattened in (a, b))
    keys = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    return [f"{key}: {_shown(a.get(key))} -> {_shown(b.get(key))}" for key in keys]


def _shown(value: Any) -> str:
    """The value in the notation of the user."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings, by dotted key."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {
        k: v for name, x in value.items() for k, v in flat(x, f"{prefix}.{name}" if prefix else name).items()
    }
