"""`POST /v1/models/load`: change of the model while the server runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import ConfigDict
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from ggufd.api.answer.model_card import model_json
from ggufd.api.answer.sse import event_bytes
from ggufd.api.http.auth import admin_only
from ggufd.api.http.body import JsonObject, read_json
from ggufd.api.http.json_response import body_of, json_response
from ggufd.api.pool.router import begin_load, refuse_forms
from ggufd.api.request.docs import documented
from ggufd.api.request.validation import Body
from ggufd.api.services.caller import Caller
from ggufd.api.services.services import ModelSwitcher, Services, caller_of, services_of
from ggufd.errors import GgufdError, InvalidRequest, Unsupported

router = APIRouter(tags=["operations"])


class LoadRequest(Body):
    """Model to load, and settings for it by their names in config.toml."""

    model_config = ConfigDict(extra="allow")

    model: str
    stream: bool = True


_EXAMPLES = {
    "a file": {"model": "another.gguf", "ctx_size": 8192},
    "from a hub, without a stream": {"model": "hf:OWNER/REPO:Q4_K_M", "stream": False},
}


@router.post("/models/load", dependencies=[Depends(admin_only)], **documented(LoadRequest, _EXAMPLES, streams=True))
async def load(request: Request) -> Response:
    """Serve another model instead: `model`, as on the command line, and any other setting of [model] and [context].

    What runs may end first. A stream of events tells how far it is, unless `stream` is false. A model that cannot be
    served changes nothing: the old one goes on, or is loaded again. As JSON only (`Content-Type: application/json`),
    so that no page in somebody's browser can send it unasked. Where several models are known, `model` may be the name
    of one, and `POST /models/load` without `stream` is llama-server's: it answers at once.
    """
    services = services_of(request)
    refuse_forms(request)
    settings = await read_json(request, services.config.max_body_bytes)
    if services.models is not None and services.pool is not None and _is_routers(request, settings):
        return await begin_load(services.models, settings)
    is_streamed = settings.pop("stream", True)
    if not isinstance(is_streamed, bool):
        raise InvalidRequest("'stream': expected true or false.", param="stream")
    if services.models is None:
        raise Unsupported("This server cannot change its model.")
    steps = _steps(services, services.models, settings, caller_of(request))
    first = await anext(steps)
    if is_streamed:
        return EventSourceResponse(
            _events(request, first, steps), ping=services.config.ping_s, sep="\n", ping_message_factory=_ping
        )
    async for _ in steps:
        pass
    return json_response(model_json(services_of(request)))


def _is_routers(request: Request, settings: JsonObject) -> bool:
    """Whether a client of llama-server's router asks, and waits for nothing: it knows no `stream`, and no /v1."""
    return "stream" not in settings and not request.url.path.endswith("/v1/models/load")


Step = dict[str, Any]


async def _steps(
    services: Services, models: ModelSwitcher, settings: JsonObject, caller: Caller
) -> AsyncIterator[Step]:
    """The steps of the change; raises what ends it, or what only ends the report to its caller."""
    inbox: asyncio.Queue[Step | GgufdError | None] = asyncio.Queue()

    def report(stage: str, share: float | None) -> None:
        inbox.put_nowait({"status": stage, "progress": share})

    change = asyncio.ensure_future(models.change(settings, report))
    change.add_done_callback(lambda _: inbox.put_nowait(None))
    with services.revocations.during(caller, inbox.put_nowait):
        while (step := await inbox.get()) is not None:
            if isinstance(step, GgufdError):
                raise step
            yield step
    await change


async def _events(request: Request, first: Step, steps: AsyncIterator[Step]) -> AsyncIterator[bytes]:
    yield event_bytes(first)
    try:
        async for step in steps:
            yield event_bytes(step)
    except GgufdError as error:
        yield event_bytes(body_of(error))
    else:
        yield event_bytes({"status": "ready", "progress": 1.0, "model": model_json(services_of(request))})


def _ping() -> ServerSentEvent:
    return ServerSentEvent(comment="ping", sep="\n")
