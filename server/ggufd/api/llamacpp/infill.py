"""`POST /infill`: fill-in-the-middle for editors; llama-server's names, the answer is a completion's."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field, Strict, WithJsonSchema
from starlette.responses import Response

from ggufd.api.http.body import read_json
from ggufd.api.llamacpp.completion import NativeRequest, answer_native
from ggufd.api.request.docs import documented
from ggufd.api.request.fields import LLAMACPP, LLAMACPP_UNSET
from ggufd.api.request.requests import refuse_unavailable
from ggufd.api.request.validation import Body, validate
from ggufd.api.services.services import Services, services_of
from ggufd.errors import Unsupported

router = APIRouter(tags=["llama.cpp"])


class File(Body):
    """Another file, as context."""

    text: Annotated[str, Strict()]
    filename: Annotated[str, Strict()] = "tmp"


_FILES = {
    "type": "array",
    "items": {"type": "object", "properties": {name: {"type": "string"} for name in ("filename", "text")}},
}


class InfillRequest(Body):
    """`prompt` is what was typed behind the prefix. All fields of `/completion` are taken besides."""

    input_prefix: Annotated[str, Strict()]
    input_suffix: Annotated[str, Strict()]
    input_extra: Annotated[tuple[File, ...], Field(fail_fast=True), WithJsonSchema(_FILES)] = ()
    prompt: Annotated[str, Strict()] = ""


_EXAMPLE = {"input_prefix": "def add(a, b):\n    return ", "input_suffix": "\n\nprint(add(1, 2))\n", "n_predict": 16}


@router.post("/infill", **documented(InfillRequest, {"a function": _EXAMPLE}, streams=True))
async def infill(request: Request) -> Response:
    """Write what stands between the prefix and the suffix. What does not fit loses what lies farthest from there."""
    services = services_of(request)
    body = await read_json(request, services.config.max_body_bytes)
    refuse_unavailable(body)
    fields = validate(InfillRequest, body, {})
    completion = validate(NativeRequest, {**body, "prompt": ""}, LLAMACPP, unset=LLAMACPP_UNSET)
    services.require_ready()
    if not services.text.info.has_infill:
        raise Unsupported("This model has no infill tokens, so it cannot write between two texts.")
    tokens = await services.text.encode_infill(
        fields.input_prefix + fields.prompt,
        fields.input_suffix,
        [(file.filename, file.text) for file in fields.input_extra],
        _room(services, completion),
    )
    return await answer_native(request, completion.model_copy(update={"prompt": (tuple(tokens),)}))


def _room(services: Services, completion: NativeRequest) -> int:
    """Tokens that a prompt may have beside its answer; of no known length, a quarter of the context is kept for it."""
    n_ctx = services.require_ready().n_ctx
    return n_ctx - min(completion.max_tokens or n_ctx // 4, n_ctx // 2)
