"""Drain, sleep and plan, for admins: `/v1/drain`, `/v1/sleep` and `/v1/models/plan`.

As JSON only, as for a change of the model: a form in somebody's browser cannot send it unasked.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from ggufd.api.http.auth import admin_only
from ggufd.api.http.body import JsonObject, read_json
from ggufd.api.http.json_response import json_response
from ggufd.api.ops.loading import LoadRequest
from ggufd.api.request.docs import documented
from ggufd.api.request.validation import Body
from ggufd.api.services.services import Services, services_of
from ggufd.errors import InvalidRequest, Unsupported

router = APIRouter(tags=["operations"], dependencies=[Depends(admin_only)])


class Nothing(Body):
    """Empty object."""


async def _body(request: Request) -> JsonObject:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise InvalidRequest("Send this request with the header 'Content-Type: application/json' and a body, as '{}'.")
    return await read_json(request, services_of(request).config.max_body_bytes)


async def _empty_body(request: Request) -> None:
    for name in await _body(request):
        raise InvalidRequest(f"'{name[:40]}': expected an empty object; there is nothing to set.", param=name[:40])


def _state(services: Services) -> dict[str, Any]:
    engine = services.engine
    return {"state": engine.state.name.lower(), "running": engine.n_running, "waiting": engine.n_waiting}


@router.post("/drain", **documented(Nothing, {"drain": {}}))
async def drain(request: Request) -> Response:
    """Take no new requests (503) until `DELETE /v1/drain`; those that run or wait are served. Body: `{}`.

    `/health` and `/ready` say `draining`, so that a proxy sends requests elsewhere. The answer says how many are left.
    Another model that is loaded takes requests again.
    """
    await _empty_body(request)
    for one in services_of(request).instances:
        one.engine.intake.pause()
    return json_response(_state(services_of(request)))


@router.delete("/drain")
async def end_drain(request: Request) -> Response:
    """Take requests again."""
    for one in services_of(request).instances:
        one.engine.intake.resume()
    return json_response(_state(services_of(request)))


@router.post("/sleep", **documented(Nothing, {"sleep": {}}))
async def sleep(request: Request) -> Response:
    """Unload the model now; the next request loads it again. Refused (503) while requests are under way. Body: `{}`.

    What the slots keep is lost, unless `--cache-disk` keeps it.
    """
    await _empty_body(request)
    services_of(request).engine.sleep()
    return json_response(_state(services_of(request)))


@router.post("/models/plan", **documented(LoadRequest, {"a file": {"model": "another.gguf", "ctx_size": 8192}}))
async def plan(request: Request) -> Response:
    """What `ggufd plan --json` says of a model, without loading it. The body is that of `/v1/models/load`.

    Memory that the served model takes counts as taken, though loading another one frees it.
    """
    body, services = await _body(request), services_of(request)
    body.pop("stream", None)
    if services.models is None:
        raise Unsupported("This server cannot change its model.")
    return json_response(await services.models.plan(body))
