"""Rewrites are added to the original captions. A failed rewrite does not change the original."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from captioning.base import Caption, CaptionerMissing, CaptionFailed, CaptionRequest
from captioning.local.lm import TextModel
from captioning.prompts import REWRITES
from captioning.rewrite import LONG, SHORT, Rewrite, rewritten
from tests.captioning import tiny_vlm
from tests.captioning.chat_server import Asked, ChatServer, Reply

REWRITE = REWRITES["rewrite"]
GOOD = "A brown dog runs across a lawn and catches a red ball in the air."
BRIEF = "A dog catches a ball on a lawn."


def original(k: int) -> str:
    return f"The video shows dog number {k}, which runs across a lawn. It is a very beautiful dog."


def requests(count: int) -> list[CaptionRequest]:
    return [CaptionRequest(f"clip-{k}", "a.mp4", 0.0, 2.0, text=original(k)) for k in range(count)]


def number(text: str) -> int:
    """The number of the dog in the caption that a question asks to rewrite."""
    return int(text.rpartition("dog number ")[2].partition(",")[0])


def said(long: str = GOOD, short: str | None = None) -> str:
    return json.dumps({LONG: long} | ({} if short is None else {SHORT: short}))


def by_server(server: ChatServer, **settings: Any) -> Rewrite:
    return Rewrite("endpoint", "tiny-lm", url=server.url, backoff_s=0.01, **settings)


def texts(answers: Sequence[Caption | CaptionFailed]) -> dict[tuple[str, str], str]:
    return {(a.clip_id, a.kind): a.text for a in answers if isinstance(a, Caption)}


# --- reading answers ---


@pytest.mark.parametrize(
    "wrap",
    [
        "{}",
        "```json\n{}\n```",
        "```\n{}\n```",
        "Sure! Here it is:\n{}\nAnything else?",
        "<think>Hm {{}}</think>{}",
    ],
)
def test_an_answer_with_and_without_fences(wrap: str) -> None:
    assert rewritten(wrap.format(said()), REWRITE) == {"rewritten": GOOD}


def test_an_answer_over_several_lines_becomes_one() -> None:
    assert rewritten('{"rewritten_description": "A dog runs.\n\nIt jumps."}', REWRITE) == {
        "rewritten": "A dog runs. It jumps."
    }


def test_an_answer_may_have_a_short_text_too() -> None:
    assert rewritten(said(short=BRIEF), REWRITE) == {"rewritten": GOOD, "short": BRIEF}
    assert rewritten(said(short=""), REWRITE) == {"rewritten": GOOD}


NO_REWRITES = [
    "",
    GOOD,
    "{",
    said()[:-2],
    said(""),
    said("..."),
    json.dumps({"description": GOOD}),
    json.dumps({LONG: {"text": GOOD}}),
    json.dumps([GOOD]),
    said("I'm sorry, but I can't help with that."),
    said("The video shows a dog that runs across a lawn."),
    said("A dog runs across a lawn and catches a"),
    said("A dog runs. " * 30),
    said(REWRITE.text),
    said("Dog."),
    said(short="Sure! A dog runs."),
]


@pytest.mark.parametrize("answer", NO_REWRITES)
def test_answers_that_are_no_rewrite(answer: str) -> None:
    with pytest.raises(ValueError, match=r"no JSON object|fails the check caption\."):
        rewritten(answer, REWRITE)


# --- by a server ---


def test_each_clip_gets_the_rewrite_of_its_own_caption() -> None:
    def script(asked: Asked) -> Reply:
        k = number(asked.text)
        return Reply(said(f"Dog number {k} runs across a lawn."), delay_s=0.2 - 0.02 * k)

    with ChatServer(script, hold=8) as server:
        answers = by_server(server, concurrency=8)(requests(8))
    assert texts(answers) == {
        (f"clip-{k}", "rewritten"): f"Dog number {k} runs across a lawn." for k in range(8)
    }
    assert server.most == 8
    assert {asked.content for asked in server.asked} == {REWRITE.text + original(k) for k in range(8)}


def test_a_rewrite_names_its_model_and_prompt() -> None:
    with ChatServer(lambda asked: Reply(said())) as server:
        (answer,) = by_server(server, seed=3, max_tokens=99)(requests(1))
    assert answer == Caption(
        "clip-0", "rewrite", "rewritten", GOOD, "tiny-lm", "fp-1", prompt_version="rewrite-1"
    )
    body = server.asked[0].body
    assert (body["max_tokens"], body["seed"], body["temperature"]) == (99, 3, 0.0)


def test_a_clip_gets_a_long_and_a_short_rewrite() -> None:
    with ChatServer(lambda asked: Reply(said(short=BRIEF))) as server:
        answers = by_server(server, prompt="rewrite_short")(requests(2))
    assert texts(answers) == {
        (f"clip-{k}", kind): text for k in range(2) for kind, text in (("rewritten", GOOD), ("short", BRIEF))
    }
    assert {a.prompt_version for a in answers if isinstance(a, Caption)} == {"rewrite_short-1"}


@pytest.mark.parametrize("answer", [a for a in NO_REWRITES if a])
def test_a_failed_rewrite_is_no_caption(answer: str) -> None:
    asked = requests(3)
    with ChatServer(lambda a: Reply(answer if number(a.text) == 1 else said())) as server:
        answers = by_server(server)(asked)
    assert set(texts(answers)) == {("clip-0", "rewritten"), ("clip-2", "rewritten")}
    (failed,) = [a for a in answers if isinstance(a, CaptionFailed)]
    assert (failed.clip_id, failed.error) == ("clip-1", "BadAnswer")
    assert [r.text for r in asked] == [original(k) for k in range(3)]
    assert len(server.asked) == 3  # the same question would bring the same answer


@pytest.mark.parametrize("reply", [Reply(status=500), Reply(fate="drop"), Reply(text=""), Reply(status=400)])
def test_a_failing_server_gives_failures(reply: Reply) -> None:
    with ChatServer(lambda asked: reply) as server:
        answers = by_server(server, retries=1)(requests(2))
    assert [type(a) for a in answers] == [CaptionFailed] * 2
    assert {a.clip_id for a in answers} == {"clip-0", "clip-1"}


def test_a_second_try_may_do_better() -> None:
    """A second try has a higher temperature and another seed."""
    with ChatServer(lambda asked: Reply(said() if asked.body["temperature"] else "A dog.")) as server:
        first = by_server(server)
        assert isinstance(first(requests(1))[0], CaptionFailed)
        assert texts(first.again()(requests(1))) == {("clip-0", "rewritten"): GOOD}
    assert [asked.body["seed"] for asked in server.asked] == [0, 1]


def test_a_refusal_is_not_rewritten() -> None:
    refused = CaptionRequest("r", "a.mp4", 0, 1, text="I'm sorry, but I cannot see the video.")
    with ChatServer(lambda asked: Reply(said())) as server:
        answers = by_server(server)([refused, *requests(1)])
    assert {a.clip_id: type(a) for a in answers} == {"r": CaptionFailed, "clip-0": Caption}
    assert len(server.asked) == 1


@pytest.mark.parametrize("text", [None, "", "  "])
def test_a_clip_without_a_text_is_skipped(text: str | None) -> None:
    with ChatServer() as server:
        assert by_server(server)([CaptionRequest("a", "a.mp4", 0, 1, text=text)]) == []
    assert not server.asked


def test_the_error_for_a_wrong_key_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_KEY", "sk-secret")
    with ChatServer(lambda asked: Reply(status=401, text="bad key sk-secret")) as server:
        made = by_server(server, api_key_env="LM_KEY")
        for work in (made.check, lambda: made(requests(3))):
            with pytest.raises(CaptionerMissing, match=r"captions\.rewrite: .* LM_KEY is refused") as raised:
                work()
            assert "sk-secret" not in str(raised.value)


def test_a_server_that_works_passes_the_check() -> None:
    with ChatServer() as server:
        by_server(server).check()
    assert server.asked[0].content.startswith(REWRITE.text)


# --- by a model of transformers ---


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm.qwen2(tmp_path_factory.mktemp("lm") / "qwen2")


def test_answers_without_json_are_failures(model: Path) -> None:
    """A real language model with random weights gives useless answers."""
    made = Rewrite("transformers", str(model), max_tokens=8)
    made.check()
    answers = made(requests(3))
    assert [(a.clip_id, type(a)) for a in answers] == [(f"clip-{k}", CaptionFailed) for k in range(3)]
    assert {a.error for a in answers if isinstance(a, CaptionFailed)} <= {"BadAnswer", "EmptyAnswer"}


def test_a_second_try_shares_the_loaded_model_and_a_pickle_has_none(model: Path) -> None:
    made = Rewrite("transformers", str(model), max_tokens=4)
    made(requests(1))
    again = made.again()
    assert again._local._generator is made._local._generator
    assert (again._local.settings.seed, again._local.settings.temperature) == (1, 0.7)
    assert (made._local.settings.seed, made._local.settings.temperature) == (0, 0.0)
    assert len(pickle.dumps(made)) < 2000
    assert pickle.loads(pickle.dumps(made)) == made


def test_answers_of_a_model_match_the_order_of_the_texts(model: Path) -> None:
    """The answers have the form of a trained model's answers."""

    class Told(TextModel):
        def __call__(self, texts: Sequence[str]) -> list[str]:
            return ["" if number(t) == 2 else said(f"Dog number {number(t)} runs fast.") for t in texts]

    made = Rewrite("transformers", str(model))
    made.__dict__["_local"] = Told(made._text_settings())
    answers = made(requests(4))
    assert texts(answers) == {
        (f"clip-{k}", "rewritten"): f"Dog number {k} runs fast." for k in range(4) if k != 2
    }
    assert [(a.clip_id, a.error) for a in answers if isinstance(a, CaptionFailed)] == [
        ("clip-2", "EmptyAnswer")
    ]


def test_a_missing_model_is_detected_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(CaptionerMissing, match=r"captions\.rewrite\.model"):
        Rewrite("transformers", str(tmp_path / "nowhere")).check()


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "endpoint"}, r"captions\.rewrite\.url"),
        ({"by": "endpoint", "url": "http://h/v1", "model": ""}, r"captions\.rewrite\.model"),
        (
            {"by": "endpoint", "url": "http://h/v1", "dtype": "float32"},
            r"dtype: is a setting for by: transformers",
        ),
        ({"by": "transformers", "url": "http://h/v1"}, r"url: is a setting for by: endpoint"),
        ({"by": "transformers", "concurrency": 4}, r"concurrency: is a setting for by: endpoint"),
        ({"by": "transformers", "model": " "}, r"captions\.rewrite\.model"),
        ({"by": "transformers", "prompt": "rewriet"}, "use one of rewrite, rewrite_short"),
        ({"by": "endpoint", "url": "http://h/v1", "retries": -1}, r"captions\.rewrite\.retries"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rewrite(**{"model": "m", **settings})


def test_defaults_are_set_for_the_chosen_kind_of_model() -> None:
    server = Rewrite("endpoint", "m", url="http://h/v1")
    assert (server.concurrency, server.retries, server.batch_clips) == (16, 5, None)
    local = Rewrite("transformers", "m")
    assert (local.concurrency, local.batch_clips, local.dtype) == (None, 16, "auto")


def test_the_key_changes_with_settings_that_decide_the_text() -> None:
    given: dict[str, Any] = {"by": "endpoint", "model": "m", "url": "http://h/v1"}
    other = [
        {"model": "n"},
        {"prompt": "rewrite_short"},
        {"max_tokens": 5},
        {"temperature": 0.5},
        {"seed": 1},
        {"extra": {"top_p": 0.5}},
    ]
    keys = {Rewrite(**given).key} | {Rewrite(**{**given, **o}).key for o in other}
    assert len(keys) == len(other) + 1
    assert Rewrite(**{**given, "url": "http://other/v1", "concurrency": 1}).key == Rewrite(**given).key
