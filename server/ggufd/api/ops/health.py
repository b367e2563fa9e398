"""Liveness, readiness and metrics: `/health` and `/ready` never wait for the engine, `/metrics` asks it."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from ggufd.api.http.auth import require_admin
from ggufd.api.http.error_shape import openai_body
from ggufd.api.http.json_response import json_response
from ggufd.api.pool.beside import health_json
from ggufd.api.services.metrics import MEDIA_TYPE, Snapshot
from ggufd.api.services.services import Services, services_of
from ggufd.batches.store import BatchStore
from ggufd.errors import GgufdError, NotFound

router = APIRouter(tags=["operations"])

METRICS = "/metrics"

_STATS_TIMEOUT_S = 5.0
"""The engine answers between two steps; Prometheus waits 10 s by default."""

_TAKES_REQUESTS = {"ready": "ok", "sleeping": "sleeping", "waking": "waking"}
"""States of the engine in which a request is served, perhaps after loading; and what they are called."""


@router.get("/health/live")
async def live() -> Response:
    """200 as long as the HTTP side runs, whatever the engine does."""
    return json_response({"status": "ok"})


@router.get("/v1/health", include_in_schema=False)
@router.get("/health")
async def health(request: Request) -> Response:
    """200 when the model is served, also one that has to wake for a request, and while models are swapped, for which
    requests wait; 503 with the engine's state while it loads, restarts, drains or has failed, while the text process
    restarts, and after a request that could not wake it, until one can. `beside` says how many of the models that
    stay loaded are in which state.
    """
    return _state(services_of(request))


@router.get("/health/ready", include_in_schema=False)
@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 when a request would be taken now: as `/health`, but 503 too while as many wait as may, unless the setting
    `ready_when_full` is on.
    """
    services = services_of(request)
    if services.is_ready and services.engine.is_full and not services.config.ready_when_full:
        return _not_now("queue_full", "as many requests wait as may")
    return _state(services)


def _state(services: Services) -> Response:
    if services.pool is not None and services.pool.is_swapping:
        # Requests wait for it: a proxy has no reason to send them elsewhere.
        return json_response({"status": "swapping", **health_json(services)})
    state = services.engine.state.name.lower()
    trouble = services.engine.trouble
    if services.is_ready and not services.text.is_running:
        return _not_now("text_restarting", "the text process is being started again")
    if state in _TAKES_REQUESTS and services.is_ready:
        if trouble:
            return _not_now("wake_failed", trouble)
        return json_response({"status": _TAKES_REQUESTS[state], **health_json(services)})
    # The engine may be ready a moment before the text process is.
    state = "loading" if state == "ready" else state
    return _not_now(state, f"{state} ({trouble})" if trouble else state)


def _not_now(state: str, why: str) -> Response:
    message = f"The server takes no requests now: {why.rstrip('.')}."
    error = openai_body(message, status=503, kind="service_unavailable", param=None, code=state)
    return json_response({"status": state, **error}, status=503, headers={"Retry-After": "2"})


@router.get(METRICS)
async def metrics(request: Request) -> Response:
    """Counters, gauges and histograms in Prometheus' text format. Who may read them is a setting (`metrics_for`)."""
    services = services_of(request)
    match services.config.metrics_for:
        case "nobody":
            raise NotFound("There are no metrics: this server was started with --metrics-for nobody.")
        case "admin":
            require_admin(request)
        case "user" | "everybody":
            pass
    headers = {"content-type": MEDIA_TYPE, "Process-Start-Time-Unix": str(services.metrics.since)}
    return Response(services.metrics.exposition(await _snapshot(services)), headers=headers)


async def _snapshot(services: Services) -> Snapshot:
    """The engine's own figures are missing while there is none, or while it is too busy to tell them."""
    engine = services.engine
    try:
        stats = await asyncio.wait_for(engine.reports.stats(), _STATS_TIMEOUT_S)
    except (GgufdError, TimeoutError):
        stats = None
    lines = None if services.batches is None else await services.batches.run(BatchStore.counts)
    return Snapshot(
        engine.state.name.lower(),
        services.config.model_id,
        engine.ready,
        stats,
        engine.n_waiting,
        engine.n_running,
        lines,
        None if services.images is None else services.images.figures,
    )
