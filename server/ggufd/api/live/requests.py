"""`DELETE /v1/requests/{id}`: the end of a request that waits or runs, by its own key or an admin."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from ggufd.api.http.json_response import json_response
from ggufd.api.live.sight import Sight
from ggufd.api.pool.beside import find_stream
from ggufd.api.request.path_router import PathRouter
from ggufd.api.services.services import RequestEvents, caller_of, services_of
from ggufd.errors import NotFound, RequestEnded
from ggufd.model_pool.pool import ModelTurn

router = PathRouter(tags=["operations"])


@router.delete("/requests/{request_id}")
async def end_request(request: Request, request_id: str) -> Response:
    """End a request by its number in `/v1/queue` and `/v1/live`, whether it waits or runs.

    A user's key ends its own requests, an admin's any. Who sent it gets an error that says so (410, or the last event
    of a stream); what was computed stays as cache.
    """
    is_number = request_id.isascii() and request_id.isdecimal() and len(request_id) < 16
    number = int(request_id) if is_number else -1
    services = services_of(request)
    stream: RequestEvents | ModelTurn | None = find_stream(services, number)
    if stream is None and services.pool is not None:
        stream = services.pool.find(number)
    sight = Sight.of(request)
    if stream is None or not sight.shows(stream.principal.person):
        raise NotFound(f"No request {request_id[:20]!a} waits or runs. /v1/queue lists those that do.")
    is_own = stream.principal.person == caller_of(request).principal.person
    stream.refuse(RequestEnded(_told(is_own=is_own)))
    return json_response({"id": number, "object": "queue.request", "ended": True})


def _told(*, is_own: bool) -> str:
    """Who ended it: by name nobody but oneself."""
    who = "with the key that sent it" if is_own else "by who runs the server"
    return f"This request was ended {who}, in the live view or by DELETE /v1/requests. Send it again if it is wanted."
