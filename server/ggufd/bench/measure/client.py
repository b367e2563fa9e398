"""Lean HTTP client with the arrival time of every event of a streamed completion.

On a small machine the client shares the cores that it measures, so streaming costs little CPU per event: its bytes are
framed (httptools) and stamped, and its JSON is read when the answer is over, except up to the first text. Measured with
8 streams of 100 events a second: 24 to 33 microseconds of CPU an event; httpx with `aiter_lines` takes 132 to 167.
Knows HTTP and the completions route; no scenario, no statistics.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

from ggufd.bench.measure.sse import SseReader

CONNECT_TIMEOUT_S = 10.0


class BenchError(Exception):
    """Error that ends a measurement; the message is one line for the user. `status` is HTTP's, where there was one."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Address:
    """Address of a server; `base` is the path before `/v1`, without a slash at its end."""

    url: str
    netloc: str
    host: str
    port: int
    base: str
    tls: bool

    @classmethod
    def parse(cls, url: str) -> Address:
        """Parse what a user types: `127.0.0.1:5001`, `http://host:port`, with or without `/v1`."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            raise BenchError(f"{url!r} has no usable port: expected a number up to 65535") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BenchError(f"{url!r} is no server's address: expected something like http://127.0.0.1:5001")
        tls = parts.scheme == "https"
        base = parts.path.rstrip("/").removesuffix("/v1")
        netloc = parts.netloc.rpartition("@")[2]
        url = f"{parts.scheme}://{netloc}{base}"
        return cls(url, netloc, parts.hostname, port or (443 if tls else 80), base, tls)


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """One finished completion. Times in seconds of `time.perf_counter`; `times` are arrivals of pieces of text.

    The counts are the server's own; None where it does not say.
    """

    sent: float
    times: tuple[float, ...]
    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None

    @property
    def wait(self) -> float:
        """TTFT: seconds from sending the request to its first text."""
        return self.times[0] - self.sent

    @property
    def tokens(self) -> int:
        """Tokens of the answer: the server's count, or pieces of text where it gives none."""
        return self.completion_tokens or len(self.times)

    @property
    def per_piece(self) -> float:
        """Tokens in one piece of text, on average: servers hold a token back when it ends inside a character."""
        return self.tokens / len(self.times)

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first piece; None for an answer of one piece."""
        span = self.times[-1] - self.times[0]
        return (len(self.times) - 1) * self.per_piece / span if span > 0 else None


class HttpExchange(asyncio.Protocol):
    """One request and its response, on a connection of its own.

    httptools calls the `on_...` methods. `events` are `(arrival, data)` of an event stream; `body` is any other
    response. `done` is set when the response is over, whatever the reason.
    """

    def __init__(self, request: bytes) -> None:
        self.sent = 0.0
        self.status = 0
        self.events: list[tuple[float, bytes]] = []
        self.body = bytearray()
        self.is_complete = False
        self.first: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.done = asyncio.Event()
        self._request = request
        self._parser = httptools.HttpResponseParser(self)
        self._sse: SseReader | None = None
        self._now = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's transports are none of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.done.set()
        if not self.first.done():
            self.first.cancel()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type" and b"text/event-stream" in value.lower():
            self._sse = SseReader()

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        if self._sse is None:
            self.body += data
            return
        for event in self._sse.feed(data):
            self.events.append((self._now, event))
            if not self.first.done() and _text(event):
                self.first.set_result(self._now)

    def on_message_complete(self) -> None:
        self.is_complete = True
        self.close()

    def close(self) -> None:
        """Close the connection; harmless when it is over already."""
        if self._transport is not None:
            self._transport.abort()


def _read(event: bytes) -> dict[str, Any]:
    """The JSON object of an event; empty for `[DONE]` and for what is no object."""
    try:
        value = json.loads(event)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _text(event: bytes) -> str:
    """The new text that an event of a stream carries."""
    return next(_pieces(_read(event)), "")


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) else None


def error_line(status: int, body: bytes) -> str:
    """Error of a server, in one line: OpenAI's shape, FastAPI's, or the text's beginning."""
    found = _read(body)
    error = found.get("error", found.get("detail", found.get("message")))
    message = error.get("message") if isinstance(error, dict) else error
    text = str(message) if message else body.decode(errors="replace")
    line = " ".join(text.split())[:300] or "no explanation"
    if status in (401, 403):
        return f"wants another key ({status}: {line}); give it with --api-key"
    return f"refused the request ({status}: {line})"


class Stream:
    """A completion that is running. `await first()` for its first text, `await answer()` for all of it."""

    def __init__(self, exchange: HttpExchange, url: str, timeout_s: float) -> None:
        self._exchange = exchange
        self._url = url
        self._timeout_s = timeout_s

    @property
    def times(self) -> list[float]:
        """Arrivals of text so far; events without text are few and are counted in."""
        return [arrival for arrival, _ in self._exchange.events]

    async def first(self) -> float:
        """Wait for the first text; its arrival. Raises BenchError when the response ends without any."""
        first = self._exchange.first
        await asyncio.wait({first}, timeout=self._timeout_s)
        if not first.done():
            raise BenchError(f"{self._url} sent no text within {self._timeout_s:g} s")
        return self._read().times[0] if first.cancelled() else first.result()

    async def answer(self) -> TimedAnswer:
        """Wait for the end. Raises BenchError when the server refused, failed or broke off."""
        try:
            # Unlike this, Python 3.11's wait_for may lose a cancellation.
            async with asyncio.timeout(self._timeout_s):
                await self._exchange.done.wait()
        except TimeoutError:
            raise BenchError(f"{self._url} did not finish an answer within {self._timeout_s:g} s") from None
        return self._read()

    def close(self) -> None:
        """Disconnect, as a client does that needs no more."""
        self._exchange.close()

    def _read(self) -> TimedAnswer:
        exchange = self._exchange
        if exchange.status != 200:
            what = error_line(exchange.status, bytes(exchange.body)) if exchange.status else "closed the connection"
            raise BenchError(f"{self._url} {what}", status=exchange.status or None)
        objects = [(arrival, _read(event)) for arrival, event in exchange.events]
        for _, value in objects:
            if value.get("error"):
                raise BenchError(f"{self._url} failed midway: {error_line(500, json.dumps(value).encode())}")
        # A response that ends with its connection has no end of its own to see: [DONE] stands for it.
        if not exchange.is_complete and (not exchange.events or exchange.events[-1][1] != b"[DONE]"):
            raise BenchError(f"{self._url} broke off in the middle of an answer")
        return self._assemble(objects)

    def _assemble(self, objects: list[tuple[float, dict[str, Any]]]) -> TimedAnswer:
        pieces = [(arrival, piece) for arrival, value in objects for piece in _pieces(value)]
        if not pieces:
            raise BenchError(f"{self._url} streamed no text")
        last: dict[str, Any] = {}
        for _, value in objects:
            last |= {key: value[key] for key in ("usage", "timings") if value.get(key)}
        usage, timings = last.get("usage", {}), last.get("timings", {})
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", timings.get("cache_n"))
        return TimedAnswer(
            sent=self._exchange.sent,
            times=tuple(arrival for arrival, _ in pieces),
            text="".join(piece for _, piece in pieces),
            prompt_tokens=_integer(usage.get("prompt_tokens")),
            completion_tokens=_integer(usage.get("completion_tokens")),
            cached_tokens=_integer(cached),
        )


def _pieces(value: dict[str, Any]) -> Iterator[str]:
    for choice in value.get("choices") or ():
        delta = choice.get("delta") or {}
        calls = [(call.get("function") or {}).get("arguments") for call in delta.get("tool_calls") or ()]
        for text in (choice.get("text"), delta.get("reasoning_content"), delta.get("content"), *calls):
            if text:
                yield text


class Client:
    """Client of one server; `model` is what completions ask it for."""

    def __init__(self, url: str, *, api_key: str | None = None, model: str | None = None, timeout_s: float = 300.0):
        self.address = Address.parse(url)
        self.model = model
        self._api_key = api_key
        self._timeout_s = timeout_s

    @property
    def url(self) -> str:
        return self.address.url

    def with_key(self, api_key: str) -> Client:
        """Client of the same server and model with another key."""
        return Client(self.url, api_key=api_key, model=self.model, timeout_s=self._timeout_s)

    async def start(self, prompt: str, max_tokens: int, extra: Mapping[str, Any] | None = None) -> Stream:
        """Send a greedy completion of exactly `max_tokens` tokens, unless `extra` fields say otherwise; its stream.

        With `messages` among them it is a chat's.
        """
        streaming = {"stream": True, "stream_options": {"include_usage": True}, **(extra or {})}
        body = self._completion(prompt, max_tokens) | streaming
        path = "/v1/completions"
        if "messages" in body:
            del body["prompt"]
            path = "/v1/chat/completions"
        exchange = await self._send("POST", path, body)
        return Stream(exchange, self.url, self._timeout_s)

    async def complete(self, prompt: str, max_tokens: int) -> TimedAnswer:
        """A whole completion. A caller that is cancelled hangs up."""
        stream = await self.start(prompt, max_tokens)
        try:
            return await stream.answer()
        finally:
            stream.close()

    async def count_prompt(self, prompt: str) -> int | None:
        """The prompt's tokens as the usage of a completion counts them; None where it does not."""
        found = await self.post("/v1/completions", self._completion(prompt, 1))
        return _integer((found.get("usage") or {}).get("prompt_tokens"))

    def _completion(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": True,
        }
        return body if self.model is None else body | {"model": self.model}

    async def get(self, path: str) -> dict[str, Any]:
        """A JSON object. Raises BenchError on any other answer."""
        return await self._fetch("GET", path, None)

    async def text(self, path: str) -> str:
        """A page of text. Raises BenchError on any other answer."""
        return (await self._body("GET", path, None)).decode(errors="replace")

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A JSON object for a JSON object. Raises BenchError on any other answer."""
        return await self._fetch("POST", path, body)

    async def _fetch(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        return _read(await self._body(method, path, body))

    async def _body(self, method: str, path: str, body: dict[str, Any] | None) -> bytes:
        exchange = await self._send(method, path, body)
        try:
            async with asyncio.timeout(self._timeout_s):
                await exchange.done.wait()
        except TimeoutError:
            raise BenchError(f"{self.url}{path} did not answer within {self._timeout_s:g} s") from None
        finally:
            exchange.close()
        if exchange.status != 200:
            what = error_line(exchange.status, bytes(exchange.body)) if exchange.status else "speaks no HTTP"
            raise BenchError(f"{self.url} {what}", status=exchange.status or None)
        return bytes(exchange.body)

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> HttpExchange:
        """Connect and send; the clock starts before the connection is made, as a user's does."""
        exchange = HttpExchange(self._head(method, path, body))
        loop = asyncio.get_running_loop()
        tls = ssl.create_default_context() if self.address.tls else None
        exchange.sent = time.perf_counter()
        connecting = loop.create_connection(lambda: exchange, self.address.host, self.address.port, ssl=tls)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connecting
        except (OSError, TimeoutError) as error:
            refused = isinstance(error, ConnectionRefusedError)
            reason = "connection refused" if refused else " ".join(str(error).split()) or "no answer"
            raise BenchError(f"{self.url} cannot be reached ({reason}); is the server running?") from None
        except asyncio.CancelledError:
            exchange.close()  # it may have just been connected
            raise
        return exchange

    def _head(self, method: str, path: str, body: dict[str, Any] | None) -> bytes:
        payload = b"" if body is None else json.dumps(body).encode()
        lines = [
            f"{method} {self.address.base}{path} HTTP/1.1",
            f"Host: {self.address.netloc}",
            "Connection: close",
            "Accept: text/event-stream, application/json",
            f"Content-Length: {len(payload)}",
        ]
        if body is not None:
            lines.append("Content-Type: application/json")
        if self._api_key is not None:
            lines.append(f"Authorization: Bearer {self._api_key}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + payload


@contextlib.contextmanager
def closing_all(streams: list[Stream]) -> Iterator[list[Stream]]:
    """Context that closes every stream of the list at its end, later additions included."""
    try:
        yield streams
    finally:
        for stream in streams:
            stream.close()
