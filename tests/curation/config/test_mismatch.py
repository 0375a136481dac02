"""What is said of settings that do not fit each other."""

from __future__ import annotations

from pathlib import Path

import pytest

import curation
from curation.config.load import load_config
from curation.config.mismatch import mismatches

CONFIGS = Path(curation.__file__).parent / "configs"


@pytest.mark.parametrize(
    ("rule", "spans", "said"),
    [
        ("{min: 3, max: 10}", "{min_seconds: 3, max_seconds: 10}", []),
        ("{min: 3, max: 10}", "{min_seconds: 4, max_seconds: 8}", []),
        ("{max: 4}", "{min_seconds: 3, max_seconds: 4}", []),
        ("{min: 3, max: 10}", "{min_seconds: 3, max_seconds: 20}", ["spans.max_seconds is 20 and"]),
        ("{min: 3, max: 10}", "{min_seconds: 1, max_seconds: 10}", ["spans.min_seconds is 1 and"]),
        ("{min: 6}", "{min_seconds: 3, max_seconds: 4}", ["every clip of a video will be rejected"]),
    ],
)
def test_lengths_that_do_not_fit_are_said(rule: str, spans: str, said: list[str]) -> None:
    text = f"base: none\nfilters: {{duration: {{}}}}\nrules: {{duration.seconds: {rule}}}\nspans: {spans}"
    found = mismatches(load_config(text))
    assert len(found) == len(said)
    for line, part in zip(found, said, strict=True):
        assert part in line
        assert "set " in line


@pytest.mark.parametrize("name", ["default", "demo", "corpus"])
def test_our_own_configurations_fit(name: str) -> None:
    assert mismatches(load_config((CONFIGS / f"{name}.yaml").read_text())) == []
