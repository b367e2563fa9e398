"""`POST /tokenize` and `/detokenize` in llama-server's shapes, with the counts that other families' clients read."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Strict
from starlette.responses import Response

from ggufd.api.answer.counting import chat_tokens, shown_tokens
from ggufd.api.http.body import read_json
from ggufd.api.http.json_response import json_response, list_response
from ggufd.api.request.docs import documented
from ggufd.api.request.fields import Aliases
from ggufd.api.request.prompts import encode_mixed, read_media_prompt
from ggufd.api.request.sampling import Bool, Int
from ggufd.api.request.validation import Body, validate
from ggufd.api.services.services import Services, caller_of, services_of
from ggufd.engine.queueing.validation import check_tokens
from ggufd.errors import InvalidRequest
from ggufd.keys.principal import Principal

router = APIRouter(tags=["tokens"])

_TOKENIZE: Aliases = {"add_special": ("add_special", "add_special_tokens")}


class TokenizeRequest(Body):
    """`content`, or `prompt` as vLLM's clients call it. With `with_pieces` tokens come with their texts."""

    content: Annotated[str, Strict()]
    add_special: Bool = False
    parse_special: Bool = True
    with_pieces: Bool = False


class DetokenizeRequest(Body):
    """Token ids to turn into text."""

    tokens: list[Int]


@router.post("/tokenize", **documented(TokenizeRequest, {"text": {"content": "Hello world"}}))
async def tokenize(request: Request) -> Response:
    """A text's tokens, without BOS unless `add_special` is set."""
    services = services_of(request)
    body = await read_json(request, services.config.max_body_bytes)
    if _is_chat(body):
        return await _count_chat(services, body, caller_of(request).principal)
    media = next((body[name] for name in ("content", "prompt") if isinstance(body.get(name), Mapping)), None)
    fields = validate(TokenizeRequest, _with_content(body) if media is None else {**body, "content": ""}, _TOKENIZE)
    services.require_ready()
    if media is not None:
        return await _tokenize_media(services, media, fields, caller_of(request).principal)
    tokens = await services.text.encode(
        fields.content, add_special=fields.add_special, parse_special=fields.parse_special
    )
    read = functools.partial(_with_pieces, services) if fields.with_pieces else None
    return await list_response("tokens", tokens, _counts(services, tokens), read)


def _counts(services: Services, tokens: Sequence[int]) -> dict[str, int]:
    return {"count": len(tokens), "length": len(tokens), "max_model_len": services.require_ready().n_ctx}


def _is_chat(body: Mapping[str, Any]) -> bool:
    return body.get("messages") is not None and body.get("content") is None and body.get("prompt") is None


async def _count_chat(services: Services, body: Mapping[str, Any], principal: Principal) -> Response:
    """vLLM's other form: the tokens of a conversation in the model's template."""
    tokens = shown_tokens(await chat_tokens(services, body["messages"], principal))
    return await list_response("tokens", tokens, _counts(services, tokens))


async def _tokenize_media(
    services: Services, media: Mapping[str, Any], fields: TokenizeRequest, principal: Principal
) -> Response:
    """llama-server's prompt with images: -1 stands for each of their rows, as there."""
    if not isinstance(media.get("prompt_string"), str):
        raise InvalidRequest("'content': expected a string, or an object with 'prompt_string'.", param="content")
    prompt = await encode_mixed(services, read_media_prompt(media, "content"), principal, add_bos=fields.add_special)
    tokens = shown_tokens(prompt.tokens)
    read = functools.partial(_with_pieces, services) if fields.with_pieces else None
    return await list_response("tokens", tokens, _counts(services, tokens), read)


def _with_content(body: Mapping[str, Any]) -> Mapping[str, Any]:
    if body.get("content") is None and isinstance(body.get("prompt"), str):
        return {**body, "content": body["prompt"]}
    return body


async def _with_pieces(services: Services, tokens: Sequence[int]) -> list[dict[str, Any]]:
    pieces = iter(await services.text.pieces([token for token in tokens if token >= 0]))
    return [{"id": token, "piece": _piece(next(pieces)) if token >= 0 else ""} for token in tokens]


def _piece(piece: bytes) -> str | list[int]:
    """Text, or the bytes where they are no whole characters."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


@router.post("/detokenize", **documented(DetokenizeRequest, {"tokens": {"tokens": [1, 2, 3]}}))
async def detokenize(request: Request) -> Response:
    """The text of tokens."""
    services = services_of(request)
    body = await read_json(request, services.config.max_body_bytes)
    fields = validate(DetokenizeRequest, body, {})
    check_tokens(fields.tokens, services.require_ready().model.n_vocab, "tokens")
    text = await services.text.decode(fields.tokens)
    return json_response({"content": text, "prompt": text})
