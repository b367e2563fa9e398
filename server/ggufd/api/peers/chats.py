"""`/peers/chats`: chats that a server keeps on disk, written there, listed, sent and fetched at the cluster's word."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import Field, Strict
from starlette.responses import Response, StreamingResponse

from ggufd.api.http.body import read_json, read_optional_json
from ggufd.api.http.json_response import json_response
from ggufd.api.peers import transfer
from ggufd.api.peers.kept_files import KeptFile, OpenChat, is_digest, kept_files, open_chat, path_of
from ggufd.api.peers.state import peer_state_of
from ggufd.api.peers.transfer import DIGEST_HEADER, USED_HEADER, FetchedChat, Source, TransferFailed, digest_header
from ggufd.api.request.fields import Aliases
from ggufd.api.request.path_router import PathRouter
from ggufd.api.request.validation import Body, validate
from ggufd.api.services.services import Services, services_of
from ggufd.engine.messages.config import DiskPlace
from ggufd.engine.messages.requests import AdoptChat
from ggufd.errors import EngineDown, InvalidRequest, NotFound

router = PathRouter(include_in_schema=False)

_POLL_S = 0.02
_PIECE_BYTES = 1 << 20
_MAX_BODY_BYTES = 10_000

Seconds = Annotated[float, Field(gt=0, le=600)]
Result = TypeVar("Result")


class SaveRequest(Body):
    """How long to write at most."""

    timeout_s: Seconds = 10.0


class FetchRequest(Body):
    """A chat by its digest, the server that has it, and how long fetching it may take."""

    source: Annotated[str, Strict()] = ""
    digest: Annotated[str, Strict()] = ""
    timeout_s: Seconds = 60.0


_NAMES: Aliases = {"source": ("from",), "digest": ("digest",), "timeout_s": ("timeout_s",)}


@router.get("/chats")
async def list_chats(request: Request) -> Response:
    """Chats on disk that fit what is served here, the most recently used first."""
    services = services_of(request)
    place = _place(services)
    data = [] if place is None else [_json(one, place) for one in await asyncio.to_thread(kept_files, place)]
    return json_response({"object": "list", "data": data})


def _place(services: Services) -> DiskPlace | None:
    """Where chats are kept; None where none are."""
    return services.require_ready().disk


def _json(one: KeptFile, place: DiskPlace) -> dict[str, Any]:
    return {**one._asdict(), "chat": one.chat or None, "fingerprint": place.fingerprint}


@router.post("/chats/save")
async def save_chats(request: Request) -> Response:
    """Write to disk what idle slots and host RAM hold; the answer says how many chats had not been written in time."""
    services = services_of(request)
    asked = validate(SaveRequest, await read_optional_json(request, _MAX_BODY_BYTES), _NAMES)
    deadline_s = time.monotonic() + asked.timeout_s
    services.require_ready()
    while True:
        n_left = await _n_left(services, deadline_s)
        if n_left == 0 or time.monotonic() >= deadline_s:
            return json_response({"left": n_left})
        await asyncio.sleep(_POLL_S)


async def _n_left(services: Services, deadline_s: float) -> int:
    left_s = max(0.01, deadline_s - time.monotonic())
    try:
        return (await asyncio.wait_for(services.engine.reports.save_chats(), left_s)).n_left
    except TimeoutError:
        raise EngineDown("The engine did not answer in time.", retry_after_s=2.0) from None


@router.get("/chats/{digest}")
async def send_chat(request: Request, digest: str) -> Response:
    """The file of a chat, with the digest of its bytes."""
    place = _place(services_of(request))
    if place is None or not is_digest(digest):
        raise _unknown(digest)
    try:
        chat = await asyncio.to_thread(open_chat, place, digest)
    except OSError:
        raise _unknown(digest) from None
    headers = {
        "content-length": str(chat.n_bytes),
        DIGEST_HEADER: digest_header(chat.sha256),
        USED_HEADER: str(chat.used_s),
    }
    return StreamingResponse(_pieces(chat), headers=headers, media_type="application/octet-stream")


def _unknown(digest: str) -> NotFound:
    return NotFound(f"There is no chat {digest[:40]!a} here.")


async def _pieces(chat: OpenChat) -> AsyncIterator[bytes]:
    """The file a piece at a time, none read before the one before it is on its way."""
    with chat.file:
        left = chat.n_bytes
        while left > 0 and (piece := await asyncio.to_thread(chat.file.read, min(left, _PIECE_BYTES))):
            left -= len(piece)
            yield piece


@router.post("/chats/fetch")
async def fetch_chat(request: Request) -> Response:
    """Fetch a chat from another server of the cluster, and take it up; `status` says what came of it.

    `fetched`, `present` (it was here already), or `failed` with the `reason`: then nothing has changed.
    """
    services = services_of(request)
    asked = validate(FetchRequest, await read_json(request, _MAX_BODY_BYTES), _NAMES)
    if not transfer.is_address(asked.source):
        raise InvalidRequest("'from': expected the address of a server, as in http://10.0.0.3:8080.", param="from")
    if not is_digest(asked.digest):
        raise InvalidRequest("'digest': expected that of a chat, 32 hex digits.", param="digest")
    place = _place(services)
    if place is None:
        return _failed("this server keeps no chats on disk (--cache-disk)")
    source = Source(asked.source, asked.digest, services.config.peer_token or "")
    async with peer_state_of(request).fetches:
        if path_of(place, asked.digest).exists():
            return json_response({"status": "present"})
        try:
            fetched = await _in_thread(lambda: transfer.fetch(source, place, asked.timeout_s))
        except TransferFailed as error:
            return _failed(str(error))
    return _taken_up(services, fetched)


def _taken_up(services: Services, fetched: FetchedChat) -> Response:
    head = fetched.head
    chat = AdoptChat(str(fetched.path), fetched.n_bytes, fetched.used_s, head.tokens, head.cache_scope)
    services.engine.reports.adopt_chat(chat)
    return json_response({"status": "fetched", "n_bytes": fetched.n_bytes, "n_tokens": len(head.tokens)})


def _failed(reason: str) -> Response:
    return json_response({"status": "failed", "reason": reason})


async def _in_thread(work: Callable[[], Result]) -> Result:
    """The result of work that may take long, on a thread for which no end of the server waits."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: Exception | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        # The loop may have ended meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="fetch-chat", daemon=True).start()
    return await done
