"""llama-server's router: `POST /models/load` and `POST /models/unload`, which answer at once; `GET /models` tells more.

`POST /v1/models/load` is ours, and tells how far it is.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from ggufd.api.http.auth import admin_only
from ggufd.api.http.body import read_json
from ggufd.api.http.json_response import json_response
from ggufd.api.services.services import ModelSwitcher, services_of
from ggufd.errors import GgufdError, InvalidRequest, NotFound

router = APIRouter(tags=["llama-server"])


@router.post("/models/unload", include_in_schema=False, dependencies=[Depends(admin_only)])
async def unload(request: Request) -> Response:
    """Unload the model now; the next request for it loads it again. Refused (503) while requests are under way."""
    services = services_of(request)
    refuse_forms(request)
    body = await read_json(request, services.config.max_body_bytes)
    asked = body.get("model")
    known = None if services.pool is None or not isinstance(asked, str) else services.pool.catalogue.find(asked)
    if known is not None and known.name in services.beside:
        raise InvalidRequest(
            f"'{known.name}' stays loaded: [models.{known.name}] in the settings says keep_loaded.", param="model"
        )
    is_served = asked in services.config.model_names or (known and known.name == services.config.model_id)
    if not is_served:
        if known is None:
            raise NotFound(f"There is no model {str(asked)[:100]!r} here. GET /v1/models lists those that are known.")
        raise InvalidRequest(f"'{known.name}' is not loaded.", param="model")
    services.engine.sleep()
    return json_response({"success": True})


def refuse_forms(request: Request) -> None:
    """Raises InvalidRequest unless JSON is sent as such: a page in somebody's browser could send a form unasked."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise InvalidRequest("Send this request with the header 'Content-Type: application/json'.")


async def begin_load(models: ModelSwitcher, settings: dict[str, Any]) -> Response:
    """Begin a change of the model, and say so. Raises what is seen to be wrong before anything is disturbed."""
    begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def report(stage: str, share: float | None) -> None:
        if not begun.done():
            begun.set_result(None)

    change = asyncio.ensure_future(models.change(settings, report))
    # What it ends with is in the log, and in the list of models.
    change.add_done_callback(lambda done: None if done.cancelled() else done.exception())
    await asyncio.wait({change, begun}, return_when=asyncio.FIRST_COMPLETED)
    if change.done() and isinstance(error := change.exception(), GgufdError):
        raise error
    return json_response({"success": True})
