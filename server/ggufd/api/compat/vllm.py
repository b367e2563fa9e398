"""Routes of vLLM and Aphrodite besides OpenAI's; their `/tokenize` is in `tokens`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from ggufd import __version__
from ggufd.api.http.json_response import json_response
from ggufd.api.services.services import services_of

router = APIRouter(tags=["vLLM"])


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request) -> Response:
    """Facts that an evaluation harness needs to tokenize by `/tokenize`."""
    services = services_of(request)
    services.require_ready()
    info = services.text.info
    return json_response(
        {
            "tokenizer_class": "GGUF",
            "add_bos_token": info.adds_bos,
            "bos_token": info.bos_piece or None,
            "eos_token": info.eos_piece or None,
            "chat_template": info.chat_template or None,
        }
    )


@router.get("/version")
async def version(request: Request) -> Response:
    """The server's version."""
    return json_response({"version": __version__})
