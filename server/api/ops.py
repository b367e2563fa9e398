"""Is it there, is it well: `/health` and `/ready`. Never waits for the engine."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.ports import services_of
from server.api.responses import error_body, json_response

router = APIRouter(tags=["operations"])

_TAKES_REQUESTS = {"ready": "ok", "sleeping": "sleeping", "waking": "waking"}
"""States of the engine in which a request is served, perhaps after loading; and what they are called."""


@router.get("/health/live")
async def live() -> Response:
    """200 as long as the HTTP side runs, whatever the engine does."""
    return json_response({"status": "ok"})


@router.get("/health/ready", include_in_schema=False)
@router.get("/ready")
@router.get("/v1/health", include_in_schema=False)
@router.get("/health")
async def health(request: Request) -> Response:
    """200 when requests are taken, also by a model that has to wake for them; 503 with the engine's state while it
    loads, restarts, drains or has failed.
    """
    services = services_of(request)
    state = services.engine.state.name.lower()
    if state in _TAKES_REQUESTS and services.is_ready:
        return json_response({"status": _TAKES_REQUESTS[state]})
    # The engine may be ready a moment before the text process is.
    state = "loading" if state == "ready" else state
    error = error_body(f"The server takes no requests now: {state}.", "service_unavailable", code=state)
    return json_response({"status": state, **error}, status=503, headers={"Retry-After": "2"})
