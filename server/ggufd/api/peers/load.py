"""`GET /peers/load`: what a cluster asks each of its servers every second, to choose one for a request."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from ggufd.api.http.json_response import json_response
from ggufd.api.peers.state import peer_state_of
from ggufd.api.services.services import EngineService, services_of
from ggufd.engine.messages.reports import LiveState, Ready
from ggufd.errors import EngineDown

router = APIRouter(include_in_schema=False)

_ANSWER_S = 0.5
"""An engine answers between two steps."""

_TAKES_REQUESTS = ("READY", "SLEEPING", "WAKING", "DRAINING")


@router.get("/load")
async def get_load(request: Request) -> Response:
    """Load, pace and fingerprint of this server; 503 while it has no engine that takes requests.

    `wait_s` is the expected wait of one more request, and `kv_used` what running requests hold of all cells; 0 of an
    engine that sleeps. An engine in a long step is told as it was.
    """
    services = services_of(request)
    engine, ready = services.engine, services.require_ready()
    if engine.state.name not in _TAKES_REQUESTS:
        raise EngineDown("There is no engine that takes requests now. Try again in a few seconds.", retry_after_s=2.0)
    state = await _state(request, engine)
    return json_response(
        {
            "running": engine.n_running,
            "waiting": engine.n_waiting,
            "n_slots": ready.n_slots,
            "wait_s": 0.0 if state is None else round(state.wait_s, 3),
            "prefill_tok_s": 0.0 if state is None else round(state.prefill_tok_s, 1),
            "kv_used": 0.0 if state is None else round(_kv_used(state, ready), 4),
            "is_draining": engine.state.name == "DRAINING",
            "fingerprint": ready.fingerprint,
            "model": services.config.model_id,
        }
    )


async def _state(request: Request, engine: EngineService) -> LiveState | None:
    """What the engine says, or said last; None of one that sleeps."""
    peers = peer_state_of(request)
    try:
        state = await asyncio.wait_for(engine.reports.live_state(), _ANSWER_S)
    except TimeoutError:
        return peers.load[1] if peers.load is not None and peers.load[0] is engine else None
    except EngineDown:
        return None
    peers.load = (engine, state)
    return state


def _kv_used(state: LiveState, ready: Ready) -> float:
    n_held = sum(slot.n_past for slot in state.slots if slot.request_id is not None)
    return min(1.0, n_held / max(1, ready.n_slots * ready.n_ctx))
