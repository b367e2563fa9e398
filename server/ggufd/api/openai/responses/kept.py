"""Stored responses: `GET` and `DELETE /v1/responses/{id}`, and their input items."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from starlette.responses import Response

from ggufd.api.http.json_response import json_response
from ggufd.api.openai.responses.items import Item
from ggufd.api.request.path_router import PathRouter
from ggufd.api.services.services import caller_of, services_of
from ggufd.api.streams.response import owner_of, store_of
from ggufd.api.streams.routes import next_after, read_id, resumed
from ggufd.errors import InvalidRequest, NotFound, Unsupported

router = PathRouter(tags=["OpenAI"])

_MAX_ITEMS = 100


@router.get("/responses/{response_id}")
async def get_response(request: Request, response_id: str) -> Response:
    """A stored response; with `stream` the events after number `starting_after` of a resumable one, as they come."""
    if request.query_params.get("stream") == "true":
        return _streamed_again(request, response_id)
    kept = await services_of(request).responses.get(caller_of(request).key_digest, response_id)
    return json_response(kept.response)


@router.delete("/responses/{response_id}")
async def delete_response(request: Request, response_id: str) -> Response:
    """Forget a stored response. What goes on from it cannot be gone on from any more."""
    await services_of(request).responses.delete(caller_of(request).key_digest, response_id)
    return json_response({"id": response_id, "object": "response", "deleted": True})


@router.get("/responses/{response_id}/input_items")
async def list_input_items(request: Request, response_id: str) -> Response:
    """Input items of a stored response, with the conversation before it; newest first unless `order` is `asc`."""
    query = request.query_params
    chain = await services_of(request).responses.chain(caller_of(request).key_digest, response_id)
    items = [item for kept in chain[:-1] for item in kept.items] + chain[-1].input
    if _one_of(query.get("order", "desc"), "order", "asc", "desc") == "desc":
        items.reverse()
    return json_response(_page(_after(items, query.get("after")), _limit(query.get("limit", "20"))))


def _streamed_again(request: Request, response_id: str) -> Response:
    """The rest of a resumable stream: the ids of a response's events are its sequence numbers."""
    try:
        stream = store_of(request).get(owner_of(caller_of(request)), response_id)
    except NotFound:
        raise Unsupported(
            "'stream': only a response that was streamed with 'resumable' set to true, lately, is streamed again. "
            "Read it whole.",
            param="stream",
        ) from None
    return resumed(request, stream, next_after(stream, read_id(request.query_params, "starting_after")))


def _page(items: list[Item], limit: int) -> dict[str, Any]:
    shown = items[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(items) > limit,
    }


def _after(items: list[Item], item_id: str | None) -> list[Item]:
    if item_id is None:
        return items
    for index, item in enumerate(items):
        if item["id"] == item_id:
            return items[index + 1 :]
    raise NotFound("'after': there is no item of this id in the list.", param="after")


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:9]) <= _MAX_ITEMS:
        raise InvalidRequest(f"'limit': expected a number from 1 to {_MAX_ITEMS}.", param="limit")
    return int(text)


def _one_of(text: str, name: str, *allowed: str) -> str:
    if text not in allowed:
        raise InvalidRequest(f"'{name}': expected one of {', '.join(allowed)}.", param=name)
    return text
