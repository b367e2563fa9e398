"""A replica of known pace, for tests of the cluster: what each API's answer looks like, and every way to fail.

Its words are its name and their number, so that an answer tells who wrote it. An HTTP server with real sockets, in
a thread (`serving`) or as a program of its own (`python -m tests.support.fakes.paced_replica`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import enum
import itertools
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Any


class Death(enum.Enum):
    """Where in an answer the connection is reset."""

    BEFORE_HEAD = "before the head"
    AFTER_COMMENTS = "after comments"
    MID_STREAM = "in mid-stream"
    MID_EVENT = "in the middle of an event"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def json(self) -> Json:
        return json.loads(self.body)


@dataclass(eq=False)
class PacedReplica:
    """A server that waits `first_s`, with a comment each `ping_s`, and then writes a word every `pace_s`.

    `refuses` is the Retry-After of its 503, `fails_first` the error event that a stream has in place of its words.
    `answers` are bodies by method and path, besides those of generation.
    """

    name: str = "a"
    n_tokens: int = 5
    first_s: float = 0.0
    pace_s: float = 0.005
    ping_s: float = 0.02
    token: str | None = None
    refuses: float | None = None
    hangs: bool = False
    death: Death | None = None
    error_code: str | None = None
    load: dict[str, Any] = field(default_factory=dict)
    answers: dict[tuple[str, str], Json] = field(default_factory=dict)
    padding: int = 0
    asked: list[Asked] = field(default_factory=list)
    n_left: int = 0
    n_open: int = 0
    n_written: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self._writers: set[asyncio.StreamWriter] = set()
        self._listener: asyncio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def of(self, path: str) -> list[Asked]:
        """What was asked of one path."""
        return [one for one in self.asked if one.path == path]

    async def listen(self) -> None:
        """Begin to listen, at the port of before if there was one."""
        self._loop = asyncio.get_running_loop()
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Stop listening and reset all connections, as the death of the process does."""
        if self._listener is not None:
            self._listener.close()
        for writer in self._writers:
            writer.transport.abort()

    def kill(self) -> None:
        """`close`, from another thread."""
        assert self._loop is not None
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (self.close(), done.set()))
        assert done.wait(5)

    def revive(self) -> None:
        """`listen` again, from another thread."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self.listen(), self._loop).result(5)

    # --- one connection ---------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while (asked := await _read(reader)) is not None:
                self.asked.append(asked)
                self.n_open += 1
                try:
                    await self._until_left(reader, self._answer(asked, writer))
                finally:
                    self.n_open -= 1
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _until_left(self, reader: asyncio.StreamReader, answer: Any) -> None:
        """Answer, unless the client leaves first. It sends nothing more before it has its answer."""
        answering, watching = asyncio.ensure_future(answer), asyncio.ensure_future(_left(reader))
        await asyncio.wait((answering, watching), return_when=asyncio.FIRST_COMPLETED)
        is_left = not answering.done()
        answering.cancel()
        watching.cancel()
        await asyncio.gather(answering, watching, return_exceptions=True)
        if is_left:
            self.n_left += 1
            raise ConnectionResetError
        answering.result()

    async def _answer(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if asked.path == "/health":
            return _send(writer, 200, {"status": "ok"})
        if self.token is not None and asked.headers.get("x-ggufd-peer") != self.token:
            return _send(writer, 401, {"error": {"message": "no peer", "code": "invalid_peer_token"}})
        known = self.answers.get(("GET" if asked.method == "HEAD" else asked.method, asked.path))
        if known is not None:
            return _send(writer, 200, known, has_body=asked.method != "HEAD")
        if asked.path == "/peers/load":
            return _send(writer, 200, self._load())
        shape = SHAPES.get(asked.path)
        if shape is None or asked.method != "POST":
            return _send(writer, 404, {"error": {"message": f"{self.name}: no such route", "code": "not_found"}})
        return await self._generate(shape, asked, writer)

    def _load(self) -> Json:
        usual = {"running": self.n_open, "waiting": 0, "n_slots": 4, "wait_s": 0.0, "prefill_tok_s": 100.0}
        return {**usual, "kv_used": 0.0, "is_draining": False, "fingerprint": "f", "model": "paced", **self.load}

    async def _generate(self, shape: Shape, asked: Asked, writer: asyncio.StreamWriter) -> None:
        if self.death is Death.BEFORE_HEAD:
            return _die(writer)
        if self.refuses is not None:
            error = {"error": {"message": f"{self.name} is full", "type": "service_unavailable", "code": "queue_full"}}
            return _send(writer, 503, error, more=f"Retry-After: {self.refuses:g}\r\n")
        if not shape.always_streams and not asked.json.get("stream", shape.streams_by_default):
            return await self._whole(shape, writer)
        return await self._stream(shape, writer)

    async def _whole(self, shape: Shape, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self.first_s + self.n_tokens * self.pace_s)
        body = json.dumps(shape.whole("".join(self._words()))).encode()
        writer.write(_head(200, "application/json", f"Content-Length: {len(body)}\r\n", self.name))
        if self.death is not None:
            writer.write(body[:5])
            await writer.drain()
            await asyncio.sleep(0.02)
            return _die(writer)
        writer.write(body)
        return await writer.drain()

    async def _stream(self, shape: Shape, writer: asyncio.StreamWriter) -> None:
        writer.write(_head(200, shape.media_type, "Transfer-Encoding: chunked\r\n", self.name))
        async for data in self._events(shape):
            if data is None:
                return _die(writer)
            _chunk(writer, data)
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        return await writer.drain()

    async def _events(self, shape: Shape) -> AsyncIterator[bytes | None]:
        """What a stream is made of; None where the connection is reset."""
        if data := shape.begin(self.name):
            yield data
        if shape.pings and (self.first_s or self.death is Death.AFTER_COMMENTS):
            yield shape.ping
        for _ in range(int(self.first_s / self.ping_s)):
            await asyncio.sleep(self.ping_s)
            if shape.pings:
                yield shape.ping
        if self.death is Death.AFTER_COMMENTS:
            await asyncio.sleep(0.02)
            yield None
        if self.error_code is not None:
            yield shape.error(self.error_code)
            return
        for i, word in enumerate(self._words()):
            if i == self.n_tokens // 2 and self.death in (Death.MID_STREAM, Death.MID_EVENT):
                if self.death is Death.MID_EVENT:
                    yield shape.word(word, i)[:-5]
                await asyncio.sleep(0.02)
                yield None
            self.n_written += 1
            yield shape.word(word, i)
            if self.pace_s:
                await asyncio.sleep(self.pace_s)
        yield shape.end()

    def _words(self) -> list[str]:
        return [f" {self.name}{i}{'.' * self.padding}" for i in range(self.n_tokens)]


# --- shapes of the APIs ---------------------------------------------------------------------------------------------


class Shape:
    """OpenAI's chat; the other APIs say what differs."""

    media_type = "text/event-stream; charset=utf-8"
    always_streams = False
    streams_by_default = False
    pings = True
    ping = b": ping\n\n"

    def begin(self, name: str) -> bytes:
        return b""

    def word(self, word: str, number: int) -> bytes:
        return _event({"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": word}}]})

    def end(self) -> bytes:
        last = {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        return _event(last) + b"data: [DONE]\n\n"

    def error(self, code: str) -> bytes:
        return _event({"error": {"message": "It failed.", "type": "service_unavailable", "code": code, "param": None}})

    def whole(self, text: str) -> Json:
        return {"id": "chatcmpl-1", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}


class _Text(Shape):
    def word(self, word: str, number: int) -> bytes:
        return _event({"id": "cmpl-1", "choices": [{"index": 0, "text": word}]})

    def whole(self, text: str) -> Json:
        return {"id": "cmpl-1", "choices": [{"index": 0, "text": text}]}


class _Anthropic(Shape):
    ping = b'event: ping\ndata: {"type": "ping"}\n\n'

    def begin(self, name: str) -> bytes:
        return _event({"type": "message_start", "message": {"id": f"msg_{name}", "content": []}}, "message_start")

    def word(self, word: str, number: int) -> bytes:
        opening = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
        return (b"" if number else _event(opening, opening["type"])) + _event(delta, "content_block_delta")

    def end(self) -> bytes:
        return _event({"type": "content_block_stop", "index": 0}, "content_block_stop") + _event(
            {"type": "message_stop"}, "message_stop"
        )

    def error(self, code: str) -> bytes:
        kind = "invalid_request_error" if code == "invalid_value" else "overloaded_error"
        return _event({"type": "error", "error": {"type": kind, "message": "It failed."}}, "error")

    def whole(self, text: str) -> Json:
        return {"id": "msg_1", "content": [{"type": "text", "text": text}]}


class _Responses(Shape):
    def begin(self, name: str) -> bytes:
        response = {"id": f"resp_{name}1", "status": "in_progress"}
        return b"".join(
            _event({"type": kind, "response": response, "sequence_number": i}, kind)
            for i, kind in enumerate(("response.created", "response.in_progress"))
        )

    def word(self, word: str, number: int) -> bytes:
        kind = "response.output_text.delta"
        return _event({"type": kind, "delta": word, "sequence_number": number + 2}, kind)

    def end(self) -> bytes:
        done = {"type": "response.completed", "response": {"status": "completed"}, "sequence_number": 99}
        return _event(done, "response.completed")

    def error(self, code: str) -> bytes:
        failed = {"status": "failed", "error": {"code": code, "message": "It failed."}}
        return _event({"type": "response.failed", "response": failed}, "response.failed")

    def whole(self, text: str) -> Json:
        return {"id": "resp_whole1", "object": "response", "output_text": text}


class _OllamaChat(Shape):
    media_type = "application/x-ndjson"
    streams_by_default = True
    pings = False

    def word(self, word: str, number: int) -> bytes:
        return _line({**self._said(word), "done": False})

    def end(self) -> bytes:
        return _line({**self._said(""), "done": True})

    def error(self, code: str) -> bytes:
        return _line({"error": "It failed.", "code": code})

    def whole(self, text: str) -> Json:
        return {**self._said(text), "done": True}

    def _said(self, text: str) -> dict[str, Any]:
        return {"model": "paced", "message": {"role": "assistant", "content": text}}


class _OllamaText(_OllamaChat):
    def _said(self, text: str) -> dict[str, Any]:
        return {"model": "paced", "response": text}


class _KoboldStream(Shape):
    always_streams = True

    def word(self, word: str, number: int) -> bytes:
        return _event({"token": word, "finish_reason": None}, "message")

    def end(self) -> bytes:
        return _event({"token": "", "finish_reason": "stop"}, "message")


class _Kobold(Shape):
    def whole(self, text: str) -> Json:
        return {"results": [{"text": text}]}


class _Native(Shape):
    def word(self, word: str, number: int) -> bytes:
        return _event({"content": word, "stop": False})

    def end(self) -> bytes:
        return _event({"content": "", "stop": True})

    def whole(self, text: str) -> Json:
        return {"content": text, "stop": True}


SHAPES: Mapping[str, Shape] = {
    "/v1/chat/completions": Shape(),
    "/v1/completions": _Text(),
    "/v1/messages": _Anthropic(),
    "/v1/responses": _Responses(),
    "/api/chat": _OllamaChat(),
    "/api/generate": _OllamaText(),
    "/api/extra/generate/stream": _KoboldStream(),
    "/api/v1/generate": _Kobold(),
    "/completion": _Native(),
}
"""By path."""


# --- HTTP -----------------------------------------------------------------------------------------------------------


async def _read(reader: asyncio.StreamReader) -> Asked | None:
    """The next request; None at the end of the connection."""
    try:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.IncompleteReadError:
        return None
    method, target, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
    if headers.get("transfer-encoding") == "chunked":
        return Asked(method, target, headers, await _read_chunks(reader))
    return Asked(method, target, headers, await reader.readexactly(int(headers.get("content-length", 0))))


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readline()
    return body


async def _left(reader: asyncio.StreamReader) -> None:
    while await reader.read(1):
        pass


def _die(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    raise ConnectionResetError


def _event(value: Json, name: str = "") -> bytes:
    return (f"event: {name}\n" if name else "").encode() + f"data: {json.dumps(value)}\n\n".encode()


def _line(value: Json) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


def _head(status: int, media_type: str, more: str, name: str) -> bytes:
    own = "Date: Mon, 01 Jan 2024 00:00:00 GMT\r\nServer: paced\r\nConnection: keep-alive\r\n"
    return f"HTTP/1.1 {status} X\r\nContent-Type: {media_type}\r\nX-Paced: {name}\r\n{own}{more}\r\n".encode()


def _send(writer: asyncio.StreamWriter, status: int, body: Json, *, more: str = "", has_body: bool = True) -> None:
    is_text = isinstance(body, str)
    payload = body.encode() if is_text else json.dumps(body).encode()
    head = _head(
        status, "text/plain" if is_text else "application/json", f"{more}Content-Length: {len(payload)}\r\n", ""
    )
    writer.write(head + (payload if has_body else b""))


@contextlib.contextmanager
def serving(*replicas: PacedReplica) -> Iterator[None]:
    """Run the replicas on free ports, on an event loop in a thread of its own."""
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        for replica in replicas:
            await replica.listen()
        ready.set()
        await stop.wait()
        for replica in replicas:
            replica.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0.02)  # lets the sockets close

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(5)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def main() -> None:
    """A replica as a program of its own, which prints its address."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", default="a")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--pace-s", type=float, default=0.02)
    parser.add_argument("--token")
    chosen = parser.parse_args()
    replica = PacedReplica(
        chosen.name, n_tokens=chosen.tokens, pace_s=chosen.pace_s, token=chosen.token, port=chosen.port
    )

    async def serve() -> None:
        await replica.listen()
        print(f"listening on {replica.url}", flush=True)
        for _ in itertools.count():
            await asyncio.sleep(3600)

    asyncio.run(serve())


if __name__ == "__main__":
    main()
