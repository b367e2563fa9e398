"""`GET /v1/models`: the one model, under the name that was configured or the file's, alone and with each adapter."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ggufd.api.http.json_response import json_response
from ggufd.api.services.services import Services, services_of
from ggufd.engine.messages.messages import DraftInfo
from ggufd.errors import NotFound

router = APIRouter(tags=["OpenAI"])


@router.get("/models")
async def list_models(request: Request) -> Response:
    """The model that is served, and the same with each LoRA adapter."""
    services = services_of(request)
    adapted = [_adapted_json(services, name) for name in services.adapters.model_names]
    return json_response({"object": "list", "data": [model_json(services), *adapted]})


@router.get("/models/{model_id:path}")
async def get_model(request: Request, model_id: str) -> Response:
    """One model by its id."""
    services = services_of(request)
    if model_id in services.adapters.model_names:
        return json_response(_adapted_json(services, model_id))
    if model_id not in (services.config.model_id, *services.config.model_aliases):
        raise NotFound(
            f"There is no model {model_id[:100]!r} here. This server has '{services.config.model_id}'.", param="model"
        )
    return json_response(model_json(services))


def model_json(services: Services) -> dict[str, Any]:
    """The model as OpenAI lists it; `meta` as llama-server does and some more, once it is loaded."""
    config = services.config
    return {
        "id": config.model_id,
        "object": "model",
        "created": config.created,
        "owned_by": "ggufd",
        "aliases": list(config.model_aliases),
        "meta": _meta(services),
    }


def _adapted_json(services: Services, name: str) -> dict[str, Any]:
    """The model under an adapter, which is asked for by this name."""
    return {**model_json(services), "id": name, "aliases": [], "parent": services.config.model_id}


def _meta(services: Services) -> dict[str, Any] | None:
    ready = services.engine.ready
    if ready is None:
        return None
    model = ready.model
    return {
        "name": model.name,
        "architecture": model.architecture,
        "ftype": model.ftype,
        "size": model.size_bytes,
        "n_params": model.n_params,
        "vocab_type": model.vocab_type,
        "n_vocab": model.n_vocab,
        "n_embd": model.n_embd,
        "n_layer": model.n_layer,
        "n_expert": model.number("expert_count"),
        "n_expert_used": model.number("expert_used_count"),
        "n_ctx": ready.n_ctx,
        "n_ctx_train": model.n_ctx_train,
        "n_slots": ready.n_slots,
        "draft": _draft_json(ready.draft),
    }


def _draft_json(draft: DraftInfo | None) -> dict[str, Any] | None:
    """The draft model that guesses; None where there is none."""
    if draft is None:
        return None
    return {
        "name": draft.name,
        "ftype": draft.ftype,
        "size": draft.size_bytes,
        "n_params": draft.n_params,
        "n_ctx": draft.n_ctx,
        "n_gpu_layers": draft.n_gpu_layers,
    }
