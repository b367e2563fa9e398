"""`GET /v1/cache/advice`: what keeps a client's chats from reusing what was computed, and what to change there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ggufd.api.http.json_response import json_response
from ggufd.api.services.caller import Caller
from ggufd.api.services.services import Services, caller_of, services_of
from ggufd.chat.advice.evidence import CacheFinding
from ggufd.chat.advice.sentences import SENTENCES

router = APIRouter(tags=["operations"])


@router.get("/cache/advice")
async def get_cache_advice(request: Request) -> Response:
    """Findings in the caller's own chats, with words of them; with an admin's key everybody's, those without words."""
    services = services_of(request)
    findings = list(_findings(services, caller_of(request)))
    config = services.config
    return json_response(
        {"object": "list", "enabled": config.cache_advice, "repairs": list(config.cache_repairs), "data": findings}
    )


def _findings(services: Services, caller: Caller) -> Iterator[dict[str, Any]]:
    for finding in services.advisor.findings(caller.owner):
        quote = {"before": finding.was, "now": finding.now}
        yield {**_json(finding), "key": caller.principal.name or None, "own": True, "quote": quote}
    if caller.is_admin:
        names = {key.digest.hex(): key.name for key in services.config.keys or ()}
        for owner in services.advisor.owners:
            for finding in services.advisor.findings(owner) if owner != caller.owner else ():
                yield {**_json(finding), "key": names.get(owner), "own": False, "quote": None}


def _json(finding: CacheFinding) -> dict[str, Any]:
    """Costs are means over the turns that had it."""
    return {
        "object": "cache.advice",
        "class": finding.cause.value,
        "position": finding.position,
        "prompt_tokens": finding.prompt_tokens,
        "share": round(finding.share, 4),
        "message": finding.message,
        "role": finding.role,
        "turns": finding.turns,
        "tokens_per_turn": round(finding.tokens / finding.turns),
        "seconds_per_turn": round(finding.seconds / finding.turns, 3),
        "since": int(finding.since),
        "last": int(finding.last),
        "advice": SENTENCES[finding.cause],
    }
