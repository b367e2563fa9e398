"""text-generation-webui's internal routes: the model's name, tokens, and the stop button."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Strict, WithJsonSchema
from starlette.responses import Response

from ggufd.api.answer.counting import chat_tokens, shown_tokens
from ggufd.api.http.body import read_json
from ggufd.api.http.json_response import json_response, list_response
from ggufd.api.request.docs import documented
from ggufd.api.request.sampling import Int
from ggufd.api.request.validation import Body, validate
from ggufd.api.services.services import caller_of, services_of
from ggufd.engine.queueing.validation import check_tokens
from ggufd.errors import InvalidRequest

router = APIRouter(prefix="/v1/internal", tags=["text-generation-webui"])

_TEXT = {"text": {"text": "Hello world"}}


class TextRequest(Body):
    """A text to be counted, or messages."""

    text: Annotated[str, Strict()] | None = None
    messages: Annotated[list[Any], WithJsonSchema({"type": "array", "items": {"type": "object"}})] | None = None


class TokensRequest(Body):
    """Token ids to turn into text."""

    tokens: list[Int]


@router.get("/model/info")
async def model_info(request: Request) -> Response:
    """The model's name."""
    services = services_of(request)
    loras = services.adapters.names
    return json_response({"model_name": services.config.model_id, "lora_names": loras, "loader": "llama.cpp"})


@router.get("/model/list")
async def model_list(request: Request) -> Response:
    """The names of the models that there are: one."""
    return json_response({"model_names": [services_of(request).config.model_id]})


async def _encoded(request: Request) -> list[int]:
    services = services_of(request)
    fields = validate(TextRequest, await read_json(request, services.config.max_body_bytes), {})
    services.require_ready()
    if fields.messages is not None:
        return shown_tokens(await chat_tokens(services, fields.messages, caller_of(request).principal))
    if fields.text is None:
        raise InvalidRequest("'text': is required but missing.", param="text")
    return await services.text.encode(fields.text, add_special=False)


@router.post("/encode", **documented(TextRequest, _TEXT))
async def encode(request: Request) -> Response:
    """A text's tokens, without BOS, or those of a conversation in the model's template."""
    tokens = await _encoded(request)
    return await list_response("tokens", tokens, {"length": len(tokens)})


@router.post("/token-count", **documented(TextRequest, _TEXT))
async def token_count(request: Request) -> Response:
    """Number of tokens of a text, or of a conversation in the model's template."""
    return json_response({"length": len(await _encoded(request))})


@router.post("/decode", **documented(TokensRequest, {"tokens": {"tokens": [1, 2]}}))
async def decode(request: Request) -> Response:
    """The text of tokens."""
    services = services_of(request)
    fields = validate(TokensRequest, await read_json(request, services.config.max_body_bytes), {})
    check_tokens(fields.tokens, services.require_ready().model.n_vocab, "tokens")
    return json_response({"text": await services.text.decode(fields.tokens)})


@router.post("/stop-generation", include_in_schema=False)
async def stop_generation(request: Request) -> Response:
    """End what the caller has under way."""
    for work in services_of(request).activity.of(caller_of(request)):
        work.abort()
    return json_response("OK")
