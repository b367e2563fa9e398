"""HTTP application: services, routes, middleware and error handlers, put together.

Made with what it needs; starts and stops nothing.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from ggufd import __version__
from ggufd.api.answer.sse import let_streams_finish
from ggufd.api.anthropic import errors as anthropic
from ggufd.api.batches.worker import BatchWorker
from ggufd.api.error_handlers import add_error_handlers
from ggufd.api.http.auth import DOCS_FILES, KeyMiddleware
from ggufd.api.http.body_budget import MAX_BYTES, BodyBudget, BodyBudgetMiddleware
from ggufd.api.http.cors import CrossOriginMiddleware
from ggufd.api.http.pages import OriginMiddleware
from ggufd.api.http.paths import HeadMiddleware, PathMiddleware
from ggufd.api.http.record import RecordMiddleware, Sink
from ggufd.api.http.requestlog import log_request
from ggufd.api.live import stream as live_stream
from ggufd.api.live.collector import Collector
from ggufd.api.live.view import LiveMessages
from ggufd.api.llamacpp import errors as llamacpp
from ggufd.api.ops import health
from ggufd.api.peers.gate import PeerMiddleware
from ggufd.api.peers.state import PeerState
from ggufd.api.pool import beside, waiting
from ggufd.api.pool.gate import ModelGate
from ggufd.api.request.docs import Documentation
from ggufd.api.routing import add_routes
from ggufd.api.services.adapters import AdapterScales
from ggufd.api.services.images import ImageService
from ggufd.api.services.response_store import ResponseStore
from ggufd.api.services.revocation import Revocations
from ggufd.api.services.services import EngineService, ModelInstance, ModelSwitcher, Services, TextService
from ggufd.api.services.settings import ApiConfig
from ggufd.api.streams.store import StreamStore
from ggufd.api.web import front
from ggufd.batches.store import BatchStore
from ggufd.chat.advice.advisor import CacheAdvisor
from ggufd.keys.ring import KeyRing
from ggufd.model_pool.pool import ModelPool


def create_app(
    engine: EngineService,
    text: TextService,
    config: ApiConfig,
    models: ModelSwitcher | None = None,
    sinks: Sequence[Sink] = (),
    images: ImageService | None = None,
    pool: ModelPool | None = None,
    kept: Mapping[str, ModelInstance] | None = None,
) -> FastAPI:
    """The application over one engine and one text process; both are started and stopped by the caller.

    `models` may give it others later, `pool` has those that requests may name; `sinks` are told of every request that
    ended; `images` reads images, where the model has a projector; `kept` are the models that stay loaded beside, by
    name. Raises ConfigError when the file of stored responses or the folder of batches cannot be used.
    """
    let_streams_finish()
    # /docs with its scripts from here: a machine that serves a model often has no internet.
    app = FastAPIOffline(
        title="ggufd", version=__version__, redoc_url=None, redirect_slashes=False, static_url=DOCS_FILES
    )
    services = _services(engine, text, config, models, images, pool)
    held = {name: _beside(services, one) for name, one in (kept or {}).items()}
    services = app.state.services = dataclasses.replace(services, beside=held)
    app.state.streams = StreamStore(config.streams, config.keys)
    app.state.streams.export(services.metrics)
    if config.keys is not None:
        for one in services.instances:
            config.keys.watch(functools.partial(_forget_revoked, one.advisor, config.keys))
    if services.batches is not None:
        app.state.batch_worker = BatchWorker(app, services.batches, lambda: app.state.services)
    app.state.peers = PeerState()
    app.state.large_bodies = asyncio.Lock()
    app.state.body_budget = BodyBudget(max(MAX_BYTES, 2 * config.max_body_bytes))
    collector = _collector(app)
    if models is not None:
        models.bind(functools.partial(_serve, app))
    app.openapi = Documentation(app, has_keys=config.keys is not None)  # type: ignore[method-assign]
    add_routes(app, has_pages=config.ui, has_peers=config.peer_token is not None)
    add_error_handlers(app)
    if pool is not None:
        waiting.export_metrics(pool, services.metrics)
        beside.export_metrics(services, services.metrics)
        app.add_middleware(ModelGate, pool=pool)
    _add_middleware(app, config, [log_request, services.metrics.observe, collector.observe, *sinks])
    return app


def _services(
    engine: EngineService,
    text: TextService,
    config: ApiConfig,
    models: ModelSwitcher | None,
    images: ImageService | None,
    pool: ModelPool | None,
) -> Services:
    return Services(
        engine,
        text,
        config,
        AdapterScales(config),
        revocations=Revocations(config.keys),
        models=models,
        pool=pool,
        responses=ResponseStore(
            config.responses_path, max_count=config.max_responses, max_bytes=config.max_responses_bytes
        ),
        batches=None if config.batch_dir is None else _batch_store(config.batch_dir, config),
        advisor=CacheAdvisor(schedule=_call_later),
        images=images,
    )


def _beside(services: Services, one: ModelInstance) -> Services:
    """Services of a model that is loaded beside: what it is told of prompts is not to be compared with the other's."""
    return dataclasses.replace(services.of_model(one), advisor=CacheAdvisor(schedule=_call_later))


def _add_middleware(app: FastAPI, config: ApiConfig, sinks: Sequence[Sink]) -> None:
    """Add the layers around all routes, from the inside to the outside."""
    if config.keys is not None:
        public = (health.METRICS,) if config.metrics_for == "everybody" else ()
        is_page = front.is_page if config.ui else None
        app.add_middleware(KeyMiddleware, ring=config.keys, public=public, is_page=is_page)
    if config.allowed_hosts is not None:
        app.add_middleware(OriginMiddleware, hosts=config.allowed_hosts, origins=config.cors_origins)
    if config.cors_origins:
        app.add_middleware(CrossOriginMiddleware, origins=config.cors_origins)
    app.add_middleware(BodyBudgetMiddleware, budget=app.state.body_budget)
    app.add_middleware(HeadMiddleware)
    if config.peer_token is not None:
        app.add_middleware(PeerMiddleware, token=config.peer_token)
    app.add_middleware(RecordMiddleware, sinks=sinks, shapes=[anthropic.SHAPE, llamacpp.SHAPE])
    app.add_middleware(PathMiddleware, root_path=config.root_path)


def _collector(app: FastAPI) -> Collector:
    services: Services = app.state.services
    collector = Collector(lambda: app.state.services)
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


def _serve(
    app: FastAPI, engine: EngineService, text: TextService, config: ApiConfig, images: ImageService | None = None
) -> None:
    """From the next request on; those under way keep the services that they began with."""
    app.state.services.advisor.forget_prompts()
    app.state.services = dataclasses.replace(
        app.state.services, engine=engine, text=text, config=config, adapters=AdapterScales(config), images=images
    )
    app.state.live.collector.serve(engine)
