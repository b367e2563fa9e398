"""What is served: one model with the two processes that have it open, and the change to another while the server runs.

The new file is found, and its vocabulary and template loaded, while the old model goes on serving. Then the old one
drains and ends, for two would seldom fit into memory, and the new one loads. Where that fails, the old one is loaded
again. Every model has clients of its own, so nothing that was begun for one can reach the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ggufd.errors import ConfigError, EngineDown, EngineFailure, InvalidRequest, ModelError, StartupError, Unavailable
from ggufd.llama.model.placing import check_gpus, check_overrides, check_rpc, refuse_cpu
from ggufd.models.hub import ModelFile
from ggufd.models.remote import OnProgress
from ggufd.settings import sources
from ggufd.settings.config import Config
from ggufd.settings.config import settings as all_settings

if TYPE_CHECKING:
    # None of it is needed, nor starlette imported, before the engine's process has been started.
    from ggufd.api.services.services import Report, Show
    from ggufd.api.services.settings import ApiConfig
    from ggufd.chat.process.client import TextCalls
    from ggufd.engine.client.client import EngineClient
    from ggufd.engine.messages.config import EngineConfig
    from ggufd.engine.messages.reports import Ready

logger = logging.getLogger("ggufd")

OF_ONE_MODEL = (
    "model_draft",
    "alias",
    "chat_template_file",
    "tool_format",
    "override_kv",
    "lora",
    "lora_scaled",
    "control_vector",
    "control_vector_scaled",
    "control_vector_layer_range",
)
"""Settings that another model does not inherit."""

_SECTIONS = ("model", "context")


@dataclass(frozen=True)
class Served:
    """One model, what the settings say of it, and who talks to its processes."""

    config: Config
    file: ModelFile
    engine: EngineClient
    text: TextCalls
    api: ApiConfig

    async def wait_ready(self) -> Ready:
        """What the engine loaded. Raises ModelError when it cannot serve."""
        return await self.engine.wait_ready()

    async def stop(self) -> None:
        """End both processes."""
        await asyncio.gather(self.engine.stop(), self.text.stop())


Make = Callable[[Config, OnProgress, OnProgress], Served]
"""Finds a model and makes its clients, not started. May take long; raises ModelError.

Is told whom to tell the share that is loaded, on the event loop, and the share that is fetched, on the caller's thread.
"""


class ServedModels:
    """Changes the model that is served. Lives on the event loop."""

    def __init__(self, first: Served, make: Make) -> None:
        self.served = first
        self._make = make
        self._show: Show = lambda *_: None
        self._change: asyncio.Task[None] | None = None

    def bind(self, show: Show) -> None:
        """`show` is called with whatever is served from then on."""
        self._show = show

    async def change(self, settings: Mapping[str, Any], report: Report) -> None:
        """Serve another model; goes on when the caller leaves. See `api.services.services.ModelSwitcher`."""
        if self._change is not None and not self._change.done():
            raise Unavailable("Another model is being loaded. Try again when it is there.", retry_after_s=10)
        config = changed(self.served.config, settings)
        self._change = asyncio.create_task(self._replace(config, report))
        self._change.add_done_callback(_note_outcome)
        await asyncio.shield(self._change)

    @property
    def has_failed(self) -> bool:
        """Whether the engine is given up, and no change is under way that may help."""
        from ggufd.engine.client.client import EngineState

        is_changing = self._change is not None and not self._change.done()
        return self.served.engine.state is EngineState.FAILED and not is_changing

    async def stop(self) -> None:
        """End what is served, and a change that is under way."""
        if self._change is not None:
            self._change.cancel()
            await asyncio.gather(self._change, return_exceptions=True)
        await self.served.stop()

    async def _replace(self, config: Config, report: Report) -> None:
        old = self.served
        logger.info("changing the model to %s", config.model.model)
        if config.model.model.startswith("hf:"):
            report("fetching", None)
        try:
            new = await self._find(config, report)
        except StartupError as error:
            raise _refusal(error, old) from None
        try:
            _check_placing(new, old)
            report("reading the vocabulary", None)
            await self._read_vocabulary(new, old)
            report("draining", None)
            await _empty(old)
            report("loading", 0.0)
            await self._load(new, old)
        finally:
            for one in (old, new):
                if one.text is not self.served.text:
                    await one.text.stop()

    async def _find(self, config: Config, report: Report) -> Served:
        loop = asyncio.get_running_loop()

        def on_fetch(share: float) -> None:
            loop.call_soon_threadsafe(report, "fetching", share)

        return await asyncio.to_thread(self._make, config, lambda share: report("loading", share), on_fetch)

    async def _read_vocabulary(self, new: Served, old: Served) -> None:
        try:
            await new.text.start()
        except ModelError as error:
            raise _refusal(error, old) from None

    async def _load(self, new: Served, old: Served) -> None:
        self._serve(new)
        try:
            await new.wait_ready()
        except ModelError as error:
            await new.engine.stop()
            logger.error("%s; loading %s again", error.message, old.api.model_id)
            await self._go_back(replace(old, engine=old.engine.renewed()), error)
        logger.info("serving %s", new.api.model_id)

    async def _go_back(self, old: Served, why: ModelError) -> None:
        """Serve what was served before, and raise what was wrong with the other."""
        self._serve(old)
        try:
            await old.wait_ready()
        except ModelError as error:
            raise EngineFailure(
                f"{why.message}. Then '{old.api.model_id}' could not be loaded again either: {error.message}"
            ) from None
        raise _refusal(why, old)

    def _serve(self, one: Served) -> None:
        one.engine.start()
        self.served = one
        self._show(one.engine, one.text, one.api)


async def _empty(old: Served) -> None:
    """Let what runs end, up to the same deadline as when the server stops; then end the process."""
    old.engine.drain(EngineDown("another model is being loaded; try again when it is there", retry_after_s=10))
    try:
        await asyncio.wait_for(old.engine.wait_idle(), old.config.server.drain_s)
    except TimeoutError:
        old.engine.abort_all(EngineDown("the answer was cut: another model is being loaded", retry_after_s=10))
    await old.engine.stop()


def changed(config: Config, settings: Mapping[str, Any]) -> Config:
    """`config` for another model: `settings` of [model] and [context], by their names.

    What another model does not inherit is unset. Raises InvalidRequest that names the setting.
    """
    known = {one.key for one in all_settings() if one.section in _SECTIONS}
    foreign = next((key for key in settings if key not in known), None)
    if foreign is not None:
        raise InvalidRequest(
            f"'{foreign}': expected 'model' and settings of [model] or [context], as in config.toml.", param=foreign
        )
    if not isinstance(settings.get("model"), str) or not settings["model"]:
        raise InvalidRequest("'model': expected a file, a folder, hf:OWNER/REPO or ollama:NAME.", param="model")
    try:
        return sources.revise(config, {**dict.fromkeys(OF_ONE_MODEL), **settings})
    except ConfigError as error:
        first = error.message.splitlines()[0]
        param = next((key for key in settings if first.startswith(f"{key} =")), None)
        raise InvalidRequest(f"{first}.", param=param) from None


def _check_placing(new: Served, old: Served) -> None:
    """Look at what needs no load, while the old model serves: by what its engine saw of the build and of the GPUs."""
    if old.engine.ready is None:
        return
    try:
        check_placing(new.engine.config, old.engine.ready)
    except ModelError as error:
        raise _refusal(error, old) from None


def check_placing(config: EngineConfig, seen: Ready) -> None:
    """Raises ModelError. What cannot be known yet, the devices of other RPC servers, the load will tell."""
    model = config.model
    check_rpc(model.rpc, has_rpc=seen.has_rpc)
    if model.rpc:
        return
    check_overrides(model.overrides, seen.buffer_types)
    check_gpus(model, seen.devices)
    if config.require_gpu:
        refuse_cpu((1 if model.n_gpu_layers is None else model.n_gpu_layers) if seen.devices else 0)


def _refusal(error: StartupError, old: Served) -> InvalidRequest:
    return InvalidRequest(f"{error.message}. '{old.api.model_id}' is served as before.", param="model")


def _note_outcome(change: asyncio.Task[None]) -> None:
    """Whoever asked may have left, so the log says it too."""
    error = None if change.cancelled() else change.exception()
    if error is not None:
        logger.error("the model was not changed: %s", error)
