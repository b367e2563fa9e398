"""tabbyAPI's routes: the loaded model and tokens."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import WithJsonSchema
from starlette.responses import Response

from ggufd.api.answer.counting import chat_tokens, shown_tokens
from ggufd.api.answer.model_card import model_json
from ggufd.api.http.body import read_json
from ggufd.api.http.json_response import json_response, list_response
from ggufd.api.pool.listing import model_cards
from ggufd.api.request.docs import documented
from ggufd.api.request.sampling import Bool, Int
from ggufd.api.request.validation import Body, validate
from ggufd.api.services.services import caller_of, services_of
from ggufd.engine.queueing.validation import check_tokens
from ggufd.errors import InvalidRequest

router = APIRouter(prefix="/v1", tags=["tabbyAPI"])


class EncodeRequest(Body):
    """A text, or messages. With `encode_special_tokens` the texts of control tokens in a text become these tokens."""

    text: Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array"}]})]
    add_bos_token: Bool = True
    encode_special_tokens: Bool = True


class DecodeRequest(Body):
    """Token ids to turn into text."""

    tokens: list[Int]


@router.get("/model")
async def model(request: Request) -> Response:
    """The loaded model and its context."""
    services = services_of(request)
    ready = services.require_ready()
    parameters = {
        "max_seq_len": ready.n_ctx,
        "max_batch_size": ready.n_slots,
        "prompt_template": "from the model file" if services.text.info.chat_template else None,
    }
    return json_response({**model_json(services), "parameters": parameters})


@router.get("/model/list")
async def model_list(request: Request) -> Response:
    """The models that there are."""
    return json_response({"object": "list", "data": model_cards(request)})


@router.post(
    "/token/encode",
    **documented(EncodeRequest, {"without BOS": {"text": "Hello world", "add_bos_token": False}}),
)
async def encode(request: Request) -> Response:
    """Tokens of a text, or of a conversation in the model's template; of each row of an image -1."""
    services = services_of(request)
    fields = validate(EncodeRequest, await read_json(request, services.config.max_body_bytes), {})
    services.require_ready()
    if isinstance(fields.text, list):
        tokens = shown_tokens(await chat_tokens(services, fields.text, caller_of(request).principal))
        return await list_response("tokens", tokens, {"length": len(tokens)})
    if not isinstance(fields.text, str):
        raise InvalidRequest("'text': expected a string or an array of messages.", param="text")
    tokens = await services.text.encode(
        fields.text, add_special=fields.add_bos_token, parse_special=fields.encode_special_tokens
    )
    return await list_response("tokens", tokens, {"length": len(tokens)})


@router.post("/token/decode", **documented(DecodeRequest, {"tokens": {"tokens": [1, 2]}}))
async def decode(request: Request) -> Response:
    """The text of tokens."""
    services = services_of(request)
    fields = validate(DecodeRequest, await read_json(request, services.config.max_body_bytes), {})
    check_tokens(fields.tokens, services.require_ready().model.n_vocab, "tokens")
    return json_response({"text": await services.text.decode(fields.tokens)})
