"""`/peers/served`: what this server served each account, and what the others of its cluster did.

With both every server of a cluster knows who had how much of all of them: see `ggufd.engine.queueing.fairness`. The
same goes for limits: what each account with limits uses of them here, and what it uses elsewhere, which counts here.
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
from ggufd.engine.messages.reports import LimitUse, UseElsewhere
from ggufd.errors import EngineDown
from ggufd.keys.principal import BACKGROUND

router = APIRouter(include_in_schema=False)

_MOST_TOKENS = 1e12
"""More was not served in the second between two posts: it would only keep an account from ever being served again."""

_Tokens = Annotated[float, Strict(), Field(ge=0, le=_MOST_TOKENS, allow_inf_nan=False)]


_MOST_SECONDS = 1e6
_MOST_ENTRIES = 1_000_000
_Entries = Annotated[int, Strict(), Field(ge=0, le=_MOST_ENTRIES)]


class LimitUsedElsewhere(Body):
    """What an account uses of its limits elsewhere.

    `used_s` is what it took of its tokens a minute since the last post, as the time in which these come again;
    `waiting` are requests, `running` the slots that it holds or may take there.
    """

    used_s: Annotated[float, Strict(), Field(ge=0, le=_MOST_SECONDS, allow_inf_nan=False)] = 0.0
    waiting: _Entries = 0
    running: _Entries = 0


class ServedElsewhere(Body):
    """What others served each account since the last post, in generated tokens, and what counts by limits there."""

    accounts: dict[str, _Tokens] = Field(max_length=4096)
    limits: dict[str, LimitUsedElsewhere] = Field(default_factory=dict, max_length=4096)


@router.get("/served")
async def get_served(request: Request) -> Response:
    """What each of the last accounts was served since the start, in generated tokens, the latest last.

    Nothing while there is no engine; what begins at 0 again belongs to an engine that did. `limits` has the accounts
    that have some.
    """
    services = services_of(request)
    served, standing = await _served(services)
    limits = {one.account: _use(one, standing) for one in services.engine.limit_use()}
    return json_response({"accounts": served, "limits": limits})


async def _served(services: Services) -> tuple[dict[str, float], dict[str, tuple[int, int]]]:
    """Tokens by account, and how many of its sequences run and wait for a slot."""
    try:
        state = await services.engine.reports.live_state()
    except EngineDown:
        return {}, {}
    served = {account: tokens for account, tokens in state.served if account != BACKGROUND}
    return served, {account: (running, waiting) for account, running, waiting in state.standing}


def _use(one: LimitUse, standing: dict[str, tuple[int, int]]) -> dict[str, float | int | None]:
    running, queued = standing.get(one.account, (0, 0))
    return {
        "used_s": one.used_s,
        "waiting": one.waiting,
        "running": running,
        "queued": queued,
        "max_running": one.max_running,
    }


@router.post("/served")
async def post_served(request: Request) -> Response:
    """Charge accounts what others served them; it changes who is next here while several accounts wait.

    What they use of their limits elsewhere counts here until the next post, or for five seconds.
    """
    services = services_of(request)
    told = validate(
        ServedElsewhere, await read_json(request, services.config.max_body_bytes), {"accounts": ("accounts",)}
    )
    weights = _weights(services.config)
    services.engine.charge_elsewhere(
        [(account, tokens / weights.get(account, 1.0)) for account, tokens in told.accounts.items() if tokens]
    )
    services.engine.count_elsewhere(
        [UseElsewhere(account, one.used_s, one.waiting, one.running) for account, one in told.limits.items()]
    )
    return json_response({"charged": len(told.accounts)})


def _weights(config: ApiConfig) -> dict[str, float]:
    """Weights of the accounts: those of the keys that have their names; who has no key weighs 1."""
    return {key.name: key.limits.weight for key in config.keys or ()}
