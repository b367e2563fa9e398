"""llama-server's `/props`, `/slots` and `/apply-template`: model properties, slot states, a rendered chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from ggufd.api.answer.conversation import Conversation
from ggufd.api.http.auth import admin_only
from ggufd.api.http.body import read_json
from ggufd.api.http.json_response import json_response
from ggufd.api.llamacpp.answer import settings_json
from ggufd.api.pool.beside import services_for
from ggufd.api.pool.listing import find_other
from ggufd.api.request.chat.schemas import ChatRequest
from ggufd.api.request.docs import documented
from ggufd.api.request.fields import OPENAI_CHAT
from ggufd.api.request.requests import check_fields, refuse_unavailable
from ggufd.api.request.sampling import SamplingFields
from ggufd.api.request.validation import validate
from ggufd.api.services.services import Services, caller_of, services_of
from ggufd.engine.messages.reports import Ready, SlotState
from ggufd.errors import SwitchedOff, Unavailable, Unsupported
from ggufd.model_pool.catalogue import KnownModel

router = APIRouter(tags=["llama.cpp"])


@router.get("/props")
async def props(request: Request) -> Response:
    """The model, its chat template byte for byte, and a slot's context and default samplers.

    With `?model=` of a known model that is not loaded, what its header says: a question swaps nothing.
    """
    asked = request.query_params.get("model")
    services = services_for(services_of(request), asked)
    if (other := find_other(services, asked)) is not None:
        return json_response(_props_of_other(services, other))
    ready = services.require_ready()
    info = services.text.info
    return json_response(
        {
            "default_generation_settings": {
                "id": 0,
                "id_task": -1,
                "n_ctx": ready.n_ctx,
                "speculative": ready.draft is not None,
                "is_processing": False,
                "params": _default_settings(services),
            },
            "total_slots": ready.n_slots,
            "model_alias": services.config.model_id,
            "model_path": ready.model.path,
            "model_ftype": ready.model.ftype,
            "draft_model_path": None if ready.draft is None else ready.draft.path,
            "modalities": {"vision": services.images is not None, "audio": False},
            "chat_template": info.chat_template,
            "chat_template_needs": list(info.template_needs),
            "bos_token": info.bos_piece,
            "eos_token": info.eos_piece,
            "build_info": services.config.build,
            "is_sleeping": services.engine.state.name == "SLEEPING",
        }
    )


def _props_of_other(services: Services, known: KnownModel) -> dict[str, Any]:
    """A model that is not loaded; its context is that of its plan."""
    facts, plan = (
        known.facts,
        ({} if services.pool is None else services.pool.plans.get(known.name, {})).get("best", {}),
    )
    n_ctx = plan.get("tokens_each", 0 if facts is None else facts.n_ctx_train)
    return {
        "default_generation_settings": {"id": 0, "id_task": -1, "n_ctx": n_ctx, "params": _default_settings(services)},
        "total_slots": plan.get("slots", 0),
        "model_alias": known.name,
        "model_path": known.file,
        "model_ftype": "" if facts is None else facts.quantisation,
        "modalities": {"vision": False, "audio": False},
        "chat_template": "" if facts is None else facts.chat_template,
        "build_info": services.config.build,
        "is_sleeping": True,
    }


def _default_settings(services: Services) -> dict[str, Any]:
    limit = services.config.max_tokens
    params = SamplingFields().to_params(services.config.sampling)
    output = services.config.output
    return {
        **settings_json(params),
        "n_predict": -1 if limit is None else limit,
        "stop": list(output.stop),
        "n_keep": output.n_keep,
        "n_probs": 0,
    }


@router.post("/props", include_in_schema=False, dependencies=[Depends(admin_only)])
async def change_props(request: Request) -> Response:
    """Nothing can be changed while the server runs."""
    raise Unsupported("The properties cannot be changed while the server runs. Use its settings and start it again.")


@router.get("/slots", dependencies=[Depends(admin_only)])
async def slots(request: Request) -> Response:
    """State of every slot: `n_past` tokens are computed, of `n_tokens` that its sequence has."""
    services = services_of(request)
    if not services.config.slots:
        raise SwitchedOff("GET /slots is switched off. Start the server with --slots, or set slots in its settings.")
    ready = services.require_ready()
    states = await _slot_states(services, ready)
    if request.query_params.get("fail_on_no_slot") == "1" and all(state.request_id is not None for state in states):
        raise Unavailable("No slot is free.")
    return json_response([_slot_json(state, ready) for state in states])


async def _slot_states(services: Services, ready: Ready) -> Sequence[SlotState]:
    """Those of a sleeper are idle and keep nothing: that is no reason to wake it, nor to ask again later."""
    if services.engine.state.name in ("SLEEPING", "WAKING"):
        return [SlotState(slot, None, 0, 0) for slot in range(ready.n_slots)]
    return (await services.engine.reports.stats()).slots


def _slot_json(state: SlotState, ready: Ready) -> dict[str, Any]:
    is_processing = state.request_id is not None
    return {
        "id": state.slot,
        "id_task": state.request_id if is_processing else -1,
        "n_ctx": ready.n_ctx,
        "speculative": ready.draft is not None,
        "is_processing": is_processing,
        "n_tokens": state.n_tokens,
        "n_past": state.n_past,
    }


@router.post(
    "/apply-template",
    **documented(ChatRequest, {"one message": {"messages": [{"role": "user", "content": "Hello"}]}}),
)
async def apply_template(request: Request) -> Response:
    """The prompt that a chat request becomes, and its tokens' count; nothing is generated."""
    services = services_of(request)
    body = await read_json(request, services.config.max_body_bytes)
    refuse_unavailable(body)
    fields = validate(ChatRequest, body, OPENAI_CHAT)
    services.require_ready()
    rendered = await Conversation(services, fields, caller_of(request)).render()
    await check_fields(services, fields, rendered)
    return json_response({"prompt": rendered.text, "n_tokens": len(rendered.tokens), "repairs": list(rendered.repairs)})
