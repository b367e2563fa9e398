"""What vLLM's and Aphrodite's clients ask besides OpenAI's routes; their `/tokenize` is in `tokens`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from server import __version__
from server.api.responses import json_response

router = APIRouter(tags=["vLLM"])


@router.get("/version")
async def version(request: Request) -> Response:
    """The server's version."""
    return json_response({"version": __version__})
