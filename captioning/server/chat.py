"""Sends questions to an OpenAI-compatible server, a limited number at the same time.

Each question gets an answer or a failure. Temporary errors (429, 5xx, a dropped connection, a time-out,
broken JSON, an empty choice) are retried after a wait. Errors that concern every question (no server, no
model, a refused key) end all questions immediately.
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

_MAX_BYTES = 8 << 20  # per answer
_MAX_NAME_CHARS = 200  # of the name that a server gives its model
_MAX_BACKOFF_S = 60.0
_MAX_ASKED_WAIT_S = 600.0  # if Retry-After asks for a longer wait, the question fails

Content = str | list[dict[str, Any]]  # content of the user's message


@dataclass(frozen=True)
class Server:
    """A server, and how to ask it. Raises `ValueError` for settings that cannot make a request."""

    url: str  # …/v1
    model: str
    max_tokens: int = 512
    temperature: float = 0.0
    seed: int | None = 0  # None: not sent
    extra: Mapping[str, Any] = field(default_factory=dict)  # further fields of the request; null removes one
    concurrency: int = 16
    timeout_s: float = 120.0  # for one request, from its start to the last byte of the answer
    retries: int = 5
    backoff_s: float = 1.0  # wait before the first retry; the wait doubles before each further retry
    api_key_env: str = "OPENAI_API_KEY"  # the name of a variable, which may be unset for a local server
    setting: str = "captions.endpoint"  # the section that messages name

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise self._wrong("url", f"{_bare(self.url)!r} does not have the form http(s)://HOST:PORT/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise self._wrong(
                "url", "must have no user, key or query; keys come from the environment (api_key_env)"
            )
        if not self.model.strip():
            raise self._wrong("model", "is empty; name a model that the server serves")
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", self.api_key_env):
            # The value may be a key in the wrong place, so the message does not repeat it.
            raise self._wrong(
                "api_key_env", "must be the name of an environment variable in capitals, not a key"
            )
        for name, least in (("max_tokens", 1), ("concurrency", 1), ("retries", 0), ("temperature", 0)):
            if not getattr(self, name) >= least:
                raise self._wrong(name, f"must be at least {least}, not {getattr(self, name)}")
        if not self.timeout_s > 0 or not self.backoff_s >= 0:
            raise self._wrong("timeout_s", "must be above 0, and backoff_s at least 0")

    def _wrong(self, name: str, what: str) -> ValueError:
        return ValueError(f"{self.setting}.{name}: {what}")

    @property
    def address(self) -> str:
        return self.url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"


@dataclass(frozen=True)
class Answer:
    text: str
    cut: bool  # the answer reached max_tokens
    model: str  # the server's name of the model
    fingerprint: str | None  # the server's name of its build and weights, if it gives one


@dataclass(frozen=True)
class Failed:
    error: str
    message: str


class _Trouble(Exception):
    """One request failed. `again`: a further request may succeed, after at least `wait_s` seconds."""

    def __init__(self, error: str, message: str, again: bool = True, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.error, self.again, self.wait_s = error, again, wait_s


class _BadAnswer(_Trouble):
    """An answer came but is useless. Another seed may give a better answer."""


def ask(
    server: Server, questions: Sequence[Callable[[], Content]], read: Callable[[str], str] = str
) -> list[Answer | Failed]:
    """An answer or a failure for each question, in the order of `questions`.

    At most `server.concurrency` questions are built and open at the same time. `read` extracts the text from
    an answer; its `ValueError` becomes the failure BadAnswer. Raises `CaptionerMissing` if every question
    would fail.
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
        connector=aiohttp.TCPConnector(limit=0),  # `places` is the limit
    ) as session:

        async def one(question: Callable[[], Content]) -> Answer | Failed:
            async with places:
                try:
                    content = await asyncio.to_thread(question)
                except (ValueError, TypeError, OSError) as error:
                    return Failed(type(error).__name__, f"no question could be made from the clip: {error}")
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
            # The place among `concurrency` is kept during the wait, so a busy server gets fewer requests.
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
            allow_redirects=False,  # the key is only for this server
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
        state = "is refused: set the right key" if given else "is not set: set it to the server's key"
        return CaptionerMissing(f"{where}; the key in the environment variable {server.api_key_env} {state}")
    if status == 402 or (status == 429 and "insufficient_quota" in reason):
        return CaptionerMissing(f"{where}; the account of the key in {server.api_key_env} has no credit left")
    if status in (404, 405):
        base = server.address.removesuffix("/chat/completions")
        # The hint would be wrong for servers with their own paths, such as /openai.
        hint = f" (most servers answer under {base}/v1)" if not urlsplit(base).path else ""
        return CaptionerMissing(
            f"{where}; is {server.setting}.url right{hint}, and does it serve {server.model!r}?"
        )
    if 300 <= status < 400:
        return CaptionerMissing(f"{where}; set {server.setting}.url to the address of the redirect")
    wait_s = _seconds(retry_after)
    passing = status in (408, 409, 425, 429) or status >= 500
    if passing and wait_s > _MAX_ASKED_WAIT_S:
        return _Trouble(f"HTTP{status}", f"{reason}; the server asks to wait for {wait_s:.0f} s", again=False)
    return _Trouble(f"HTTP{status}", reason, passing, wait_s)


def _seconds(retry_after: str | None) -> float:
    """The seconds of the header Retry-After, which is a number or a date. Other values give 0."""
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
    except ValueError as error:  # the same question would get the same answer again
        raise _Trouble("BadAnswer", _said(str(error), server), again=False) from None
    model, fingerprint = value.get("model"), value.get("system_fingerprint")
    return Answer(
        text,
        finish == "length",
        _plain(model)[:_MAX_NAME_CHARS] if isinstance(model, str) and model else server.model,
        _plain(fingerprint)[:_MAX_NAME_CHARS] if isinstance(fingerprint, str) and fingerprint else None,
    )


def _reason(said: bytes, server: Server) -> str:
    """The short text of a server's error, without the key."""
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
    """The header with the key, if there is a key. Raises `CaptionerMissing` for an invalid key."""
    key = os.environ.get(server.api_key_env, "").strip()
    if not key:
        return {}
    if not key.isascii() or not key.isprintable() or " " in key:
        raise CaptionerMissing(
            f"{server.setting}: the environment variable {server.api_key_env} has no valid key: it contains "
            "spaces, line breaks or letters that a key cannot have"
        )
    return {"Authorization": f"Bearer {key}"}


def _said(text: str, server: Server) -> str:
    """A text of a server without the key, because servers repeat a wrong key in errors; see `_plain`."""
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
    """The proxy from the environment (http_proxy, no_proxy …), without .netrc."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _bare(url: str) -> str:
    """A URL without the parts that may contain a key."""
    return re.sub(r"//[^/@]*@", "//", url).split("?")[0]
