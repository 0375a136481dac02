"""The captioner `endpoint` with a real HTTP server and many faults: each clip gets its own caption or a
recorded failure."""

from __future__ import annotations

import asyncio
import itertools
import json
import pickle
import random
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import pytest

from captioning.base import Caption, CaptionerMissing, CaptionFailed, CaptionRequest, Pictures
from captioning.prompts import PROMPTS, STRUCTURE
from captioning.server.endpoint import Endpoint
from tests.captioning.chat_server import Asked, ChatServer, Reply, numbered

FRAMES = 4
KEY = "sk-test-0123456789abcdefABCDEF"


@pytest.fixture(autouse=True)
def _no_key_and_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def endpoint(server: ChatServer, **settings: Any) -> Endpoint:
    given = {"frames": FRAMES, "side": 64, "concurrency": 8, "backoff_s": 0.01, "timeout_s": 10.0}
    return Endpoint(server.url, "tiny-vl", **{**given, **settings})


def clips(count: int) -> list[CaptionRequest]:
    """Clips whose pictures encode the number of the clip and of the picture."""
    return [
        CaptionRequest(
            f"clip-{k}", "a.mp4", 0.0, 2.0, pictures=tuple(numbered(k * FRAMES + j) for j in range(FRAMES))
        )
        for k in range(count)
    ]


def clip_of(asked: Asked) -> int:
    return asked.numbers[0] // FRAMES


def own(asked: Asked, **reply: Any) -> Reply:
    """The answer that belongs to one clip only."""
    return Reply(text=f"Clip {clip_of(asked)} is described here.", **reply)


def assert_own(answers: list[Caption | CaptionFailed], count: int) -> None:
    assert len(answers) == count
    for answer in answers:
        assert isinstance(answer, Caption), answer
        assert answer.text == f"Clip {answer.clip_id.removeprefix('clip-')} is described here."
    assert {answer.clip_id for answer in answers} == {f"clip-{k}" for k in range(count)}


def test_frames_arrive_in_order_before_the_prompt() -> None:
    with ChatServer(own) as server:
        assert_own(endpoint(server, prompt="short")(clips(3)), 3)
    by_clip = {clip_of(asked): asked for asked in server.asked}
    for k in range(3):
        assert by_clip[k].numbers == [k * FRAMES + j for j in range(FRAMES)]
        assert by_clip[k].text == PROMPTS["short"].text
        assert by_clip[k].path == "/v1/chat/completions"
        assert [part["type"] for part in by_clip[k].content] == ["image_url"] * FRAMES + ["text"]


def test_pictures_arrive_unchanged() -> None:
    ramp = np.linspace(0, 255, 96).astype(np.uint8)
    picture = np.stack(
        [np.tile(ramp, (40, 1)), np.full((40, 96), 200, np.uint8), np.tile(ramp[::-1], (40, 1))], -1
    )
    with ChatServer() as server:
        endpoint(server)([CaptionRequest("a", "a.png", 0, 0, is_image=True, pictures=(picture,))])
    (seen,) = server.asked[0].pictures
    assert seen.shape == picture.shape
    assert (
        np.abs(seen.astype(int) - picture.astype(int)).mean() < 3
    )  # the channels are in order; JPEG changes values a little


def test_a_request_contains_the_settings() -> None:
    with ChatServer() as server:
        made = endpoint(
            server, max_tokens=77, temperature=0.25, seed=5, extra={"top_p": 0.5, "repetition_penalty": 1.1}
        )
        made(clips(1))
        endpoint(server, seed=None, extra={"max_tokens": None, "max_completion_tokens": 9})(clips(1))
    first, second = ({k: v for k, v in a.body.items() if k != "messages"} for a in server.asked)
    assert first == {
        "model": "tiny-vl",
        "max_tokens": 77,
        "temperature": 0.25,
        "seed": 5,
        "top_p": 0.5,
        "repetition_penalty": 1.1,
    }
    assert second == {"model": "tiny-vl", "temperature": 0.0, "max_completion_tokens": 9}
    assert "Authorization" not in server.asked[0].headers


def test_a_caption_names_its_model_and_prompt() -> None:
    with ChatServer(lambda asked: Reply(text=" A dog\nruns. ", finish="length")) as server:
        (caption,) = endpoint(server)(clips(1))
    assert caption == Caption(
        "clip-0",
        "endpoint",
        "long",
        "A dog runs.",
        model="tiny-vl",
        revision="fp-1",
        prompt_version="detailed-1",
        truncated=True,
    )


@pytest.mark.parametrize("bound", [1, 3, 8])
def test_the_bound_on_concurrency_is_reached_and_never_exceeded(bound: int) -> None:
    """The server counts, and its answers come in another order."""
    dice = random.Random(0)
    with ChatServer(lambda asked: own(asked, delay_s=dice.uniform(0, 0.02)), hold=bound) as server:
        assert_own(endpoint(server, concurrency=bound)(clips(40)), 40)
    assert server.most == bound
    assert len(server.asked) == 40


def test_answers_in_any_order_are_matched_by_clip() -> None:
    """The first question is answered last."""
    with ChatServer(lambda asked: own(asked, delay_s=0.3 - 0.035 * clip_of(asked)), hold=8) as server:
        assert_own(endpoint(server)(clips(8)), 8)


FIRST_TRIES: dict[str, Reply] = {
    "too many": Reply(status=429, text="slow down", headers={"Retry-After": "0.05"}),
    "too many, no header": Reply(status=429),
    "a fault": Reply(status=500, text="oops"),
    "unavailable": Reply(status=503, headers={"Retry-After": "not a time"}),
    "a gateway": Reply(status=502, raw=b"<html>Bad gateway</html>"),
    "broken JSON": Reply(raw=b'{"choices": [{"message": {"content": "A dog'),
    "another JSON": Reply(raw=b"[1, 2]"),
    "deep JSON": Reply(raw=b"[" * 100_000),
    "no UTF-8": Reply(raw=b"\xff\xfe{}"),
    "an error with 200": Reply(raw=b'{"error": {"message": "overloaded"}}'),
    "no choice": Reply(raw=b'{"choices": []}'),
    "an odd choice": Reply(raw=b'{"choices": [null]}'),
    "an empty choice": Reply(text=""),
    "a choice of nothing": Reply(text=None),
    "dropped": Reply(fate="drop"),
    "reset": Reply(fate="reset"),
    "dropped halfway": Reply(fate="half"),
    "never": Reply(fate="never"),
    "late": Reply(delay_s=30.0),
}


def patience(name: str) -> float:
    return 0.4 if name in ("never", "late") else 10.0


@pytest.mark.parametrize("name", FIRST_TRIES)
def test_temporary_errors_are_retried(name: str) -> None:
    with ChatServer(lambda asked: own(asked) if asked.attempt else FIRST_TRIES[name]) as server:
        assert_own(endpoint(server, timeout_s=patience(name))(clips(5)), 5)
    assert len(server.asked) == 10


@pytest.mark.parametrize("name", FIRST_TRIES)
def test_lasting_errors_are_recorded(name: str) -> None:
    with ChatServer(lambda asked: FIRST_TRIES[name] if clip_of(asked) == 1 else own(asked)) as server:
        answers = endpoint(server, timeout_s=patience(name), retries=2)(clips(3))
    (failed,) = [answer for answer in answers if isinstance(answer, CaptionFailed)]
    assert failed.clip_id == "clip-1"
    assert failed.error
    assert "after 3 requests" in failed.message
    assert sum(clip_of(asked) == 1 for asked in server.asked) == 3
    assert {a.clip_id: a.text for a in answers if isinstance(a, Caption)} == {
        f"clip-{k}": f"Clip {k} is described here." for k in (0, 2)
    }


def test_all_faults_at_the_same_time() -> None:
    """Each clip meets faults in its own order, and some get no answer. The limit is never exceeded."""
    dice = random.Random(7)
    lost = {3, 17, 29}
    fates = {k: dice.sample(sorted(set(FIRST_TRIES) - {"late"}), dice.randint(0, 3)) for k in range(40)}
    never = list(FIRST_TRIES)

    def script(asked: Asked) -> Reply:
        k = clip_of(asked)
        if k in lost:
            return FIRST_TRIES[never[(k + asked.attempt) % len(never)]]
        if asked.attempt < len(fates[k]):
            return FIRST_TRIES[fates[k][asked.attempt]]
        return own(asked, delay_s=random.Random(k).uniform(0, 0.05))

    with ChatServer(script, hold=6) as server:
        answers = endpoint(server, concurrency=6, timeout_s=1.0, retries=4)(clips(40))
    assert sorted(answer.clip_id for answer in answers) == sorted(f"clip-{k}" for k in range(40))
    failed = {int(a.clip_id[5:]) for a in answers if isinstance(a, CaptionFailed)}
    assert failed == lost
    captions = [a for a in answers if isinstance(a, Caption)]
    assert all(a.text == f"Clip {a.clip_id[5:]} is described here." for a in captions)
    assert server.most == 6
    assert len(server.asked) == sum(len(f) + 1 for k, f in fates.items() if k not in lost) + 5 * len(lost)


@pytest.mark.parametrize(
    "wait", ["1", "1.0", lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)]
)
def test_retry_after_is_honoured(wait: str | Callable[[], str]) -> None:
    came: list[float] = []

    def script(asked: Asked) -> Reply:
        came.append(time.monotonic())
        after = wait if isinstance(wait, str) else wait()  # a date has full seconds: 1 to 2 s from now
        return own(asked) if asked.attempt else Reply(status=429, headers={"Retry-After": after})

    with ChatServer(script) as server:
        assert_own(endpoint(server)(clips(1)), 1)
    assert 0.95 <= came[1] - came[0] < 3


def test_a_server_that_asks_to_wait_for_hours_gets_no_more_questions_about_the_clip() -> None:
    with ChatServer(lambda asked: Reply(status=429, headers={"Retry-After": "7200"})) as server:
        (failed,) = endpoint(server)(clips(1))
    assert isinstance(failed, CaptionFailed)
    assert failed.error == "HTTP429"
    assert "7200 s" in failed.message
    assert len(server.asked) == 1


def test_waits_grow() -> None:
    came: list[float] = []

    def script(asked: Asked) -> Reply:
        came.append(time.monotonic())
        return Reply(status=500)

    with ChatServer(script) as server:
        endpoint(server, backoff_s=0.1, retries=3)(clips(1))
    waits = [b - a for a, b in itertools.pairwise(came)]
    for k, wait in enumerate(waits):
        assert 0.05 * 2**k <= wait < 0.1 * 2**k + 0.3


@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_error_of_one_clip_fails_this_clip_without_retries(status: int) -> None:
    with ChatServer(lambda asked: Reply(status=status, text="too many pixels")) as server:
        answers = endpoint(server)(clips(3))
    assert [(a.error, a.message) for a in answers if isinstance(a, CaptionFailed)] == [
        (f"HTTP{status}", "too many pixels")
    ] * 3
    assert len(server.asked) == 3


def test_an_answer_without_a_caption_is_a_bad_answer() -> None:
    with ChatServer(lambda asked: Reply(text="It is a dog.")) as server:
        (failed,) = endpoint(server, prompt="structured")(clips(1))
    assert isinstance(failed, CaptionFailed)
    assert failed.error == "BadAnswer"
    assert STRUCTURE[0] in failed.message


def test_content_in_parts_is_joined() -> None:
    raw = b'{"choices": [{"message": {"content": [{"type": "text", "text": "A dog "}, {"text": "runs."}]}}]}'
    with ChatServer(lambda asked: Reply(raw=raw)) as server:
        (caption,) = endpoint(server)(clips(1))
    assert isinstance(caption, Caption)
    assert (caption.text, caption.model, caption.revision) == ("A dog runs.", "tiny-vl", None)


ODD = "m\ud800\x1b[2J" + "x" * 1000


@pytest.mark.parametrize("where", ["model", "system_fingerprint"])
def test_names_that_fit_into_no_table_come_as_escapes(where: str) -> None:
    """Half a character, and what clears a terminal."""

    def script(asked: Asked) -> Reply:
        choice = {"message": {"content": "Clip 0 is described here."}, "finish_reason": "stop"}
        return Reply(raw=json.dumps({"choices": [choice], where: ODD}).encode())

    with ChatServer(script) as server:
        answers = endpoint(server)(clips(1))
    assert_own(answers, 1)
    assert isinstance(answers[0], Caption)
    told = [answers[0].model or "", answers[0].revision or ""]
    assert any(name.startswith("m\\ud800\\x1b[2J") for name in told)
    assert all(name.isprintable() and len(name.encode()) < 300 for name in told)


def test_reasons_that_fit_into_no_table_come_as_escapes() -> None:
    body = json.dumps({"error": {"message": ODD}}).encode()
    with ChatServer(lambda asked: Reply(status=400, raw=body)) as server:
        (answer,) = endpoint(server)(clips(1))
    assert isinstance(answer, CaptionFailed)
    assert "m\\ud800\\x1b[2J" in answer.message
    assert answer.message.isprintable()


def test_an_endless_answer_is_stopped() -> None:
    with ChatServer(lambda asked: Reply(raw=b" " * (9 << 20))) as server:
        (failed,) = endpoint(server, retries=0)(clips(1))
    assert isinstance(failed, CaptionFailed)
    assert "bytes" in failed.message


def test_a_clip_without_pictures_is_a_failure_of_that_clip() -> None:
    blind = CaptionRequest("blind", "a.mp4", 0, 1)
    with ChatServer(own) as server:
        answers = endpoint(server)([blind, *clips(1)])
        assert endpoint(server)([]) == []
    assert {a.clip_id: type(a) for a in answers} == {"blind": CaptionFailed, "clip-0": Caption}
    assert len(server.asked) == 1


# --- errors that concern every clip ---


@pytest.mark.parametrize("status", [401, 403])
def test_a_missing_key_is_one_error_for_all_clips(status: int) -> None:
    with ChatServer(lambda asked: Reply(status=status, text="who are you?"), hold=4) as server:
        with pytest.raises(CaptionerMissing, match=r"captions\.endpoint: .*OPENAI_API_KEY is not set"):
            endpoint(server, concurrency=4)(clips(64))
        assert len(server.asked) <= 2 * 4


def test_the_error_for_a_wrong_key_names_the_variable_and_hides_the_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with ChatServer(lambda asked: Reply(status=401, text=f"Incorrect API key provided: {KEY}.")) as server:
        made = endpoint(server, api_key_env="MY_KEY")
        for work in (made.check, lambda: made(clips(3))):
            with pytest.raises(CaptionerMissing, match="environment variable MY_KEY is refused") as raised:
                work()
            seen = [raised.value, raised.value.__cause__, raised.value.__context__]
            assert not any(KEY in repr(error) for error in seen)
        assert server.asked[0].headers["Authorization"] == f"Bearer {KEY}"
        assert KEY.encode() not in pickle.dumps(made)
        assert KEY not in repr(made) + made.key + str(vars(made))


@pytest.mark.parametrize("status", [400, 500, 429])
def test_a_key_in_an_error_of_a_clip_is_not_recorded(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"  {KEY}\n")
    with ChatServer(lambda asked: Reply(status=status, text=f"bad: {KEY}")) as server:
        (failed,) = endpoint(server, retries=1)(clips(1))
    assert isinstance(failed, CaptionFailed)
    assert KEY not in repr(failed)
    assert "bad: ***" in failed.message
    assert server.asked[0].headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_can_hold(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with (
        ChatServer() as server,
        pytest.raises(CaptionerMissing, match="OPENAI_API_KEY has no valid key") as raised,
    ):
        endpoint(server)(clips(1))
    assert key not in str(raised.value)
    assert not server.asked


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            Reply(status=404, text="The model `tiny-vl` does not exist."),
            r"captions\.endpoint\.url .*'tiny-vl'",
        ),
        (Reply(status=402, text="pay"), "OPENAI_API_KEY has no credit left"),
        (
            Reply(status=429, raw=b'{"error": {"message": "No funds", "code": "insufficient_quota"}}'),
            "OPENAI_API_KEY has no credit left",
        ),
        (Reply(status=307, headers={"Location": "http://127.0.0.1:1/v1"}), r"set captions\.endpoint\.url to"),
    ],
)
def test_an_error_that_every_clip_would_meet_ends_the_work(reply: Reply, message: str) -> None:
    with ChatServer(lambda asked: reply) as server:
        for work in (endpoint(server).check, lambda: endpoint(server)(clips(3))):
            with pytest.raises(CaptionerMissing, match=message):
                work()


@pytest.mark.parametrize("status", [404, 405])
def test_the_error_for_a_url_without_v1_suggests_v1(status: int) -> None:
    with ChatServer(lambda asked: Reply(status=status)) as server:
        bare = server.url.removesuffix("/v1")
        assert bare != server.url
        for url, hinted in ((bare, True), (bare + "/", True), (server.url, False)):
            with pytest.raises(CaptionerMissing) as error:
                Endpoint(url, "tiny-vl").check()
            assert (f"(most servers answer under {bare}/v1)" in str(error.value)) == hinted


def test_a_missing_server_is_detected_before_the_work() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    made = Endpoint(url, "tiny-vl", backoff_s=0.01)
    with pytest.raises(CaptionerMissing, match=r"captions\.endpoint: .*set captions\.endpoint\.url"):
        made.check()
    (failed,) = made(clips(1))
    assert isinstance(failed, CaptionFailed)
    assert "after 6 requests" in failed.message


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=400, text="At most 1 image(s) may be provided in one prompt."),
        Reply(raw=b"<html>Welcome to nginx!</html>"),
        Reply(fate="never"),
        Reply(status=500),
    ],
)
def test_an_unsuitable_server_is_detected_before_the_work(reply: Reply) -> None:
    with (
        ChatServer(lambda asked: reply) as server,
        pytest.raises(CaptionerMissing, match="does not answer correctly"),
    ):
        endpoint(server, timeout_s=0.3).check()


def test_the_question_before_the_work_has_the_size_of_later_questions() -> None:
    with ChatServer() as server:
        endpoint(server, side=320, frames=6).check()
    assert [p.shape for p in server.asked[0].pictures] == [(180, 320, 3)] * 6
    assert server.asked[0].body["model"] == "tiny-vl"


@pytest.mark.parametrize(
    "reply", [Reply(), Reply(text=""), Reply(status=429), Reply(finish="length", text="A")]
)
def test_a_server_that_works_passes(reply: Reply) -> None:
    with ChatServer(lambda asked: reply) as server:
        endpoint(server).check()


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "localhost:8000/v1"}, r"captions\.endpoint\.url: 'localhost:8000/v1'"),
        ({"url": "ftp://host/v1"}, r"\.url"),
        ({"url": ""}, r"\.url"),
        ({"url": f"http://me:{KEY}@host/v1"}, r"\.url: must have no user, key"),
        ({"url": f"http://host/v1?key={KEY}"}, r"\.url: must have no user, key"),
        ({"url": f"host/v1?key={KEY}"}, r"\.url"),
        ({"model": " "}, r"\.model"),
        ({"api_key_env": KEY}, r"\.api_key_env"),
        ({"api_key_env": ""}, r"\.api_key_env"),
        ({"concurrency": 0}, r"\.concurrency: must be at least 1, not 0"),
        ({"retries": -1}, r"\.retries"),
        ({"max_tokens": 0}, r"\.max_tokens"),
        ({"temperature": -0.1}, r"\.temperature"),
        ({"temperature": float("nan")}, r"\.temperature"),
        ({"timeout_s": 0}, r"\.timeout_s"),
        ({"backoff_s": -1}, "backoff_s"),
        ({"frames": 0}, r"\.frames"),
        ({"side": 8}, r"\.side"),
        ({"prompt": "detialed"}, "use one of detailed, short"),
    ],
)
def test_settings_that_cannot_make_a_request_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        Endpoint(**{"url": "http://host:8000/v1", "model": "m", **settings})
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("tail", ["", "/", "/chat/completions", "/chat/completions/"])
def test_the_address_may_be_written_in_several_ways(tail: str) -> None:
    with ChatServer() as server:
        Endpoint(server.url + tail, "tiny-vl")(clips(1))
    assert server.asked[0].path == "/v1/chat/completions"


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "n"},
        {"prompt": "short"},
        {"prompt": "Say what you see."},
        {"frames": 9},
        {"side": 300},
        {"max_tokens": 5},
        {"temperature": 0.1},
        {"seed": 1},
        {"extra": {"top_p": 0.5}},
    ],
)
def test_the_key_changes_with_settings_that_decide_the_text(changed: dict[str, Any]) -> None:
    given: dict[str, Any] = {"url": "http://host/v1", "model": "m"}
    assert Endpoint(**given).key == Endpoint(**given).key
    assert Endpoint(**given).key != Endpoint(**{**given, **changed}).key


@pytest.mark.parametrize(
    "changed",
    [
        {"url": "https://other/v1"},
        {"concurrency": 2},
        {"timeout_s": 1.0},
        {"retries": 0},
        {"api_key_env": "K"},
    ],
)
def test_the_key_does_not_change_with_other_settings(changed: dict[str, Any]) -> None:
    given: dict[str, Any] = {"url": "http://host/v1", "model": "m"}
    assert Endpoint(**given).key == Endpoint(**{**given, **changed}).key


def test_a_second_try_draws_with_another_seed() -> None:
    first = Endpoint("http://host/v1", "m")
    assert (first.again().seed, first.again().temperature) == (1, 0.7)
    assert Endpoint("http://host/v1", "m", temperature=1.0).again().temperature == 1.0
    assert Endpoint("http://host/v1", "m", seed=None).again().seed is None


def test_retries_after_bad_answers_use_another_seed_and_others_the_same() -> None:
    fates = [Reply(fate="drop"), Reply(text=""), Reply(status=500), Reply(raw=b"{")]
    with ChatServer(lambda asked: [*fates, Reply()][asked.attempt]) as server:
        endpoint(server, seed=10)(clips(1))
    assert [asked.body["seed"] for asked in server.asked] == [10, 10, 11, 11, 12]


def test_it_names_its_pictures_and_can_be_pickled() -> None:
    made = Endpoint("http://host/v1", "m", frames=3, side=100)
    assert made.pictures == Pictures(3, None, 100)
    assert pickle.loads(pickle.dumps(made)) == made
    assert hash(made) == hash(pickle.loads(pickle.dumps(made)))


def test_it_works_within_a_running_loop() -> None:
    async def within(made: Endpoint) -> list[Caption | CaptionFailed]:
        return made(clips(3))

    with ChatServer(own) as server:
        assert_own(asyncio.run(within(endpoint(server))), 3)
