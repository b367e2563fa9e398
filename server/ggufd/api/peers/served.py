"""`/peers/served`: what this server served each account, and what the others of its cluster did.

With both every server of a cluster knows who had how much of all of them: see `ggufd.engine.queueing.fairness`.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field, Strict
from starlette.responses import Response

from ggufd.api.http.body import read_json
from ggufd.api.http.json_response import json_response
from ggufd.api.request.validation import Body, validate
from ggufd.api.services.services import Services, services_of
from ggufd.api.services.settings import ApiConfig
from ggufd.errors import EngineDown
from ggufd.keys.principal import BACKGROUND

router = APIRouter(include_in_schema=False)

_MOST_TOKENS = 1e12
"""More was not served in the second between two posts: it would only keep an account from ever being served again."""

_Tokens = Annotated[float, Strict(), Field(ge=0, le=_MOST_TOKENS, allow_inf_nan=False)]


class ServedElsewhere(Body):
    """What others served each account since the last post, in generated tokens."""

    accounts: dict[str, _Tokens] = Field(max_length=4096)


@router.get("/served")
async def get_served(request: Request) -> Response:
    """What each of the last accounts was served since the start, in generated tokens, the latest last.

    Nothing while there is no engine; what begins at 0 again belongs to an engine that did.
    """
    return json_response({"accounts": await _served(services_of(request))})


async def _served(services: Services) -> dict[str, float]:
    try:
        state = await services.engine.reports.live_state()
    except EngineDown:
        return {}
    return {account: tokens for account, tokens in state.served if account != BACKGROUND}


@router.post("/served")
async def post_served(request: Request) -> Response:
    """Charge accounts what others served them; it changes who is next here while several accounts wait."""
    services = services_of(request)
    told = validate(
        ServedElsewhere, await read_json(request, services.config.max_body_bytes), {"accounts": ("accounts",)}
    )
    weights = _weights(services.config)
    services.engine.charge_elsewhere(
        [(account, tokens / weights.get(account, 1.0)) for account, tokens in told.accounts.items() if tokens]
    )
    return json_response({"charged": len(told.accounts)})


def _weights(config: ApiConfig) -> dict[str, float]:
    """Weights of the accounts: those of the keys that have their names; who has no key weighs 1."""
    return {key.name: key.limits.weight for key in config.keys or ()}
