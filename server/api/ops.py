"""Is it there, is it well: `/health` and `/ready`. Never waits for the engine."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.ports import services_of
from server.api.responses import error_body, json_response

router = APIRouter(tags=["operations"])


@router.get("/health/live")
async def live() -> Response:
    """200 as long as the HTTP side runs, whatever the engine does."""
    return json_response({"status": "ok"})


@router.get("/health/ready", include_in_schema=False)
@router.get("/ready")
@router.get("/v1/health", include_in_schema=False)
@router.get("/health")
async def health(request: Request) -> Response:
    """200 when requests are taken; 503 with the engine's state while it loads, restarts, drains or has failed."""
    services = services_of(request)
    state = services.engine.state.name.lower()
    if state == "ready" and services.is_ready:
        return json_response({"status": "ok"})
    # The engine may be ready a moment before the text process is.
    state = "loading" if state == "ready" else state
    error = error_body(f"The server takes no requests now: {state}.", "service_unavailable", code=state)
    return json_response({"status": state, **error}, status=503, headers={"Retry-After": "2"})
