"""The running server: start, serve, drain.

The order is the point. Sockets are bound first; the engine's process starts before FastAPI is imported, so
that both load at once; the app answers 503 until the model is there. At the first signal nothing new is taken
and what runs may end, up to a deadline; at the second everything ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import importlib.metadata
import logging
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from ggufd import __version__, console
from ggufd.daemon.served import Models, Served
from ggufd.engine.messages.messages import DiskPlace, DraftConfig, EngineConfig, Rules
from ggufd.errors import ConfigError, ModelError, StartupError
from ggufd.keys.ring import Limits
from ggufd.llama.gguf.draft_file import check_draft
from ggufd.llama.gguf.gguf_header import Scalar
from ggufd.llama.gguf.shape import MAX_LAYERS
from ggufd.llama.params import ContextParams, ModelParams
from ggufd.models import hub
from ggufd.models.hub import OnProgress
from ggufd.settings import adapters, listen
from ggufd.settings.config import Config

if TYPE_CHECKING:
    import uvicorn

    from ggufd.api.ops.traces import Traces
    from ggufd.api.services.settings import ApiConfig
    from ggufd.daemon.prestart import Spares
    from ggufd.engine.client.client import EngineClient
    from ggufd.settings.access import Access

logger = logging.getLogger("ggufd")

DEFAULT_SLOTS = 4
_FLUSH_S = 5
"""Seconds that answers cut at the deadline get to send their last event."""

_LOOK_S = 1.0
"""How often it is looked whether the engine has been given up."""

_KEYS_LOOK_S = 0.25
"""How often the key file is looked at: a change is found by the second look after it, well within a second."""

_OTHERS = {
    "embeddings",
    "pooling",
    "reranking",
    "ctx_size",
    "parallel",
    "batch_size",
    "ubatch_size",
    "threads",
    "threads_batch",
    "cache_reuse",
    "context_shift",
    "cache_ram",
    "cache_disk",
    "cache_sharing",
    "slot_save_path",
    "spec_draft_n_max",
    "spec_draft_p_min",
    "pre_roll",
}
"""Context settings that have another name in `ContextParams`, or are none of its matter."""


def run(config: Config, keys: Access | None, spares: Spares | None = None) -> int:
    """Serve until a signal says stop; the process's exit code. `spares` are children to begin with.

    Raises StartupError.
    """
    model = find_model(config)
    template = hub.chat_template(config.model.chat_template_file)
    listen.check_tls(config.server.ssl_key_file, config.server.ssl_cert_file)
    traces = open_traces(config)
    sockets = listen.bind(config.server.host, config.server.port)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(Daemon(config, model, template, sockets, keys, traces, spares).run())
    finally:
        if traces is not None:
            traces.close()
        for one in sockets:
            one.close()


def open_traces(config: Config) -> Traces | None:
    """Where spans go, if they are wanted. Raises StartupError without the extra that they need."""
    if not config.server.traces:
        return None
    try:
        from ggufd.api.ops.traces import connect

        return connect()
    except ImportError as error:
        raise StartupError(f"--traces needs {error.name}: pip install 'ggufd[otel]'") from None


class Daemon:
    """One run of the server, from loading to the last byte."""

    def __init__(
        self,
        config: Config,
        model: hub.ModelFile,
        template: str | None,
        sockets: list[socket.socket],
        keys: Access | None = None,
        traces: Traces | None = None,
        spares: Spares | None = None,
    ) -> None:
        self._config = config
        self._model = model
        self._template = template
        self._sockets = sockets
        self._keys = keys
        self._traces = traces
        self._spares = spares
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Load, serve until told to stop, drain. Raises ModelError when the model cannot be served."""
        # What is imported and loaded stays. To look for garbage in it takes an eighth of the start, and later a tenth
        # of a second, in which nobody would get a token.
        gc.disable()
        with _signals(self._on_signal, self._on_hangup), console.LoadingBar(self._model.path.name) as bar:
            served = self._make_served(self._config, self._model, self._template, bar.update)
            models = Models(served, self._find_served)
            served.engine.start()
            loading = asyncio.gather(served.wait_ready(), served.text.start())
            try:
                server = await asyncio.to_thread(self._make_server, models)
                serving = asyncio.create_task(server.serve(self._sockets))
                watching = asyncio.create_task(self._watch_keys())
                try:
                    if await self._has_loaded(loading):
                        bar.close()
                        gc.freeze()
                        gc.enable()
                        self._announce(served)
                        await self._until_stopped(models)
                    await self._drain(models.served.engine)
                finally:
                    server.should_exit = True
                    await serving
                    watching.cancel()
            finally:
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
                await models.stop()
        return 0 if self._stop.is_set() else 1

    def _make_served(
        self, config: Config, model: hub.ModelFile, template: str | None, on_progress: OnProgress
    ) -> Served:
        """The clients of a model's two processes, not started, and what they are told."""
        from ggufd.chat.process.client import TextClient
        from ggufd.chat.process.pool import TextPool
        from ggufd.chat.prompt import TextParams
        from ggufd.engine.client.client import EngineClient

        settings = engine_config(config, model)
        tool_format = None if config.model.tool_format == "auto" else config.model.tool_format
        params = TextParams(settings.model, template, tool_format)
        api = api_config(config, model, self._keys)
        spares, self._spares = self._spares, None
        first = None if spares is None else TextClient(params, spare=spares.text)
        text = TextPool(lambda: TextClient(params), first=first, is_shared=lambda: api.shares_cache)
        engine = EngineClient(settings, on_progress, spare=None if spares is None else spares.engine)
        return Served(config, model, engine, text, api)

    def _find_served(self, config: Config, on_progress: OnProgress, on_fetch: OnProgress) -> Served:
        """The same for a model that is to be found first. Raises ModelError."""
        model = find_model(config, on_fetch=on_fetch)
        template = hub.chat_template(config.model.chat_template_file)
        return self._make_served(config, model, template, on_progress)

    def _make_server(self, models: Models) -> uvicorn.Server:
        """Import the HTTP side and build it, on a thread, while the children load."""
        import uvicorn

        from ggufd.api.app import create_app
        from ggufd.api.http.connections import Guard, Limits

        class Server(uvicorn.Server):
            """Leaves the signals to the daemon: uvicorn's own handler would cut the streams."""

            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

        served = models.served
        sinks = [] if self._traces is None else [self._traces.observe]
        settings = self._config.server
        limits = Limits(settings.read_timeout_s, settings.write_timeout_s, listen.connections_limit())
        return Server(
            uvicorn.Config(
                create_app(served.engine, served.text, served.api, models, sinks),
                log_config=None,
                access_log=False,
                root_path=settings.root_path,
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=list(settings.trusted_proxies),
                ssl_keyfile=settings.ssl_key_file or None,
                ssl_certfile=settings.ssl_cert_file or None,
                server_header=False,
                timeout_graceful_shutdown=_FLUSH_S,
                **Guard(limits).options(),
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
                served.engine.ready, self._model, served.api.model_id, url, has_keys=self._keys is not None
            )
        except OSError as error:
            # A full disk, a pipe that nobody reads: no reason not to serve.
            logger.warning("ready at %s/v1, but that could not be written to stdout: %s", url, error.strerror)

    async def _until_stopped(self, models: Models) -> None:
        """Return at the first signal, or when the engine is given up: whoever started us may start us again."""
        while not self._stop.is_set() and not models.has_failed:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _LOOK_S)

    async def _watch_keys(self) -> None:
        """Take up changes of the key file as long as requests may come or run: while loading and draining too."""
        while self._keys is not None:
            self._keys.file.look()
            await asyncio.sleep(_KEYS_LOOK_S)

    async def _drain(self, engine: EngineClient) -> None:
        """Refuse what is new, let the rest end until the deadline, then end it with an error event."""
        engine.drain()
        if n_open := engine.n_running + engine.n_waiting:
            logger.info("stopping; requests that may still end: %d; Ctrl-C again stops at once", n_open)
        try:
            await asyncio.wait_for(engine.wait_idle(), self._config.server.drain_s)
        except TimeoutError:
            logger.warning("stopping; requests that are cut: %d", engine.n_running + engine.n_waiting)
        await engine.stop()

    def _on_signal(self) -> None:
        """First: drain. Second: leave now, children too."""
        if not self._stop.is_set():
            self._stop.set()
            return
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(130)

    def _on_hangup(self) -> None:
        """The daemons' custom: read again what may have changed, which is the key file."""
        if self._keys is not None:
            self._keys.file.reload()


def find_model(config: Config, *, may_fetch: bool = True, on_fetch: OnProgress | None = None) -> hub.ModelFile:
    """The model of the settings, as they change it, with all that is to be loaded beside it looked at.

    `on_fetch` gets the share of a download, 0 to 1, of the draft model after that of the model.
    Raises ModelError, one line.
    """
    found = hub.find(config.model.model, may_fetch=may_fetch, on_fetch=on_fetch)
    model = hub.with_metadata(found, metadata_of(config))
    if may_fetch or model.path.exists():
        adapters.check(config, model)
    return with_draft(config, model, may_fetch=may_fetch, on_fetch=on_fetch)


def with_draft(
    config: Config, model: hub.ModelFile, *, may_fetch: bool, on_fetch: OnProgress | None = None
) -> hub.ModelFile:
    """The same with the draft model that the settings name beside it. Raises ModelError where that cannot guess."""
    if not config.model.model_draft:
        return model
    try:
        draft = hub.find(config.model.model_draft, may_fetch=may_fetch, on_fetch=on_fetch)
    except ModelError as error:
        raise ModelError(f"--model-draft: {error.message}") from None
    if draft.path.exists() and model.path.exists() and draft.shape is not None and model.shape is not None:
        check_draft(draft.shape, model.shape)
    return dataclasses.replace(model, draft=draft)


def metadata_of(config: Config) -> dict[str, Scalar]:
    """What the settings say instead of the file: KEY=TYPE:VALUE, which the config has checked."""
    read: dict[str, Callable[[str], Scalar]] = {
        "int": int,
        "float": float,
        "bool": lambda text: text == "true",
        "str": str,
    }
    found = {}
    for one in config.model.override_kv:
        key, _, value = one.partition("=")
        kind, _, text = value.partition(":")
        found[key] = read[kind](text)
    return found


def model_id(config: Config, model: hub.ModelFile) -> str:
    """What the API calls the model: the alias, else the file's name without its ending, or its name in ollama."""
    own = model.source.removeprefix("ollama:") if model.source.startswith("ollama:") else model.path.stem
    return config.model.alias or own


def _disk_place(config: Config) -> DiskPlace | None:
    if not config.context.cache_disk:
        return None
    return DiskPlace(str(platformdirs.user_cache_path("ggufd") / "prefixes"), config.context.cache_disk << 20)


def engine_config(config: Config, model: hub.ModelFile) -> EngineConfig:
    """The engine's part of the settings."""
    return EngineConfig(
        model=_model_params(config, model),
        context=context_params(config),
        shape=model.shape,
        max_queue=config.queue.max_queue,
        max_queue_wait_s=config.queue.max_queue_wait_s,
        max_gap_ms=config.queue.max_gap_ms,
        max_gap_steps=config.queue.max_gap_steps,
        text_interval_ms=config.server.text_interval_ms,
        prompt_cost=config.queue.prompt_cost,
        priority_aging_s=config.queue.priority_aging_s,
        step_timeout_s=config.queue.step_timeout_s,
        rules=Rules(
            n_cache_reuse=config.context.cache_reuse,
            shifts_context=config.context.context_shift,
            disk=_disk_place(config),
            max_draft=config.context.spec_draft_n_max,
            pre_rolls=config.context.pre_roll,
            n_reserved=config.queue.reserved_slots,
            short_tokens=config.queue.short_tokens,
            preempts=config.queue.preempt,
        ),
        draft=_draft(config, model),
        require_gpu=config.model.require_gpu,
        pooling="rank" if config.context.reranking else config.context.pooling or None,
        embeddings=config.context.embeddings,
        cache_ram_bytes=None if config.context.cache_ram == "auto" else config.context.cache_ram << 20,
        cache_dir=str(platformdirs.user_cache_path("ggufd")),
        sleep_idle_s=config.model.sleep_idle_seconds,
        log_level=logging.getLevelNamesMapping()[config.server.log_level.upper()],
    )


def _draft(config: Config, model: hub.ModelFile) -> DraftConfig | None:
    if model.draft is None:
        return None
    return DraftConfig(draft_params(config, model.draft), config.context.spec_draft_p_min, model.draft.shape)


def draft_params(config: Config, draft: hub.ModelFile) -> ModelParams:
    """How the draft model is loaded: as the other, but for what names that one's tensors and metadata."""
    settings = config.model
    return ModelParams(
        path=str(draft.path),
        n_gpu_layers=None if settings.n_gpu_layers_draft == "auto" else settings.n_gpu_layers_draft,
        split_mode=settings.split_mode,
        main_gpu=settings.main_gpu,
        mmap=settings.mmap,
        mlock=settings.mlock,
    )


def _model_params(config: Config, model: hub.ModelFile) -> ModelParams:
    settings = config.model
    return ModelParams(
        path=str(model.path),
        n_gpu_layers=None if settings.n_gpu_layers == "auto" else settings.n_gpu_layers,
        split_mode=settings.split_mode,
        main_gpu=settings.main_gpu,
        tensor_split=settings.tensor_split,
        mmap=settings.mmap,
        mlock=settings.mlock,
        n_cpu_moe=n_cpu_moe(config),
        overrides=tuple(_override(one) for one in settings.override_tensor),
        rpc=settings.rpc,
        metadata=tuple(metadata_of(config).items()),
        loras=tuple(one.path for one in adapters.loras_of(config)),
        control_vectors=adapters.control_vectors_of(config),
        control_layers=settings.control_vector_layer_range,
    )


def n_cpu_moe(config: Config) -> int | None:
    """Layers whose experts stay in RAM; None where that is left to us."""
    return MAX_LAYERS if config.model.cpu_moe else config.model.n_cpu_moe


def _override(text: str) -> tuple[str, str]:
    pattern, _, buffer = text.rpartition("=")
    return pattern, buffer


def context_params(config: Config) -> ContextParams:
    """llama-server's rule: ctx_size is the total when parallel is given too, else each slot gets it."""
    settings = config.context
    same = settings.model_dump(exclude=_OTHERS)
    return ContextParams(
        n_ctx=settings.ctx_size // (settings.parallel or 1),
        n_slots=settings.parallel or DEFAULT_SLOTS,
        n_batch=settings.batch_size,
        n_ubatch=settings.ubatch_size,
        n_threads=settings.threads,
        n_threads_batch=settings.threads_batch,
        **same,
    )


def api_config(config: Config, model: hub.ModelFile, keys: Access | None = None) -> ApiConfig:
    """The API's part of the settings."""
    from ggufd.api.services.settings import ApiConfig

    given = {key: value for key, value in config.sampling.model_dump().items() if value is not None}
    max_tokens = given.pop("max_tokens", None)
    return ApiConfig(
        model_id=model_id(config, model),
        model_aliases=(model.path.name,),
        adapters=adapters.loras_of(config),
        keys=None if keys is None else keys.ring,
        cache_sharing=config.context.cache_sharing,
        metrics_for=config.server.metrics_for,
        max_body_bytes=config.server.max_body_bytes,
        ping_s=config.server.ping_s,
        sampling=given,
        max_tokens=max_tokens,
        reasoning_format=config.reasoning.reasoning_format,
        reasoning_budget=config.reasoning.reasoning_budget,
        share_by_address=config.queue.share_by_address,
        limits=Limits(
            max_running=config.queue.max_running_per_key,
            max_waiting=config.queue.max_waiting_per_key,
            tokens_per_minute=config.queue.tokens_per_minute_per_key,
        ),
        root_path=config.server.root_path,
        cors_origins=config.server.cors_origins,
        allowed_hosts=_allowed_hosts(config, keys),
        slot_save_path=_folder(config.context.slot_save_path),
        responses_path=Path(config.responses.responses_path) if config.responses.responses_path else None,
        max_responses=config.responses.max_responses,
        max_responses_bytes=config.responses.max_responses_mib << 20,
        build=f"ggufd {__version__}, llama-cpp-python {importlib.metadata.version('llama-cpp-python')}",
    )


def _allowed_hosts(config: Config, keys: Access | None) -> tuple[str, ...] | None:
    """The names to hold browsers to; None where a key does that, or where the network may call us what it likes."""
    server = config.server
    is_guarded = bool(server.allowed_hosts) or listen.is_loopback(server.host)
    return server.allowed_hosts if keys is None and is_guarded else None


def _folder(text: str) -> Path | None:
    """The folder of a setting, which is made. Raises ConfigError."""
    if not text:
        return None
    try:
        Path(text).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--slot-save-path {text}: no folder, and none can be made: {error.strerror}") from None
    return Path(text).resolve()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@contextlib.contextmanager
def _signals(on_stop: Callable[[], None], on_hangup: Callable[[], None]) -> Iterator[None]:
    """Call `on_stop` in the loop at Ctrl-C and SIGTERM, on every system; `on_hangup` at SIGHUP, where there is one.

    A terminal that is closed sends SIGHUP too, and then it means stop, unless nohup said otherwise.
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
