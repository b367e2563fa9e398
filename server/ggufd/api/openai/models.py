"""`GET /v1/models`: the known models, and the loaded one with each LoRA adapter."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from starlette.responses import Response

from ggufd.api.answer.model_card import model_json
from ggufd.api.http.json_response import json_response
from ggufd.api.pool.listing import model_card, model_cards
from ggufd.api.request.path_router import PathRouter
from ggufd.api.services.services import Services, services_of
from ggufd.errors import NotFound

router = PathRouter(tags=["OpenAI"])


@router.get("/models")
async def list_models(request: Request) -> Response:
    """The known models, and the loaded ones with each LoRA adapter. `status` and `plan` are told of several models."""
    services = services_of(request)
    adapted = [_adapted_json(one, name) for one in services.instances for name in one.adapters.model_names]
    return json_response({"object": "list", "data": [*model_cards(request), *adapted]})


@router.get("/models/{model_id:path}")
async def get_model(request: Request, model_id: str) -> Response:
    """One model by its id."""
    services = services_of(request)
    for one in services.instances:
        if model_id in one.adapters.model_names:
            return json_response(_adapted_json(one, model_id))
    if (card := model_card(request, model_id)) is None:
        raise NotFound(
            f"There is no model {model_id[:100]!r} here. This server has '{services.config.model_id}'.", param="model"
        )
    return json_response(card)


def _adapted_json(services: Services, name: str) -> dict[str, Any]:
    """The model under an adapter, which is asked for by this name."""
    return {**model_json(services), "id": name, "aliases": [], "parent": services.config.model_id}
