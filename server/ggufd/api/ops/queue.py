"""`GET /v1/queue`: running and waiting requests, their order, when each is due, and what is left of batches."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ggufd.api.http.json_response import json_response
from ggufd.api.pool.waiting import n_waiting, queue_json
from ggufd.api.services.caller import Caller
from ggufd.api.services.services import Services, caller_of, services_of
from ggufd.engine.messages.reports import QueueEntry

router = APIRouter(tags=["operations"])


@router.get("/queue")
async def get_queue(request: Request) -> Response:
    """The caller's own requests and batches; with an admin's key everybody's. The counts are of all requests.

    Lines of batches are none of them: they give way to every request. Requests that wait for another model than is
    loaded say which.
    """
    services = services_of(request)
    caller = caller_of(request)
    entries = [
        (one, entry)
        for one in services.instances
        for entry in await _entries(one, is_beside=one is not services)
        if not entry.principal.is_background
    ]
    n_queued = sum(entry.turn is not None for _, entry in entries)
    return json_response(
        {
            "object": "list",
            "slots": 0 if services.engine.ready is None else services.engine.ready.n_slots,
            "running": len(entries) - n_queued,
            "waiting": n_queued + n_waiting(services),
            "data": [
                *(_json(one, entry) for one, entry in entries if _may_see(caller, entry.principal.person)),
                *queue_json(services, functools.partial(_may_see, caller)),
            ],
            "batches": await _batches(services, caller),
        }
    )


async def _entries(services: Services, *, is_beside: bool) -> Sequence[QueueEntry]:
    """What the engine has; nothing while another model is loaded for requests that wait, or of a model that stays
    loaded while it is started again.
    """
    if is_beside and services.engine.state.name != "READY":
        return ()
    if not is_beside and services.pool is not None and services.pool.is_swapping:
        return ()
    services.require_ready()
    return (await services.engine.reports.queue_state()).entries


async def _batches(services: Services, caller: Caller) -> list[dict[str, Any]]:
    """Batches that have not ended, and how many of their lines are left."""
    if services.batches is None:
        return []
    names = {key.digest.hex(): key.name for key in services.config.keys or ()}
    return [
        {
            "id": record.batch_id,
            "object": "queue.batch",
            "status": record.status.value,
            "key": names.get(record.owner),
            "endpoint": record.order.endpoint,
            "lines": record.total,
            "lines_left": record.n_left,
            "expires_at": record.expires,
        }
        for record in await services.batches.run(lambda store: store.batches.all_open())
        if caller.is_admin or record.owner == caller.key_digest
    ]


def _may_see(caller: Caller, person: str) -> bool:
    return caller.is_admin or person == caller.principal.person


def _json(services: Services, entry: QueueEntry) -> dict[str, Any]:
    turn: dict[str, Any] = {}
    if entry.turn is not None:
        turn = {"position": entry.turn.position, "eta_s": round(entry.turn.wait_s, 1)}
        turn["may_be_passed_s"] = round(entry.patience_s, 1)
    return {
        "id": entry.request_id,
        "model": services.config.model_id,
        "object": "queue.request",
        "status": "running" if entry.turn is None else "waiting",
        **turn,
        "key": entry.principal.name or None,
        "priority": entry.priority,
        "age_s": round(entry.age_s, 1),
        "prompt_tokens": entry.prompt_tokens,
        "completion_tokens": entry.generated_tokens,
    }
