"""llama-server's `/lora-adapters`: the loaded LoRA adapters and their default scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from ggufd.api.http.auth import admin_only
from ggufd.api.http.body import read_array
from ggufd.api.http.json_response import json_response
from ggufd.api.request.lora import AdapterScale
from ggufd.api.request.validation import validate
from ggufd.api.services.services import services_of
from ggufd.errors import InvalidRequest

router = APIRouter(tags=["llama.cpp"])


@router.get("/lora-adapters")
async def list_adapters(request: Request) -> Response:
    """The loaded adapters and their default scales."""
    return json_response(services_of(request).adapters.as_json())


@router.post("/lora-adapters", include_in_schema=False, dependencies=[Depends(admin_only)])
async def set_adapters(request: Request) -> Response:
    """Set the default scales of all adapters: a list of `id` and `scale`."""
    services = services_of(request)
    items = await read_array(request, services.config.max_body_bytes)
    services.adapters.set_scales([_scale_of(place, item) for place, item in enumerate(items)])
    return json_response({"success": True})


def _scale_of(place: int, item: Any) -> AdapterScale:
    where = f"[{place}]"
    if not isinstance(item, Mapping):
        raise InvalidRequest(f"'{where}': expected an object with 'id' and 'scale'.", param=where)
    return validate(AdapterScale, item, {}, where=where)
