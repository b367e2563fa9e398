"""Embeddings under every family's route: not there yet, and saying so."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.errors import Unsupported

router = APIRouter(tags=["embeddings"])

_PATHS = (
    "/v1/embeddings",
    "/embeddings",
    "/embedding",
    "/api/embed",
    "/api/embeddings",
    "/api/extra/embeddings",
    "/v1/rerank",
    "/rerank",
)


async def refuse(request: Request) -> Response:
    """Say that this cannot be had here."""
    raise Unsupported("Embeddings and reranking are not available in this version of the server yet.")


for path in _PATHS:
    router.add_api_route(path, refuse, methods=["POST"], include_in_schema=False)
