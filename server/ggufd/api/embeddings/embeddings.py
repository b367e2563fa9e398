"""Embedding routes of every API family, each with its own format of the answer."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BeforeValidator, Field, Strict, WithJsonSchema
from starlette.responses import Response

from ggufd.api.answer.generation import until_disconnect
from ggufd.api.embeddings.inputs import Inputs
from ggufd.api.embeddings.vectors import AdaptedFields, VectorOptions, numbers_of, vectors_of
from ggufd.api.http.body import JsonObject, read_json
from ggufd.api.http.json_response import dumps, json_response
from ggufd.api.request.chat.schemas import Prompt, read_prompts
from ggufd.api.request.docs import documented
from ggufd.api.request.fields import Aliases
from ggufd.api.request.sampling import Bool, Int
from ggufd.api.request.validation import validate
from ggufd.api.services.services import caller_of, services_of
from ggufd.engine.messages.events import Embedding
from ggufd.errors import Unsupported

router = APIRouter(tags=["embeddings"])

_INLINE = 20_000
"""So many numbers are written on the event loop; more would hold up everybody's stream."""

_NS = 1_000_000_000
_WIDEST_NORM = 64


class EmbeddingRequest(AdaptedFields):
    """OpenAI's request. `dimensions` cuts vectors of models that were trained for it."""

    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[Int, Field(ge=1)] | None = None
    truncate: Bool = False


class NativeEmbeddingRequest(AdaptedFields):
    """llama-server's request. `embd_normalize`: -1 none, 0 greatest is 32,760, 1 sum, 2 length, p the p-norm."""

    content: Inputs
    embd_normalize: Annotated[Int, Field(ge=-1, le=_WIDEST_NORM)] | None = None


def _read_texts(value: Any) -> tuple[Prompt, ...]:
    return () if value in ("", []) else read_prompts(value)


class OllamaEmbedRequest(AdaptedFields):
    """Ollama's request; what is too long is cut unless `truncate` is false."""

    input: Annotated[
        Any, BeforeValidator(_read_texts), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array"}]})
    ] = ()
    truncate: Bool = True
    dimensions: Annotated[Int, Field(ge=1)] | None = None


class OllamaEmbeddingsRequest(AdaptedFields):
    """Ollama's older request, of one text."""

    prompt: Annotated[str, Strict()] = ""


_NATIVE: Aliases = {"content": ("content", "input")}
_TEXTS = ["A first text.", "A second one."]


@router.post("/v1/embeddings", **documented(EmbeddingRequest, {"two texts": {"input": _TEXTS}}))
async def create_embeddings(request: Request) -> Response:
    """A vector of unit length for each text."""
    return await _openai(request, await _read(request))


@router.post("/embeddings", include_in_schema=False)
async def create_either(request: Request) -> Response:
    """OpenAI's under a base URL without /v1, with `input`; llama-server's, with `content`."""
    body = await _read(request)
    return await (_openai(request, body) if body.get("content") is None else _native(request, body))


@router.post("/embedding", **documented(NativeEmbeddingRequest, {"two texts": {"content": _TEXTS}}))
async def create_native(request: Request) -> Response:
    """llama-server's own: vectors in an array for each text, of every token where nothing is pooled."""
    return await _native(request, await _read(request))


@router.post("/api/extra/embeddings", include_in_schema=False)
async def create_kobold(request: Request) -> Response:
    """KoboldCpp's: OpenAI's shape, and what is too long is cut."""
    return await _openai(request, {"truncate": True, **await _read(request)})


@router.post("/api/embed", **documented(OllamaEmbedRequest, {"two texts": {"input": _TEXTS}}))
async def create_ollama(request: Request) -> Response:
    """Ollama's: a vector of unit length for each text."""
    start_ns = time.monotonic_ns()
    services, fields = services_of(request), validate(OllamaEmbedRequest, await _read(request), {})
    adapters = fields.adapters_of(services)
    options = VectorOptions(dimensions=fields.dimensions, truncates=fields.truncate, adapters=adapters)
    found = await _pooled(request, fields.input, options) if fields.input else []

    def answer() -> JsonObject:
        return {
            "model": services.config.model_id,
            "embeddings": [numbers_of(one)[0] for one in found],
            "total_duration": time.monotonic_ns() - start_ns,
            "load_duration": 0,
            "prompt_eval_count": sum(one.n_tokens for one in found),
        }

    return await _respond(found, answer)


@router.post("/api/embeddings", include_in_schema=False)
async def create_old_ollama(request: Request) -> Response:
    """Ollama's older route: the vector of one text."""
    fields = validate(OllamaEmbeddingsRequest, await _read(request), {})
    options = VectorOptions("prompt", truncates=True, adapters=fields.adapters_of(services_of(request)))
    found = await _pooled(request, [fields.prompt], options) if fields.prompt else []
    return json_response({"embedding": [number for one in found for number in numbers_of(one)[0]]})


async def _read(request: Request) -> JsonObject:
    return await read_json(request, services_of(request).config.max_body_bytes)


async def _openai(request: Request, body: Mapping[str, Any]) -> Response:
    services, fields = services_of(request), validate(EmbeddingRequest, body, {})
    adapters = fields.adapters_of(services)
    options = VectorOptions(dimensions=fields.dimensions, truncates=fields.truncate, adapters=adapters)
    found = await _pooled(request, fields.input, options)
    n_tokens = sum(one.n_tokens for one in found)

    def vector(one: Embedding) -> Any:
        return base64.b64encode(one.data).decode() if fields.encoding_format == "base64" else numbers_of(one)[0]

    def answer() -> JsonObject:
        return {
            "object": "list",
            "model": services.config.model_id,
            "data": [
                {"object": "embedding", "index": place, "embedding": vector(one)} for place, one in enumerate(found)
            ],
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }

    return await _respond(found, answer)


async def _native(request: Request, body: Mapping[str, Any]) -> Response:
    services, fields = services_of(request), validate(NativeEmbeddingRequest, body, _NATIVE)
    is_pooled = services.require_ready().embedding.pooling != "none"
    norm = services.config.output.embd_normalize if fields.embd_normalize is None else fields.embd_normalize
    options = VectorOptions(
        "content" if body.get("content") is not None else "input",
        norm=norm if is_pooled else -1,
        adapters=fields.adapters_of(services),
    )
    found = await until_disconnect(request, vectors_of(services, fields.content, caller_of(request), options))
    return await _respond(
        found, lambda: [{"index": place, "embedding": numbers_of(one)} for place, one in enumerate(found)]
    )


async def _pooled(request: Request, inputs: Sequence[Prompt], options: VectorOptions) -> list[Embedding]:
    """One vector of each input, for families that know no other."""
    services = services_of(request)
    if services.require_ready().embedding.pooling == "none":
        raise Unsupported(
            "This server makes a vector of every token (--pooling none). Ask /embedding for them, or start it with "
            "--pooling mean."
        )
    return await until_disconnect(request, vectors_of(services, inputs, caller_of(request), options))


async def _respond(found: Sequence[Embedding], answer: Callable[[], Any]) -> Response:
    """The answer as JSON, written on a thread when it is long."""
    if sum(len(one.data) for one in found) // 4 <= _INLINE:
        return json_response(answer())
    return Response(await asyncio.to_thread(lambda: dumps(answer())), media_type="application/json")
