"""Questions to an OpenAI-compatible server: many at once within a bound, each of them answered or failed.

What may pass (429, 5xx, a dropped connection, a time-out, broken JSON, an empty choice) is asked again after
a while; what concerns every question (no server, no model, a key that is refused) ends all of them at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from captioning.base import CaptionerMissing

if TYPE_CHECKING:
    import aiohttp

_MAX_BYTES = 8 << 20  # of an answer
_MAX_NAME_CHARS = 200  # of what a server calls its model
_MAX_BACKOFF_S = 60.0
_MAX_ASKED_WAIT_S = 600.0  # a server that wants more in Retry-After gets no more questions about this clip

Content = str | list[dict[str, Any]]  # of the user's message


@dataclass(frozen=True)
class Server:
    """Where to ask, and how. Raises `ValueError` for what no server could be asked with."""

    url: str  # …/v1
    model: str
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int | None = 0  # None: not sent
    extra: Mapping[str, Any] = field(default_factory=dict)  # more of the request's fields; null takes one out
    concurrency: int = 16
    timeout_s: float = 120.0  # of one request, from its start to the answer's last byte
    retries: int = 5
    backoff_s: float = 1.0  # before the first retry; each later one waits twice as long
    api_key_env: str = "OPENAI_API_KEY"  # the variable's name; one that is not set is fine for a local server
    setting: str = "captions.endpoint"  # for messages

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise self._wrong("url", f"{_bare(self.url)!r} is no http(s)://HOST:PORT/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise self._wrong(
                "url", "no user, key or query in it; keys come from the environment (api_key_env)"
            )
        if not self.model.strip():
            raise self._wrong("model", "name one that the server serves")
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", self.api_key_env):
            # It may be a key in the wrong place: it is not repeated here.
            raise self._wrong("api_key_env", "the name of an environment variable in capitals, not a key")
        for name, least in (("max_tokens", 1), ("concurrency", 1), ("retries", 0), ("temperature", 0)):
            if not getattr(self, name) >= least:
                raise self._wrong(name, f"at least {least}, not {getattr(self, name)}")
        if not self.timeout_s > 0 or not self.backoff_s >= 0:
            raise self._wrong("timeout_s", "above 0, and backoff_s not below 0")

    def _wrong(self, name: str, what: str) -> ValueError:
        return ValueError(f"{self.setting}.{name}: {what}")

    @property
    def address(self) -> str:
        return self.url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"


@dataclass(frozen=True)
class Answer:
    text: str
    cut: bool  # ran into max_tokens
    model: str  # as the server names it
    fingerprint: str | None  # of the server's build and weights, where it gives one


@dataclass(frozen=True)
class Failed:
    error: str
    message: str


class _Trouble(Exception):
    """One request failed. `again`: another may do; `wait_s`: but not before."""

    def __init__(self, error: str, message: str, again: bool = True, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.error, self.again, self.wait_s = error, again, wait_s


class _BadAnswer(_Trouble):
    """Something was said, and it is of no use: another seed may do."""


def ask(
    server: Server, questions: Sequence[Callable[[], Content]], read: Callable[[str], str] = str
) -> list[Answer | Failed]:
    """An answer or a failure for each question, in their order whatever the order they come in.

    At most `server.concurrency` questions are built and under way at a time. `read` takes the text out of an
    answer; a `ValueError` from it is the failure BadAnswer. Raises `CaptionerMissing` when
    every other question would fail as well.
    """
    return _run(_ask_all(server, questions, read))


def _run(work: Coroutine[Any, Any, list[Answer | Failed]]) -> list[Answer | Failed]:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:  # called from within a loop, as in a notebook
        return pool.submit(asyncio.run, work).result()


async def _ask_all(
    server: Server, questions: Sequence[Callable[[], Content]], read: Callable[[str], str]
) -> list[Answer | Failed]:
    import aiohttp

    places = asyncio.Semaphore(server.concurrency)
    async with aiohttp.ClientSession(
        headers=_headers(server),
        timeout=aiohttp.ClientTimeout(total=server.timeout_s),
        connector=aiohttp.TCPConnector(limit=0),  # places are the bound
    ) as session:

        async def one(question: Callable[[], Content]) -> Answer | Failed:
            async with places:
                try:
                    content = await asyncio.to_thread(question)
                except (ValueError, TypeError, OSError) as error:
                    return Failed(type(error).__name__, f"no question could be made of it: {error}")
                return await _ask_until(server, session, content, read)

        tasks = [asyncio.create_task(one(question)) for question in questions]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _ask_until(
    server: Server, session: aiohttp.ClientSession, content: Content, read: Callable[[str], str]
) -> Answer | Failed:
    bad = 0
    for attempt in range(server.retries + 1):
        try:
            return await _ask_once(server, session, _body(server, content, bad), read)
        except _Trouble as trouble:
            if not trouble.again or attempt == server.retries:
                tries = f" (after {attempt + 1} requests)" if attempt else ""
                return Failed(trouble.error, f"{trouble}{tries}")
            bad += isinstance(trouble, _BadAnswer)
            backoff = min(server.backoff_s * 2**attempt, _MAX_BACKOFF_S)
            # The place among `concurrency` is kept meanwhile: a server that is too busy gets less to do.
            await asyncio.sleep(trouble.wait_s + backoff * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


def _body(server: Server, content: Content, bad: int) -> bytes:
    fields: dict[str, Any] = {
        "model": server.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": server.max_tokens,
        "temperature": server.temperature,
        "seed": None if server.seed is None else server.seed + bad,
        **server.extra,
    }
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


async def _ask_once(
    server: Server, session: aiohttp.ClientSession, body: bytes, read: Callable[[str], str]
) -> Answer:
    import aiohttp

    try:
        async with session.post(
            server.address,
            data=body,
            headers={"Content-Type": "application/json"},
            allow_redirects=False,  # the key is for this server alone
            proxy=_proxy(server.url),
        ) as response:
            said = await _bytes(response)
            status, headers = response.status, response.headers
    except TimeoutError:
        raise _Trouble("Timeout", f"no answer within timeout_s = {server.timeout_s:g}") from None
    except (aiohttp.ClientError, OSError) as error:
        raise _Trouble(type(error).__name__, _said(str(error) or "disconnected", server)) from None
    if not 200 <= status < 300:
        raise _refused(server, status, _reason(said, server), headers.get("Retry-After"))
    return _parse(server, said, read)


async def _bytes(response: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > _MAX_BYTES:
            raise _BadAnswer("BrokenAnswer", f"an answer of more than {_MAX_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def _refused(server: Server, status: int, reason: str, retry_after: str | None) -> Exception:
    where = f"{server.setting}: {server.address} answers {status} ({reason})"
    if status in (401, 403):
        given = os.environ.get(server.api_key_env, "").strip()
        state = "is refused: set the right one" if given else "is not set: put the server's key there"
        return CaptionerMissing(f"{where}; the key in the environment variable {server.api_key_env} {state}")
    if status == 402 or (status == 429 and "insufficient_quota" in reason):
        return CaptionerMissing(f"{where}; the account of the key in {server.api_key_env} can pay no more")
    if status in (404, 405):
        base = server.address.removesuffix("/chat/completions")
        # Of a server's own paths, such as /openai, this says nothing.
        hint = f" (most servers answer under {base}/v1)" if not urlsplit(base).path else ""
        return CaptionerMissing(
            f"{where}; is {server.setting}.url right{hint}, and does it serve {server.model!r}?"
        )
    if 300 <= status < 400:
        return CaptionerMissing(f"{where}; write the address that it leads to in {server.setting}.url")
    wait_s = _seconds(retry_after)
    passing = status in (408, 409, 425, 429) or status >= 500
    if passing and wait_s > _MAX_ASKED_WAIT_S:
        return _Trouble(f"HTTP{status}", f"{reason}; it asks to wait for {wait_s:.0f} s", again=False)
    return _Trouble(f"HTTP{status}", reason, passing, wait_s)


def _seconds(retry_after: str | None) -> float:
    """Of the header Retry-After: seconds, or a date. What is neither is 0."""
    text = (retry_after or "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        return float(text)
    try:
        then = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(UTC)).total_seconds())


def _parse(server: Server, said: bytes, read: Callable[[str], str]) -> Answer:
    try:
        value = json.loads(said)
    except (ValueError, RecursionError):
        raise _BadAnswer("BrokenAnswer", f"no JSON: {_reason(said, server)}") from None
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list):
        raise _BadAnswer("BrokenAnswer", f"no choices: {_reason(said, server)}")
    choice = choices[0] if choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):  # in parts
        content = "".join(str(p["text"]) for p in content if isinstance(p, dict) and "text" in p)
    finish = choice.get("finish_reason")
    if not isinstance(content, str) or not content.strip():
        raise _BadAnswer("EmptyAnswer", f"the answer is empty (finish_reason: {_plain(str(finish)[:40])})")
    try:
        text = read(content)
    except ValueError as error:  # the model's doing: to ask the same again would bring the same
        raise _Trouble("BadAnswer", _said(str(error), server), again=False) from None
    model, fingerprint = value.get("model"), value.get("system_fingerprint")
    return Answer(
        text,
        finish == "length",
        _plain(model)[:_MAX_NAME_CHARS] if isinstance(model, str) and model else server.model,
        _plain(fingerprint)[:_MAX_NAME_CHARS] if isinstance(fingerprint, str) and fingerprint else None,
    )


def _reason(said: bytes, server: Server) -> str:
    """What the server says in an error, in short."""
    text = said[:4000].decode("utf-8", "replace")
    try:
        value = json.loads(said)
        value = value.get("error", value) if isinstance(value, dict) else value
        if isinstance(value, dict):
            told = [value[k] for k in ("code", "type", "message", "detail") if isinstance(value.get(k), str)]
            text = ": ".join(dict.fromkeys(told)) or text
        elif isinstance(value, str):
            text = value
    except (ValueError, RecursionError):
        pass
    return _said(text[:4000], server)[:300] or "no reason given"


def _headers(server: Server) -> dict[str, str]:
    """Raises `CaptionerMissing` for a key that no header can hold."""
    key = os.environ.get(server.api_key_env, "").strip()
    if not key:
        return {}
    if not key.isascii() or not key.isprintable() or " " in key:
        raise CaptionerMissing(
            f"{server.setting}: the environment variable {server.api_key_env} holds no key: it has spaces, "
            "line breaks or letters that a key does not have"
        )
    return {"Authorization": f"Bearer {key}"}


def _said(text: str, server: Server) -> str:
    """What a server says, made plain. Servers repeat a wrong key in their errors."""
    key = os.environ.get(server.api_key_env, "").strip()
    text = _plain(text)
    return text.replace(key, "***") if key else text


def _plain(text: str) -> str:
    """On one line, with everything that does not print as escapes: half a surrogate pair fits into no table,
    and control characters move a terminal's cursor."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split())
    )


def _proxy(url: str) -> str | None:
    """As the environment says (http_proxy, no_proxy …), and nothing else of it: no .netrc."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _bare(url: str) -> str:
    """Without what may be a key."""
    return re.sub(r"//[^/@]*@", "//", url).split("?")[0]
