"""Response to a request that streams: as ever bound to its client, or a stream that outlives it.

Which one is decided here, for every API family.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ggufd.api.answer.generation import Generation
from ggufd.api.answer.sse import ChunkFormat, EventStream, SseResponse, events_of
from ggufd.api.services.caller import Caller
from ggufd.api.services.services import services_of
from ggufd.api.streams.kept_stream import KeptStream, StreamHead
from ggufd.api.streams.store import StreamStore
from ggufd.errors import GgufdError, InvalidRequest, TryLater, Unsupported

STREAM_HEADER = "x-ggufd-stream"
"""Response header: the id of the stream, for `/v1/streams/{id}`."""

CONVERSATION_HEADER = "x-conversation-id"
"""llama-server's request header: the client's own name for a stream that is to outlive it."""

_PING = b": ping\n"
"""A comment without a blank line behind it, as those of `EventLog`."""

_CONVERSATION = re.compile(r"[\x21-\x7e]{1,256}")


def store_of(request: Request) -> StreamStore:
    """The streams of this request's application."""
    store: StreamStore = request.app.state.streams
    return store


def owner_of(caller: Caller) -> str:
    """Who may read a stream of this caller's: the key; without keys, the address."""
    return caller.key_digest or caller.address


def refuse_resumable(resumable: bool | None, why: str = "Set 'stream' to true, or leave it out") -> None:
    """Raises Unsupported where an answer that is no stream of events was to outlive its client."""
    if resumable:
        raise Unsupported(f"'resumable': only a stream of server-sent events can be resumed. {why}.", param="resumable")


async def streamed(
    request: Request,
    generation: Generation,
    chunks: ChunkFormat,
    resumable: bool | None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The response that streams a generation. `resumable` is the request's own word, which a setting stands in for.

    Raises what refuses it, after ending the generation: a stream that was to outlive its client does, or there is none.
    A stream that only the setting makes resumable is an ordinary one where too many are kept.
    """
    services = services_of(request)
    try:
        stream = _resumable(request, generation, chunks, resumable, headers or {})
    except GgufdError:
        async with generation:
            raise
    if stream is None:
        return EventStream(generation, chunks, ping_s=services.config.ping_s, headers=headers)
    return ReaderResponse(stream, ping_s=services.config.ping_s)


def _resumable(
    request: Request,
    generation: Generation,
    chunks: ChunkFormat,
    resumable: bool | None,
    headers: Mapping[str, str],
) -> KeptStream | None:
    """The running stream, if it is to be resumable."""
    limits = services_of(request).config.streams
    conversation_id = "" if resumable is False else _conversation_of(request)
    is_asked = bool(resumable or conversation_id)
    if not is_asked and (resumable is False or not limits.is_default):
        return None
    caller = generation.caller
    head = StreamHead(
        stream_id=chunks.response_id or f"cmpl-{uuid.uuid4().hex}",
        owner=owner_of(caller),
        path=request.url.path,
        ping=chunks.ping if chunks.ping.event else _PING,
        refusal=chunks.refusal,
        conversation_id=conversation_id,
        headers=headers,
        ignored=tuple(caller.record.ignored),
    )
    try:
        stream = store_of(request).open(head, generation)
    except (TryLater, Unsupported):
        if is_asked:
            raise
        return None
    caller.record.hold()
    stream.produce(_produce(store_of(request), stream, generation, chunks))
    return stream


def _conversation_of(request: Request) -> str:
    """llama-server's name for the stream. Raises InvalidRequest."""
    conversation_id = request.headers.get(CONVERSATION_HEADER, "")
    if conversation_id and not _CONVERSATION.fullmatch(conversation_id):
        raise InvalidRequest(
            "The header 'X-Conversation-Id' must be 1 to 256 printable ASCII characters without blanks.",
            param=CONVERSATION_HEADER,
        )
    return conversation_id


async def _produce(store: StreamStore, stream: KeptStream, generation: Generation, chunks: ChunkFormat) -> None:
    """Write the events of a stream, whoever reads them. Its request is logged and counted when this ends."""
    try:
        async with generation:
            async for data in events_of(generation, chunks):
                store.add(stream, data)
    finally:
        generation.caller.record.release()
        stream.end()


class ReaderResponse(SseResponse):
    """Response that sends a kept stream from event `number` on, without its first `skip` bytes."""

    def __init__(self, stream: KeptStream, number: int = 0, skip: int = 0, *, ping_s: float) -> None:
        super().__init__(
            _told(stream, number, skip),
            stream.head.ping,
            ping_s=0.0 if stream.head.conversation_id else ping_s,
            headers={**stream.head.headers, STREAM_HEADER: stream.head.stream_id},
        )
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._stream.reading():
            await super().__call__(scope, receive, send)


async def _told(stream: KeptStream, number: int, skip: int) -> AsyncIterator[bytes]:
    try:
        async for data in stream.log.read(number, skip, has_comments=not stream.head.conversation_id):
            yield data
    except GgufdError as error:
        yield stream.head.refusal(error)
