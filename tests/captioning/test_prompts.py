"""Prompts are versioned data. Answers of models are read with tolerance, but no text is invented."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.checks.measures import DEFAULT_RULES, failing, measure
from captioning.prompts import (
    PROMPTS,
    REWRITES,
    STRUCTURE,
    Prompt,
    json_object,
    plain,
    prompt_of,
    rewrite_of,
)

ALL = [*PROMPTS.values(), *REWRITES.values()]
WHOLE = {key: f"The {key} is plain." for key in STRUCTURE}


@pytest.mark.parametrize(
    ("version", "digest"),
    [
        ("detailed-1", "ab006d633076eed0"),
        ("short-1", "743a8572f40271e1"),
        ("structured-1", "bd0174d752ac0d68"),
        ("rewrite-1", "973f10099127aa3f"),
        ("rewrite_short-1", "8cf512b14b2b5e02"),
    ],
)
def test_a_version_is_a_text(version: str, digest: str) -> None:
    """A changed text needs a new number, because captions with the old text are kept."""
    (found,) = [prompt for prompt in ALL if prompt.version == version]
    assert hashlib.sha256(found.text.encode()).hexdigest()[:16] == digest


def test_names_versions_and_kinds() -> None:
    assert {p.name: p.kind for p in PROMPTS.values()} == {
        "detailed": "long",
        "short": "short",
        "structured": "structured",
    }
    assert {p.kind for p in REWRITES.values()} == {"rewritten"}
    assert all(re.fullmatch(rf"{p.name}-\d+", p.version) for p in ALL)
    assert len({p.version for p in ALL}) == len(ALL)


@pytest.mark.parametrize(
    "wanted", ["subject", "attributes", "background", "camera", "style", "opinions", "never what is missing"]
)
def test_the_detailed_prompt_asks_for_every_part_of_a_caption(wanted: str) -> None:
    assert wanted in PROMPTS["detailed"].text


@pytest.mark.parametrize("prompt", ALL)
def test_an_answer_that_repeats_the_prompt_breaks_a_rule(prompt: Prompt) -> None:
    assert failing(measure(prompt.text, prompt=prompt), DEFAULT_RULES) is not None


def test_a_prompt_by_name() -> None:
    assert prompt_of("short") is PROMPTS["short"]
    assert rewrite_of("rewrite") is REWRITES["rewrite"]


def test_the_version_of_a_users_text_is_a_hash() -> None:
    one, same, other = (
        prompt_of(t) for t in ("Say what you see.", " Say what you see.\n", "Say what is seen.")
    )
    assert one == same
    assert one.text == "Say what you see."
    assert one.kind == "long"
    assert re.fullmatch(r"custom-[0-9a-f]{8}", one.version)
    assert one.version != other.version
    assert rewrite_of("Rewrite this: ").kind == "rewritten"


@pytest.mark.parametrize("setting", ["", "  ", "detialed", "rewrite"])
def test_the_error_for_an_unknown_prompt_names_the_prompts(setting: str) -> None:
    with pytest.raises(ValueError, match="detailed, short, structured"):
        prompt_of(setting)


def test_an_answer_is_one_clean_line() -> None:
    assert plain("\n A dog\truns.\r\n\nIt barks. \x00\ufeff") == "A dog runs. It barks."
    assert plain("A family 👨‍👩‍👧 on a beach, 海.") == "A family 👨‍👩‍👧 on a beach, 海."
    assert plain(json.loads('"half \\ud83d a face"')) == "half ? a face"


@pytest.mark.parametrize(
    "answer",
    [
        "<think>The video shows a dog?</think>\nA dog runs.",
        "\n<think>\nlong\nthoughts\n</think>A dog runs.",
        "thoughts whose beginning the template wrote</think> A dog runs.",
    ],
)
def test_thoughts_are_not_part_of_a_caption(answer: str) -> None:
    assert PROMPTS["detailed"].read(answer) == "A dog runs."


@pytest.mark.parametrize("answer", ["", " \n", "<think>I never came to an end", "<think>a</think>", "\x00"])
def test_an_empty_answer_is_an_error(answer: str) -> None:
    with pytest.raises(ValueError, match="empty"):
        PROMPTS["detailed"].read(answer)


@pytest.mark.parametrize(
    "wrap",
    [
        "{}",
        "```json\n{}\n```",
        "```\n{}```",
        "Sure! Here is the JSON you asked for:\n\n{}\n\nLet me know if you need more {{of it}}.",
        "A {{curly}} preface. {}",
        '{{"subject": "..."}} {}',
        "<think>{{}}</think>{}",
    ],
)
def test_json_is_found_within_other_text(wrap: str) -> None:
    answer = wrap.format(json.dumps(WHOLE, indent=1))
    assert json_object(answer, STRUCTURE) == WHOLE
    assert json.loads(PROMPTS["structured"].read(answer)) == WHOLE


def test_keys_and_values_may_have_other_forms() -> None:
    said = '{"Rewritten_Description": "A dog\nruns.", "more": 3}'
    assert json_object(said, ["rewritten description"]) == {"rewritten description": "A dog\nruns."}
    assert json_object('{"REWRITTEN-description": ["A dog.", "A cat."]}', ["rewritten description"]) == {
        "rewritten description": "A dog. A cat."
    }


@pytest.mark.parametrize(
    "answer",
    [
        "A dog runs.",
        "",
        "{",
        '{"subject": "A dog runs.',
        json.dumps({key: WHOLE[key] for key in STRUCTURE[:-1]}),
        json.dumps({**WHOLE, "style": ""}),
        json.dumps({**WHOLE, "style": None}),
        json.dumps({**WHOLE, "style": 3}),
        json.dumps({**WHOLE, "style": {"a": "b"}}),
        json.dumps({**WHOLE, "style": "..."}),
        json.dumps([WHOLE["style"]]),
        '{"subject":' * 50_000,
        "{" * 100_000,
    ],
)
def test_an_answer_without_a_complete_object_is_an_error(answer: str) -> None:
    assert json_object(answer, STRUCTURE) is None
    with pytest.raises(ValueError, match=r"not a JSON object|empty"):
        PROMPTS["structured"].read(answer)


@given(st.text())
def test_any_answer_becomes_a_text_that_a_table_can_store(answer: str) -> None:
    try:
        text = PROMPTS["detailed"].read(answer)
    except ValueError:
        return
    assert text == " ".join(text.split()) != ""
    text.encode()
