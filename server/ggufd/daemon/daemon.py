"""Server lifecycle: startup, serving, drain.

The order matters. Sockets are bound first; the engine's process starts before FastAPI is imported, so that both
load in parallel; the app answers 503 until the model is loaded. The first signal drains: new requests are refused,
running ones may finish until a deadline, and lines of batches end at once, to be computed at the next start. The second
one ends everything at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ggufd import console
from ggufd.daemon.kept import KeptModels
from ggufd.daemon.known_models import KnownModels, find_known
from ggufd.daemon.pooled import PooledModels
from ggufd.daemon.served import FoundModel, Served, ServedModels
from ggufd.engine.queueing.fairness import TokenCounters
from ggufd.errors import Draining, StartupError
from ggufd.models import hub
from ggufd.models.remote import OnProgress
from ggufd.settings import listen
from ggufd.settings.api_settings import api_config
from ggufd.settings.config import Config
from ggufd.settings.engine_settings import engine_config
from ggufd.settings.model_files import chat_template, find_model

if TYPE_CHECKING:
    import uvicorn

    from ggufd.api.batches.worker import BatchWorker
    from ggufd.api.ops.traces import Traces
    from ggufd.daemon.prestart import PrestartedProcesses
    from ggufd.engine.client.client import EngineClient
    from ggufd.engine.client.limits import TokenBuckets
    from ggufd.images.encoder.reader import ImageReader
    from ggufd.settings.access import Access

logger = logging.getLogger("ggufd")

_FLUSH_S = 5
"""Seconds that answers cut off at the deadline get to send their last event."""

_POLL_S = 1.0
"""Interval of the checks for a failed engine."""

_KEYS_POLL_S = 0.25
"""Interval of the checks for a changed key file: a change is taken up by the second check after it, within a second."""


def run(config: Config, keys: Access | None, prestarted: PrestartedProcesses | None = None) -> int:
    """Serve until a stop signal; the process's exit code. Uses the `prestarted` child processes, if any.

    Raises StartupError.
    """
    known = find_known(config)
    config = config if known is None else known.configs[known.first]
    found = _find(config)
    kept = {} if known is None else {name: _find(one) for name, one in known.kept_configs.items()}
    listen.check_tls(config.server.ssl_key_file, config.server.ssl_cert_file)
    traces = open_traces(config)
    sockets = listen.bind(config.server.host, config.server.port)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(Daemon(found, sockets, keys, traces, prestarted, known, kept).run())
    finally:
        if traces is not None:
            traces.close()
        for one in sockets:
            one.close()


def _find(config: Config) -> FoundModel:
    return FoundModel(config, find_model(config), chat_template(config))


def open_traces(config: Config) -> Traces | None:
    """Trace exporter, if traces are on. Raises StartupError if the extra `otel` is not installed."""
    if not config.server.traces:
        return None
    try:
        from ggufd.api.ops.traces import connect

        return connect()
    except ImportError as error:
        raise StartupError(f"--traces needs {error.name}: pip install 'ggufd[otel]'") from None


class Daemon:
    """One run of the server, from loading the model to the last byte."""

    def __init__(
        self,
        found: FoundModel,
        sockets: list[socket.socket],
        keys: Access | None = None,
        traces: Traces | None = None,
        prestarted: PrestartedProcesses | None = None,
        known: KnownModels | None = None,
        kept: Mapping[str, FoundModel] | None = None,
    ) -> None:
        self._known = known
        self._config = found.config
        self._found = found
        self._kept = kept or {}
        self._sockets = sockets
        self._keys = keys
        self._traces = traces
        self._prestarted = prestarted
        self._batches: BatchWorker | None = None
        self._buckets: TokenBuckets | None = None
        self._ids = itertools.count(1)
        self._tokens = TokenCounters()
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Load, serve until a stop signal, drain. Raises ModelError when the model cannot be served."""
        # What is imported and loaded stays. Collecting garbage in it takes an eighth of the start, and later pauses
        # of a tenth of a second, in which no stream would get a token.
        gc.disable()
        with _signals(self._on_signal, self._on_hangup), console.LoadingBar(self._found.file.path.name) as bar:
            served = self._make_served(self._found, bar.update)
            kept = KeptModels({name: self._make_served(one, is_beside=True) for name, one in self._kept.items()})
            models = ServedModels(served, self._find_served)
            pooled = self._pooled(models)
            loading = asyncio.create_task(_load(served, kept))
            # It starts its first process before FastAPI is imported.
            await asyncio.sleep(0)
            try:
                server = await asyncio.to_thread(self._make_server, models, pooled, kept)
                serving = asyncio.create_task(server.serve(self._sockets))
                beside = [asyncio.create_task(self._watch_keys())]
                try:
                    if await self._has_loaded(loading):
                        bar.close()
                        # Requests are answered already.
                        await asyncio.to_thread(console.prepare)
                        gc.freeze()
                        gc.enable()
                        self._announce(served)
                        if pooled is not None:
                            pooled.note_served()
                            beside.append(asyncio.create_task(pooled.make_plans()))
                        if self._batches is not None:
                            self._batches.start()
                        await self._until_stopped(models)
                    if self._batches is not None:
                        await self._batches.stop()
                    if pooled is not None:
                        pooled.pool.close(Draining("the server is shutting down and takes no new requests"))
                    await asyncio.gather(self._drain(models.served.engine), kept.drain(self._config.server.drain_s))
                finally:
                    server.should_exit = True
                    await serving
                    for task in beside:
                        task.cancel()
            finally:
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
                if pooled is not None:
                    await pooled.pool.stop()
                await models.stop()
                await kept.stop()
        return 0 if self._stop.is_set() else 1

    def _pooled(self, models: ServedModels) -> PooledModels | None:
        """The pool, where there are several models."""
        if self._known is None or not self._known.are_several:
            return None
        return PooledModels(models, self._known, self._config, self._tokens)

    def _make_served(
        self, found: FoundModel, on_progress: OnProgress | None = None, *, is_beside: bool = False
    ) -> Served:
        """Clients of a model's engine and text process, not started, with their configuration.

        One that stays loaded beside is a queue of its own: what it serves is not counted for the others.
        """
        from ggufd.chat.process.client import TextClient
        from ggufd.chat.process.pool import TextPool
        from ggufd.chat.prompt import TextParams
        from ggufd.engine.client.client import EngineClient
        from ggufd.engine.client.limits import TokenBuckets

        config, model, template = found
        settings = engine_config(config, model)
        tool_format = None if config.model.tool_format == "auto" else config.model.tool_format
        params = TextParams(
            settings.model,
            template,
            tool_format,
            budget_message=config.reasoning.reasoning_budget_message,
            spm_infill=config.output.spm_infill,
        )
        api = api_config(config, model, self._keys)
        prestarted, self._prestarted = self._prestarted, None
        first = None if prestarted is None else TextClient(params, prestarted=prestarted.text)
        text = TextPool(lambda: TextClient(params), first=first, is_shared=lambda: api.shares_cache)
        # A key that has used its tokens has used them, whatever model is loaded then.
        if self._buckets is None:
            self._buckets = TokenBuckets()
        engine = EngineClient(
            settings,
            on_progress,
            prestarted=None if prestarted is None else prestarted.engine,
            buckets=self._buckets,
            ids=self._ids,
            served=None if is_beside or self._known is None else self._tokens,
        )
        return Served(config, model, engine, text, api, _make_images(config, model))

    def _find_served(self, config: Config, on_progress: OnProgress, on_fetch: OnProgress) -> Served:
        """Find the model of `config`, then as `_make_served`. Raises ModelError."""
        found = FoundModel(config, find_model(config, on_fetch=on_fetch), chat_template(config))
        return self._make_served(found, on_progress)

    def _make_server(self, models: ServedModels, pooled: PooledModels | None, kept: KeptModels) -> uvicorn.Server:
        """HTTP server, imported and built on a thread while the children load."""
        import uvicorn

        from ggufd.api.app import create_app
        from ggufd.api.http.connections import ConnectionGuard, ConnectionLimits

        class Server(uvicorn.Server):
            """uvicorn without its signal handlers, which would cut off the streams: the daemon handles signals."""

            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

        served = models.served
        sinks = [] if self._traces is None else [self._traces.observe]
        settings = self._config.server
        limits = ConnectionLimits(settings.read_timeout_s, settings.write_timeout_s, listen.connections_limit())
        pool = None if pooled is None else pooled.pool
        app = create_app(
            served.engine, served.text, served.api, pooled or models, sinks, served.images, pool, kept.instances
        )
        self._batches = getattr(app.state, "batch_worker", None)
        return Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                root_path=settings.root_path,
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=list(settings.trusted_proxies),
                ssl_keyfile=settings.ssl_key_file or None,
                ssl_certfile=settings.ssl_cert_file or None,
                server_header=False,
                timeout_graceful_shutdown=_FLUSH_S,
                **ConnectionGuard(limits).options(),
            )
        )

    async def _has_loaded(self, loading: asyncio.Future[Any]) -> bool:
        """Wait for both children; False when a signal came first."""
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait((loading, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
            return False
        stopped.cancel()
        loading.result()
        return True

    def _announce(self, served: Served) -> None:
        assert served.engine.ready is not None
        settings = self._config.server
        url = listen.url_of(settings.host, self._sockets, is_tls=bool(settings.ssl_cert_file))
        try:
            console.show_summary(
                served.engine.ready,
                self._found.file,
                served.api.model_id,
                url,
                has_keys=self._keys is not None,
                has_page=settings.ui,
            )
        except OSError as error:
            # A full disk, or a pipe without a reader: no reason not to serve.
            logger.warning("ready at %s/v1, but that could not be written to stdout: %s", url, error.strerror)

    async def _until_stopped(self, models: ServedModels) -> None:
        """Wait for the first signal, or for an engine that has failed for good: a supervisor may then restart us."""
        while not self._stop.is_set() and not models.has_failed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _POLL_S)

    async def _watch_keys(self) -> None:
        """Take up changes of the key file as long as requests may come or run: while loading and draining too."""
        while self._keys is not None:
            self._keys.file.reload_if_changed()
            await asyncio.sleep(_KEYS_POLL_S)

    async def _drain(self, engine: EngineClient) -> None:
        """Refuse new requests, let running ones finish until the deadline, then end them with an error event."""
        engine.drain()
        if n_open := engine.n_running + engine.n_waiting:
            logger.info("stopping; open requests that may still finish: %d; Ctrl-C again stops at once", n_open)
        try:
            await asyncio.wait_for(engine.wait_idle(), self._config.server.drain_s)
        except TimeoutError:
            logger.warning("stopping; requests cut off at the deadline: %d", engine.n_running + engine.n_waiting)
        await engine.stop()

    def _on_signal(self) -> None:
        """First signal: drain. Second: kill the children and exit."""
        if not self._stop.is_set():
            self._stop.set()
            return
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(130)

    def _on_hangup(self) -> None:
        """SIGHUP: reload what may have changed, which is the key file."""
        if self._keys is not None:
            self._keys.file.reload()


async def _load(served: Served, kept: KeptModels) -> None:
    """Load all models that are to be there at the start; only engines wait for each other. Raises ModelError."""
    beside = asyncio.gather(served.start_text(), served.start_images())
    try:
        await kept.load()
        served.engine.start()
        await asyncio.gather(served.wait_ready(), beside)
    finally:
        beside.cancel()
        await asyncio.gather(beside, return_exceptions=True)


def _make_images(config: Config, model: hub.ModelFile) -> ImageReader | None:
    """Reader of images, not started; None where the model has no projector."""
    if model.projector is None:
        return None
    from ggufd.images.encoder.encoder import ImageEncoder
    from ggufd.images.encoder.reader import ImageReader
    from ggufd.images.fetching.loader import ImageLoader
    from ggufd.settings import encoder_settings
    from ggufd.settings.image_settings import image_limits

    params = encoder_settings.encoder_params(config, model, model.projector)
    encoder = ImageEncoder(params, encoder_settings.row_folder(config))
    return ImageReader(ImageLoader(image_limits(config)), encoder)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop, where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@contextlib.contextmanager
def _signals(on_stop: Callable[[], None], on_hangup: Callable[[], None]) -> Iterator[None]:
    """Call `on_stop` on the loop at Ctrl-C and SIGTERM, on every system; `on_hangup` at SIGHUP, where it exists.

    With a terminal SIGHUP means that it was closed, and stops too, unless nohup ignores it.
    """
    loop = asyncio.get_running_loop()
    actions = {signal.SIGINT: on_stop, signal.SIGTERM: on_stop}
    if hasattr(signal, "SIGHUP"):
        is_terminal = sys.stdin is not None and sys.stdin.isatty()
        is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        actions[signal.SIGHUP] = on_stop if is_terminal and not is_ignored else on_hangup
    before = {number: signal.getsignal(number) for number in actions}
    for number, action in actions.items():
        signal.signal(number, lambda *_, action=action: loop.call_soon_threadsafe(action))
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
