"""A server of known speed, for tests of the bench: what the bench says must be what this server did."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from ggufd.bench.measure.figures import common_prefix
from tests.support.limits import ANSWER_S


@dataclass
class FakeServer:
    """An OpenAI-compatible server whose tokens are words and whose times are settings.

    A prompt costs `token_s` for each word it has not seen, a schema `schema_s`, an image that it has not seen `image_s`
    (it is a word of the prompt, too), and meanwhile every running stream stands still; then each stream gets a word
    every `step_s`. It remembers every prompt with its answer, like a server with as many slots as one likes.
    """

    token_s: float = 0.0
    step_s: float = 0.0
    schema_s: float = 0.0
    image_s: float = 0.0
    key: str | None = None
    has_tokenize: bool = True
    has_usage: bool = True
    refuse: tuple[int, str] | None = None
    break_after: int | None = None
    error_after: int | None = None
    n_ctx: int = 4096
    log: list[str] = field(default_factory=list)
    name: str = "fake"
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    hung_up: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self.transports: list[asyncio.WriteTransport] = []
        self._seen: list[list[str]] = []
        self._images: set[str] = set()
        self._reading = asyncio.Lock()
        self._ids: dict[str, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.transports.append(writer.transport)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split()[1]
            headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            await self._answer(path, headers, json.loads(body) if body else {}, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.hung_up += 1
        finally:
            writer.close()

    async def _answer(self, path: str, headers: dict[str, str], body: Any, writer: asyncio.StreamWriter) -> None:
        if self.key is not None and headers.get("authorization") != f"bearer {self.key}":
            _send(writer, 401, {"error": {"message": "Invalid API Key", "code": 401}})
        elif path == "/v1/models":
            _send(writer, 200, {"data": [{"id": self.name, "owned_by": "tests"}]})
        elif path == "/props":
            props = {"total_slots": 4, "build_info": "b1", "default_generation_settings": {"n_ctx": self.n_ctx}}
            _send(writer, 200, props)
        elif path == "/health":
            _send(writer, 200, {"status": "ok"})
        elif path == "/metrics":
            _send(writer, 200, 'ggufd_memory_bytes{of="host_cache"} 3145728\nggufd_memory_bytes{of="buffers"} 7\n')
        elif path == "/debug/steps":
            _send(writer, 200, {"traceEvents": self.steps})
        elif path == "/tokenize" and self.has_tokenize:
            ids = [self._ids.setdefault(word, len(self._ids)) for word in body["content"].split()]
            _send(writer, 200, {"tokens": ids})
        elif path in ("/v1/completions", "/v1/chat/completions") and self.refuse is None:
            self.keys.append(headers.get("authorization"))
            await self._complete(body, writer)
        elif path == "/v1/completions" and self.refuse is not None:
            _send(writer, self.refuse[0], self.refuse[1])
        else:
            _send(writer, 404, {"error": {"message": "no such route"}})
        await writer.drain()

    async def _complete(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.log.append(self.name)
        self.bodies.append(body)
        is_chat = "messages" in body
        prompt = _words_of(body["messages"][-1]["content"] if is_chat else body["prompt"])
        images = {word for word in prompt if word.startswith("data:image/png")} - self._images
        self._images |= images
        if "tools" in body:
            prompt += json.dumps(body["tools"]).split()
        async with self._reading:
            cached = min(max((common_prefix(prompt, old) for old in self._seen), default=0), len(prompt) - 1)
            self._seen.append(prompt)
            schema_s = self.schema_s * ("json_schema" in body)
            await asyncio.sleep(self.token_s * (len(prompt) - cached) + schema_s + self.image_s * len(images))
        if not body.get("stream"):
            usage = {"usage": _usage(len(prompt), 1, cached)} if self.has_usage else {}
            _send(writer, 200, {"choices": [{"text": " w"}]} | usage)
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        words = [f" w{len(self.log)}x{i}" for i in range(body["max_tokens"])]
        for i, word in enumerate(words):
            if i == self.break_after:
                return
            if i == self.error_after:
                _event(writer, json.dumps({"error": {"message": "out of memory"}}))
                break
            async with self._reading:
                pass
            if i:
                await asyncio.sleep(self.step_s)
            said = {"delta": {"content": word}} if is_chat else {"text": word}
            _event(writer, json.dumps({"choices": [{**said, "index": 0, "finish_reason": None}]}))
            await writer.drain()
        self._seen.append(prompt + "".join(words).split())
        if self.has_usage:
            _event(writer, json.dumps({"choices": [], "usage": _usage(len(prompt), len(words), cached)}))
        _event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")


def _words_of(content: Any) -> list[str]:
    """Words of a prompt or of a message; an image is one, its data URI."""
    if isinstance(content, str):
        return content.split()
    return [
        word for part in content for word in (part["text"].split() if "text" in part else [part["image_url"]["url"]])
    ]


def _usage(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    details = {"cached_tokens": cached}
    return {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}


def _event(writer: asyncio.StreamWriter, data: str) -> None:
    payload = f"data: {data}\n\n".encode()
    writer.write(f"{len(payload):x}\r\n".encode() + payload + b"\r\n")


def _send(writer: asyncio.StreamWriter, status: int, body: Any) -> None:
    payload = (body if isinstance(body, str) else json.dumps(body)).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    writer.write(head.encode() + payload)


@contextlib.asynccontextmanager
async def serving_here(*fakes: FakeServer) -> AsyncIterator[None]:
    """Run the fakes on free ports, on the running event loop."""
    listeners = [await asyncio.start_server(fake.handle, "127.0.0.1", 0) for fake in fakes]
    for fake, listener in zip(fakes, listeners, strict=True):
        fake.port = listener.sockets[0].getsockname()[1]
    before = asyncio.all_tasks()
    try:
        yield
    finally:
        for listener in listeners:
            listener.close()
        await asyncio.sleep(0.02)  # what was just accepted gets its task
        others = asyncio.all_tasks() - before - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for transport in itertools.chain.from_iterable(fake.transports for fake in fakes):
            transport.abort()
        await asyncio.sleep(0.02)  # lets the sockets close


@contextlib.contextmanager
def serving(*fakes: FakeServer) -> Iterator[None]:
    """Run the fakes on free ports, on an event loop in a thread of its own."""
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with serving_here(*fakes):
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(ANSWER_S)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(ANSWER_S)
        loop.close()
