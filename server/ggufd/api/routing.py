"""Table of routes: which router answers under which prefixes."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute

from ggufd.api import unprefixed
from ggufd.api.anthropic import messages
from ggufd.api.batches import batches
from ggufd.api.batches import files as batch_files
from ggufd.api.compat import kobold, ollama, ooba, tabby, vllm
from ggufd.api.embeddings import embeddings, rerank
from ggufd.api.live import operations
from ggufd.api.live import requests as live_requests
from ggufd.api.live import stream as live_stream
from ggufd.api.llamacpp import adapters as lora_adapters
from ggufd.api.llamacpp import completion, infill, props, slots, tokens
from ggufd.api.openai import chat, completions
from ggufd.api.openai import models as model_list
from ggufd.api.openai.responses import create, kept
from ggufd.api.ops import advice, debug, health, loading, queue
from ggufd.api.pool import router as llama_router
from ggufd.api.streams import conversations, routes
from ggufd.api.web import front


def add_routes(app: FastAPI, *, has_pages: bool, has_peers: bool = False) -> None:
    """Every route of the server; those for a cluster where it belongs to one."""
    app.router.routes.extend(_table(has_pages=has_pages))
    if has_peers:
        # They read files of chats, for which numpy is loaded: nobody else's HTTP side needs that.
        from ggufd.api.peers import chats, load, served

        for router in (load.router, served.router, chats.router):
            app.include_router(router, prefix="/peers")


@functools.cache
def _table(*, has_pages: bool) -> Sequence[BaseRoute]:
    """Table of all routes. It depends on nothing else, and FastAPI takes longer to work it out than to answer.

    Every route of the OpenAI family answers with and without its prefix: users forget it. `unprefixed` comes before
    them: it has the path that another family claims.
    """
    table = APIRouter()
    table.include_router(front.router)
    if has_pages:
        table.include_router(front.pages)
    table.include_router(unprefixed.router)
    table.include_router(health.router)
    table.include_router(debug.router)
    for router in (
        completions.router,
        chat.router,
        create.router,
        kept.router,
        messages.router,
        model_list.router,
        loading.router,
        llama_router.router,
        queue.router,
        conversations.router,
        routes.router,
        advice.router,
        batch_files.router,
        batches.router,
    ):
        table.include_router(router, prefix="/v1")
        table.include_router(router, include_in_schema=False)
    for router in (live_stream.router, live_requests.router, operations.router):
        table.include_router(router, prefix="/v1")
    table.include_router(tokens.router)
    table.include_router(tokens.router, prefix="/v1", include_in_schema=False)
    families = (completion, infill, props, slots, lora_adapters, ooba, tabby, vllm, ollama, embeddings, rerank)
    for family in families:
        table.include_router(family.router)
    table.include_router(kobold.classic, prefix="/api/v1")
    table.include_router(kobold.classic, prefix="/api/latest", include_in_schema=False)
    table.include_router(kobold.extra, prefix="/api/extra")
    return table.routes
