"""`POST /completions` without a prefix: OpenAI's where the body names a model, else llama-server's own.

Two families claim the path. llama-server has its own completion there; users of OpenAI's clients leave out the `/v1` of
the address. Those clients always name a model, and who writes for llama-server has none to name.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from ggufd.api.http.body import read_json
from ggufd.api.llamacpp import completion
from ggufd.api.openai import completions
from ggufd.api.services.services import services_of

router = APIRouter()


@router.post("/completions", include_in_schema=False)
async def create_completion(request: Request) -> Response:
    """Continue a text, in the shape of the family that asks."""
    body = await read_json(request, services_of(request).config.max_body_bytes)
    answer = completions.answer_completion if "model" in body else completion.answer_body
    return await answer(request, body)
