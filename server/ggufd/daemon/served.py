"""Served model with its processes, and the switch to another model while the server runs.

The new file is found, and its vocabulary and template are loaded, while the old model still serves. Then the old one
drains and ends, because two would seldom fit into memory, and the new one loads. If that fails, the old one is loaded
again. Each model has its own clients, so no request begun with one can reach the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from ggufd.errors import ConfigError, EngineDown, EngineFailure, InvalidRequest, ModelError, StartupError, Unavailable
from ggufd.llama.model.placing import check_gpus, check_overrides, check_rpc, refuse_cpu
from ggufd.models.hub import ModelFile
from ggufd.models.remote import OnProgress
from ggufd.planner.apart import plan_apart
from ggufd.settings import sources
from ggufd.settings.config import Config
from ggufd.settings.config import settings as all_settings

if TYPE_CHECKING:
    # None of it is needed, nor starlette imported, before the engine's process has been started.
    from ggufd.api.services.services import Report, Show
    from ggufd.api.services.settings import ApiConfig
    from ggufd.chat.process.calls import TextCalls
    from ggufd.engine.client.client import EngineClient
    from ggufd.engine.client.state import EngineState
    from ggufd.engine.messages.config import EngineConfig
    from ggufd.engine.messages.reports import Ready
    from ggufd.images.encoder.reader import ImageReader

logger = logging.getLogger("ggufd")

NOT_INHERITED = (
    "model_draft",
    "mmproj",
    "alias",
    "chat_template",
    "chat_template_file",
    "chat_template_kwargs",
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


class FoundModel(NamedTuple):
    """Model that may be loaded: its settings, its file, and a chat template in place of its own."""

    config: Config
    file: ModelFile
    template: str | None


@dataclass(frozen=True)
class Served:
    """One model: its settings, its file, and the clients of its processes."""

    config: Config
    file: ModelFile
    engine: EngineClient
    text: TextCalls
    api: ApiConfig
    images: ImageReader | None = None

    async def wait_ready(self) -> Ready:
        """Wait for the engine's report of the loaded model. Raises ModelError when it cannot serve."""
        return await self.engine.wait_ready()

    async def start_text(self) -> None:
        """Start the text process, and check what every request would be held to.

        Raises ConfigError for a constraint that cannot be enforced, or biases of tokens that there are none of.
        """
        await self.text.start()
        if (grammar := self.api.sampling.get("grammar")) is not None:
            try:
                await self.text.check_grammar(grammar)
            except InvalidRequest as error:
                raise ConfigError(f"{grammar.kind.value} of the settings: {error.message}") from None
        foreign = [token for token, _ in self.api.sampling.get("logit_bias", ()) if token >= self.text.info.n_vocab]
        if foreign:
            raise ConfigError(
                f"logit_bias {foreign[0]}: this model has no such token; expected 0 to {self.text.info.n_vocab - 1}"
            )

    async def start_images(self) -> None:
        """Start the processes that decode and encode images, if the model has a projector.

        Raises ModelError where it cannot be used.
        """
        if self.images is None:
            return
        try:
            await self.images.start()
        except ModelError as error:
            leave = "leave --mmproj out" if self.config.model.mmproj else "start with --no-mmproj"
            raise ModelError(f"{error.message}; {leave} to serve the model without images") from None
        self.engine.watch(self._follow)

    def _follow(self, state: EngineState) -> None:
        """The projector sleeps with the model."""
        if self.images is not None and state.name == "SLEEPING":
            self.images.rest()

    async def stop_images(self) -> None:
        if self.images is not None:
            await self.images.stop()

    async def stop(self) -> None:
        """End all processes."""
        await asyncio.gather(self.engine.stop(), self.text.stop(), self.stop_images())


Make = Callable[[Config, OnProgress, OnProgress], Served]
"""`make(config, on_load, on_fetch)` finds a model and makes its clients, not started. May take long; raises ModelError.

`on_load` gets the share loaded, on the event loop; `on_fetch` the share downloaded, on the calling thread.
"""


ServedBefore = Callable[[str], Mapping[str, float]]
"""Tokens that the accounts which wait for a model of this name were served more than the least served of them."""


class ServedModels:
    """Holder of the served model, which it can switch. Lives on the event loop."""

    def __init__(self, first: Served, make: Make) -> None:
        self.served = first
        self._make = make
        self._show: Show = lambda *_: None
        self._change: asyncio.Task[None] | None = None
        self._planning = asyncio.Lock()
        self._served_before: ServedBefore = lambda model: {}

    def bind(self, show: Show) -> None:
        """Set the callback that gets the clients and the API configuration of each newly served model."""
        self._show = show

    def carry(self, served_before: ServedBefore) -> None:
        """Have each engine begin with what those who wait for its model were served before."""
        self._served_before = served_before

    async def change(self, settings: Mapping[str, Any], report: Report) -> None:
        """Switch to another model, even if the caller disconnects. See `api.services.services.ModelSwitcher`."""
        self.check_idle()
        await self.change_to(changed(self.served.config, settings), report)

    def check_idle(self) -> None:
        """Raises Unavailable while a switch is under way."""
        if self._change is not None and not self._change.done():
            raise Unavailable("Another model is being loaded. Try again when it is ready.", retry_after_s=10)

    async def change_to(self, config: Config, report: Report) -> None:
        """Switch to the model of these settings, even if the caller disconnects. As `change` otherwise."""
        self.check_idle()
        self._change = asyncio.create_task(self._replace(config, report))
        self._change.add_done_callback(_note_outcome)
        await asyncio.shield(self._change)

    async def plan(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What the planner says of another model, one at a time. See `api.services.services.ModelSwitcher`."""
        return await self.plan_of(changed(self.served.config, settings))

    async def plan_of(self, config: Config) -> dict[str, Any]:
        """What the planner says of the model of these settings, one at a time. Raises InvalidRequest."""
        async with self._planning:
            try:
                return await plan_apart(config)
            except ModelError as error:
                raise InvalidRequest(f"{error.message}.", param="model") from None

    @property
    def has_failed(self) -> bool:
        """Whether the engine has failed for good, and no switch is under way that may replace it."""
        from ggufd.engine.client.state import EngineState

        is_changing = self._change is not None and not self._change.done()
        return self.served.engine.state is EngineState.FAILED and not is_changing

    async def stop(self) -> None:
        """End the served model's processes, and a switch that is under way."""
        if self._change is not None:
            self._change.cancel()
            await asyncio.gather(self._change, return_exceptions=True)
        await self.served.stop()

    async def _replace(self, config: Config, report: Report) -> None:
        old = self.served
        logger.info("switching the model to %s", config.model.model)
        if config.model.model.startswith("hf:"):
            report("fetching", None)
        try:
            new = await self._find(config, report)
        except StartupError as error:
            raise _refusal(error, old) from None
        try:
            _check_placing(new, old)
            report("reading the vocabulary", None)
            await self._start_beside(new, old)
            report("draining", None)
            await _drain(old)
            report("loading", 0.0)
            await self._load(new, old)
        finally:
            for one in (old, new):
                if one.text is not self.served.text:
                    await one.text.stop()
                    await one.stop_images()

    async def _find(self, config: Config, report: Report) -> Served:
        loop = asyncio.get_running_loop()

        def on_fetch(share: float) -> None:
            loop.call_soon_threadsafe(report, "fetching", share)

        return await asyncio.to_thread(self._make, config, lambda share: report("loading", share), on_fetch)

    async def _start_beside(self, new: Served, old: Served) -> None:
        """Start what needs no weights of the model: text and images."""
        try:
            await new.start_text()
            await new.start_images()
        except StartupError as error:
            raise _refusal(error, old) from None

    async def _load(self, new: Served, old: Served) -> None:
        self._serve(new)
        try:
            await new.wait_ready()
        except ModelError as error:
            await new.engine.stop()
            logger.error("%s; loading %s again", error.message, old.api.model_id)
            await self._restore(replace(old, engine=old.engine.renewed()), error)
        logger.info("serving %s", new.api.model_id)

    async def _restore(self, old: Served, why: ModelError) -> None:
        """Load the old model again, and raise the new one's error."""
        self._serve(old)
        try:
            await old.wait_ready()
        except ModelError as error:
            raise EngineFailure(
                f"{why.message}. Then '{old.api.model_id}' could not be loaded again either: {error.message}"
            ) from None
        raise _refusal(why, old)

    def _serve(self, one: Served) -> None:
        one.engine.carry(self._served_before(one.api.model_id).items())
        one.engine.start()
        self.served = one
        self._show(one.engine, one.text, one.api, one.images)


async def _drain(old: Served) -> None:
    """Drain the old engine, with the same deadline as at shutdown; then end its process."""
    old.engine.drain(EngineDown("another model is being loaded; try again when it is ready", retry_after_s=10))
    try:
        await asyncio.wait_for(old.engine.wait_idle(), old.config.server.drain_s)
    except TimeoutError:
        old.engine.abort_all(EngineDown("the answer was cut off: another model is being loaded", retry_after_s=10))
    await old.engine.stop()


def changed(config: Config, settings: Mapping[str, Any]) -> Config:
    """`config` with `settings` of [model] and [context] by name; those that a model does not inherit are reset.

    Raises InvalidRequest that names the setting.
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
        return sources.revise(config, {**dict.fromkeys(NOT_INHERITED), **settings})
    except ConfigError as error:
        first = error.message.splitlines()[0]
        param = next((key for key in settings if first.startswith(f"{key} =")), None)
        raise InvalidRequest(f"{first}.", param=param) from None


def _check_placing(new: Served, old: Served) -> None:
    """Check placement before the old model drains, against its engine's report of the build and the GPUs."""
    if old.engine.ready is None:
        return
    try:
        check_placing(new.engine.config, old.engine.ready)
    except ModelError as error:
        raise _refusal(error, old) from None


def check_placing(config: EngineConfig, ready: Ready) -> None:
    """Raises ModelError for impossible placement settings. Devices of new RPC servers are only known to the load."""
    model = config.model
    check_rpc(model.rpc, has_rpc=ready.has_rpc)
    if model.rpc:
        return
    check_overrides(model.overrides, ready.buffer_types)
    check_gpus(model, ready.devices)
    if config.require_gpu:
        refuse_cpu((1 if model.n_gpu_layers is None else model.n_gpu_layers) if ready.devices else 0)


def _refusal(error: StartupError, old: Served) -> InvalidRequest:
    return InvalidRequest(f"{error.message}. '{old.api.model_id}' is served as before.", param="model")


def _note_outcome(change: asyncio.Task[None]) -> None:
    """Log a failed switch: the client that asked may have left."""
    error = None if change.cancelled() else change.exception()
    if error is not None:
        logger.error("the model was not switched: %s", error)
