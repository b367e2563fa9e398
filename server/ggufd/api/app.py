"""HTTP application: routes, middleware, and error handlers.

Made with what it needs; starts and stops nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ggufd import __version__
from ggufd.api import unprefixed
from ggufd.api.answer.sse import let_streams_finish
from ggufd.api.anthropic import errors as anthropic
from ggufd.api.anthropic import messages
from ggufd.api.batches import batches
from ggufd.api.batches import files as batch_files
from ggufd.api.batches.worker import BatchWorker
from ggufd.api.compat import kobold, ollama, ooba, tabby, vllm
from ggufd.api.embeddings import embeddings, rerank
from ggufd.api.http.auth import DOCS_FILES, KeyMiddleware
from ggufd.api.http.cors import CrossOriginMiddleware
from ggufd.api.http.error_shape import REQUEST_ID_HEADER, shape_of
from ggufd.api.http.json_response import error_response, json_response
from ggufd.api.http.pages import OriginMiddleware
from ggufd.api.http.paths import PathMiddleware
from ggufd.api.http.record import DISCONNECTED, RecordMiddleware, Sink, note_error, record_of
from ggufd.api.http.requestlog import log_crash, log_request
from ggufd.api.live import operations
from ggufd.api.live import requests as live_requests
from ggufd.api.live import stream as live_stream
from ggufd.api.live.collector import Collector
from ggufd.api.live.view import LiveMessages
from ggufd.api.llamacpp import adapters as lora_adapters
from ggufd.api.llamacpp import completion, infill, props, slots, tokens
from ggufd.api.llamacpp import errors as llamacpp
from ggufd.api.openai import chat, completions
from ggufd.api.openai import models as model_list
from ggufd.api.openai.responses import create, kept
from ggufd.api.ops import advice, debug, health, loading, queue
from ggufd.api.request.docs import Documentation
from ggufd.api.services.adapters import AdapterScales
from ggufd.api.services.response_store import ResponseStore
from ggufd.api.services.revocation import Revocations
from ggufd.api.services.services import EngineService, ModelSwitcher, Services, TextService
from ggufd.api.services.settings import ApiConfig
from ggufd.api.streams import conversations, routes
from ggufd.api.streams.store import StreamStore
from ggufd.api.web import front
from ggufd.batches.store import BatchStore
from ggufd.chat.advice.advisor import CacheAdvisor
from ggufd.errors import GgufdError, NotFound
from ggufd.keys.ring import KeyRing

logger = logging.getLogger(__name__)

_CLIENT_GONE = 499


def create_app(
    engine: EngineService,
    text: TextService,
    config: ApiConfig,
    models: ModelSwitcher | None = None,
    sinks: Sequence[Sink] = (),
) -> FastAPI:
    """The application over one engine and one text process; both are started and stopped by the caller.

    `models` may give it others later; `sinks` are told of every request that ended. Raises ConfigError when the file of
    stored responses or the folder of batches cannot be used.
    """
    let_streams_finish()
    # /docs with its scripts from here: a machine that serves a model often has no internet.
    app = FastAPIOffline(
        title="ggufd", version=__version__, redoc_url=None, redirect_slashes=False, static_url=DOCS_FILES
    )
    responses = ResponseStore(
        config.responses_path, max_count=config.max_responses, max_bytes=config.max_responses_bytes
    )
    revocations = Revocations(config.keys)
    services = Services(
        engine,
        text,
        config,
        AdapterScales(config),
        revocations=revocations,
        models=models,
        responses=responses,
        batches=None if config.batch_dir is None else _batch_store(config.batch_dir, config),
        advisor=CacheAdvisor(schedule=_call_later),
    )
    app.state.services = services
    app.state.streams = StreamStore(config.streams, config.keys)
    app.state.streams.export(services.metrics)
    if config.keys is not None:
        config.keys.watch(functools.partial(_forget_revoked, services.advisor, config.keys))
    if services.batches is not None:
        app.state.batch_worker = BatchWorker(app, services.batches, lambda: app.state.services)
    app.state.large_bodies = asyncio.Lock()
    collector = _collector(app)
    if models is not None:
        models.bind(functools.partial(_serve, app))
    app.openapi = Documentation(app, has_keys=config.keys is not None)  # type: ignore[method-assign]
    _add_routes(app, has_pages=config.ui)
    _add_error_handlers(app)
    if config.keys is not None:
        public = (health.METRICS,) if config.metrics_for == "everybody" else ()
        is_page = front.is_page if config.ui else None
        app.add_middleware(KeyMiddleware, ring=config.keys, public=public, is_page=is_page)
    if config.allowed_hosts is not None:
        app.add_middleware(OriginMiddleware, hosts=config.allowed_hosts, origins=config.cors_origins)
    if config.cors_origins:
        app.add_middleware(CrossOriginMiddleware, origins=config.cors_origins)
    app.add_middleware(PathMiddleware, root_path=config.root_path)
    app.add_middleware(
        RecordMiddleware,
        sinks=[log_request, services.metrics.observe, collector.observe, *sinks],
        shapes=[anthropic.SHAPE, llamacpp.SHAPE],
    )
    return app


def _collector(app: FastAPI) -> Collector:
    services: Services = app.state.services
    collector = Collector(lambda: app.state.services)
    if services.engine is not None:  # The documentation is made from an application without one.
        collector.serve(services.engine)
    services.activity.watch(collector.wake)
    app.state.live = live_stream.Live(collector, LiveMessages(collector))
    return collector


def _call_later(seconds: float, call: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(seconds, call)


def _forget_revoked(advisor: CacheAdvisor, keys: KeyRing) -> None:
    """Nothing stays of what somebody sent whose key has ended."""
    advisor.forget([owner for owner in advisor.owners if not keys.holds(bytes.fromhex(owner))])


def _batch_store(folder: Path, config: ApiConfig) -> BatchStore:
    return BatchStore(folder, config.batch_limits, keep_s=config.batch_keep_s)


def _serve(app: FastAPI, engine: EngineService, text: TextService, config: ApiConfig) -> None:
    """From the next request on; those under way keep the services that they began with."""
    app.state.services.advisor.forget_prompts()
    app.state.services = dataclasses.replace(
        app.state.services, engine=engine, text=text, config=config, adapters=AdapterScales(config)
    )
    app.state.live.collector.serve(engine)


def _add_routes(app: FastAPI, *, has_pages: bool) -> None:
    """Every route of the OpenAI family answers with and without its prefix: users forget it.

    `unprefixed` comes before them: it has the path that another family claims.
    """
    app.include_router(front.router)
    if has_pages:
        app.include_router(front.pages)
    app.include_router(unprefixed.router)
    app.include_router(health.router)
    app.include_router(debug.router)
    for router in (
        completions.router,
        chat.router,
        create.router,
        kept.router,
        messages.router,
        model_list.router,
        loading.router,
        queue.router,
        conversations.router,
        routes.router,
        advice.router,
        batch_files.router,
        batches.router,
    ):
        app.include_router(router, prefix="/v1")
        app.include_router(router, include_in_schema=False)
    for router in (live_stream.router, live_requests.router, operations.router):
        app.include_router(router, prefix="/v1")
    app.include_router(tokens.router)
    app.include_router(tokens.router, prefix="/v1", include_in_schema=False)
    families = (completion, infill, props, slots, lora_adapters, ooba, tabby, vllm, ollama, embeddings, rerank)
    for family in families:
        app.include_router(family.router)
    app.include_router(kobold.classic, prefix="/api/v1")
    app.include_router(kobold.classic, prefix="/api/latest", include_in_schema=False)
    app.include_router(kobold.extra, prefix="/api/extra")


def _add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(GgufdError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(ClientDisconnect, _on_gone)
    app.add_exception_handler(Exception, _on_crash)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GgufdError)
    note_error(request.scope, error.code)
    return error_response(error, request.scope)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """No such route, or not with this method."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405 and request.method == "OPTIONS":
        return Response(status_code=204, headers=headers)
    code = str(error.detail).lower().replace(" ", "_")
    note_error(request.scope, code)
    if error.status_code == 404:
        missing = NotFound(f"There is no route {request.method} {request.url.path}. See /docs.")
        return error_response(missing, request.scope)
    message = f"{request.method} {request.url.path}: {error.detail}."
    body = shape_of(request.scope).body(
        message, status=error.status_code, kind="invalid_request_error", param=None, code=code
    )
    return json_response(body, status=error.status_code, headers=headers)


async def _on_gone(request: Request, error: Exception) -> Response:
    """Nobody reads this; the status is for the log."""
    note_error(request.scope, DISCONNECTED)
    return Response(status_code=_CLIENT_GONE)


async def _on_crash(request: Request, error: Exception) -> Response:
    log_crash(logger, f"{request.method} {request.url.path[:60]!a} failed", error)
    failed = GgufdError("The server failed on this request. Its log says why.")
    response = error_response(failed, request.scope)
    response.headers[REQUEST_ID_HEADER] = record_of(request).request_id
    return response
