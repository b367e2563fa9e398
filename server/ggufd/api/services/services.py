"""Interfaces of the engine and of the text process, as protocols: the real clients and fakes fit them."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, Self

from starlette.requests import Request
from starlette.types import Scope

from ggufd.api.services.activity import Activity
from ggufd.api.services.adapters import AdapterScales
from ggufd.api.services.caller import Caller
from ggufd.api.services.images import ImageService
from ggufd.api.services.metrics import Metrics
from ggufd.api.services.response_store import ResponseStore
from ggufd.api.services.revocation import Revocations
from ggufd.api.services.settings import ApiConfig
from ggufd.batches.store import BatchStore
from ggufd.chat.advice.advisor import CacheAdvisor
from ggufd.chat.prompt import ChatPrompt, RenderedChat, TextInfo
from ggufd.engine.messages.events import RequestEvent
from ggufd.engine.messages.reports import (
    ChatsSaved,
    LimitUse,
    LiveState,
    QueueState,
    Ready,
    SlotDone,
    Stats,
    Steps,
    UseElsewhere,
)
from ggufd.engine.messages.requests import ActOnSlot, AdoptChat, EmbedRequest, EngineRequest
from ggufd.engine.messages.sampling import Grammar
from ggufd.engine.queueing.validation import RequestBounds
from ggufd.errors import EngineDown, GgufdError
from ggufd.keys.principal import Principal
from ggufd.model_pool.pool import ModelPool

_KEY_BYTES = 32
_BESIDE = "ggufd.services"


class RequestEvents(Protocol):
    """Event stream of one request, inside an `async with`. Leaving that early aborts the request."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc_info: object) -> bool | None: ...
    async def take(self) -> list[RequestEvent]:
        """All events that are there, at least one; empty at the end. Raises the error that ended the request."""

    async def placed(self) -> None:
        """Wait for its admission, or its place in the queue. Raises what refused it."""

    def abort(self) -> None:
        """End it: after what is there already, nothing more comes."""

    def refuse(self, error: GgufdError) -> None:
        """End it: what is there already is dropped, and `take` raises `error`."""

    def finish(self, index: int) -> None:
        """End one of its sequences, with what that has said: its last event still comes."""

    @property
    def principal(self) -> Principal:
        """Who it is computed for."""


class ReportService(Protocol):
    """Interface of what the engine tells of itself, and of actions on its slots."""

    async def stats(self) -> Stats: ...
    async def steps(self) -> Steps: ...
    async def queue_state(self) -> QueueState: ...
    async def live_state(self) -> LiveState: ...
    async def save_chats(self) -> ChatsSaved: ...
    def adopt_chat(self, chat: AdoptChat) -> None: ...
    async def act_on_slot(self, command: ActOnSlot) -> SlotDone:
        """Erase, save or restore what an idle slot keeps. Raises Unavailable while it is in use, or InvalidRequest."""


class IntakeService(Protocol):
    """Interface of what takes new requests, or refuses them for a while."""

    def pause(self) -> None:
        """Refuse new requests until `resume`; those that run or wait go on."""

    def resume(self) -> None:
        """Take requests again. Raises Draining where the engine is to end."""


class EngineService(Protocol):
    """Interface of the engine. `submit` raises QueueFull, EngineDown or Draining at once."""

    @property
    def state(self) -> enum.Enum: ...
    @property
    def ready(self) -> Ready | None: ...
    @property
    def trouble(self) -> str:
        """Why there is no engine now that there was one, in words for the user; empty where all is well."""

    @property
    def is_full(self) -> bool:
        """Whether one more request would be refused, because as many wait as may."""

    @property
    def n_waiting(self) -> int: ...
    @property
    def n_running(self) -> int: ...
    @property
    def reports(self) -> ReportService: ...
    @property
    def intake(self) -> IntakeService: ...
    def new_request_id(self) -> int: ...
    def submit(self, request: EngineRequest | EmbedRequest) -> RequestEvents: ...
    def charge_elsewhere(self, costs: Sequence[tuple[str, float]]) -> None:
        """Charge accounts what other servers of a cluster served them, divided by their weights."""

    def limit_use(self) -> list[LimitUse]:
        """What accounts with limits use of them here, but for the slots."""

    def count_elsewhere(self, uses: Sequence[UseElsewhere]) -> None:
        """Count what accounts use of their limits at other servers of a cluster, until told again, or not for long."""

    def find(self, request_id: int) -> RequestEvents | None:
        """The open request with this id."""

    def watch(self, tell: Callable[[enum.Enum], None]) -> None:
        """Call `tell` with every state that the engine enters from now on."""

    def sleep(self) -> None:
        """Unload the model until the next request. Raises Unavailable while requests are under way."""


class TextService(Protocol):
    """Interface of the text process. Every call may raise InvalidRequest."""

    @property
    def info(self) -> TextInfo: ...
    @property
    def is_running(self) -> bool:
        """Whether a process answers now; a call that comes between two waits for the next."""

    async def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]: ...
    async def encode_inputs(self, texts: Sequence[str], limit: int | None = None) -> list[list[int]]: ...
    async def encode_pairs(self, query: str, documents: Sequence[str]) -> list[list[int]]: ...
    async def encode_infill(
        self, prefix: str, suffix: str, files: Sequence[tuple[str, str]] = (), limit: int | None = None
    ) -> list[int]: ...
    async def decode(self, tokens: Sequence[int]) -> str: ...
    async def pieces(self, tokens: Sequence[int]) -> list[bytes]: ...
    async def render(self, chat: ChatPrompt) -> RenderedChat: ...
    async def check_grammar(self, grammar: Grammar) -> None: ...
    async def check_json(self, schema: str, text: str) -> None:
        """Raises EngineFailure unless a finished text is what its schema asks for."""


Report = Callable[[str, float | None], None]
"""Callback for progress: the stage, and its share done, 0 to 1, where that is known."""

Show = Callable[[EngineService, TextService, ApiConfig, ImageService | None], None]
"""Makes the application serve these from now on."""


class ModelSwitcher(Protocol):
    """Interface of what changes the model."""

    def bind(self, show: Show) -> None:
        """`show` is called whenever something else is to be served."""

    async def plan(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What `ggufd plan --json` says of the model that `settings` name. Raises InvalidRequest."""

    async def change(self, settings: Mapping[str, Any], report: Report) -> None:
        """Serve the model that `settings` name; returns when it is ready. Goes on when the caller leaves.

        Raises InvalidRequest where it cannot be served and the old one is, EngineFailure where none is, Unavailable
        while another change is under way. Nothing was reported yet when the settings themselves are wrong.
        """


class ModelInstance(NamedTuple):
    """One loaded model: its engine, text process and settings, and what reads its images, if it has a projector."""

    engine: EngineService
    text: TextService
    config: ApiConfig
    images: ImageService | None = None


@dataclass(frozen=True, slots=True)
class Services:
    """Services of a handler; `app.state.services`.

    `images` is None where the model has no image projector. `image_key` is the secret that images' markers are made of.
    `beside` has those of the models that stay loaded beside this one, by name: `services_of` gives them to requests
    that name one.
    """

    engine: EngineService
    text: TextService
    config: ApiConfig
    adapters: AdapterScales
    activity: Activity = field(default_factory=Activity)
    revocations: Revocations = field(default_factory=Revocations)
    models: ModelSwitcher | None = None
    pool: ModelPool | None = None
    responses: ResponseStore = field(default_factory=ResponseStore)
    batches: BatchStore | None = None
    metrics: Metrics = field(default_factory=Metrics)
    advisor: CacheAdvisor = field(default_factory=CacheAdvisor)
    images: ImageService | None = None
    image_key: bytes = field(default_factory=lambda: os.urandom(_KEY_BYTES), repr=False)
    beside: Mapping[str, Services] = field(default_factory=dict)

    @property
    def instances(self) -> list[Services]:
        """These, and those of each model that is loaded beside."""
        return [self, *self.beside.values()]

    def of_model(self, one: ModelInstance) -> Services:
        """The same for a request to another model that is loaded beside."""
        return replace(
            self,
            engine=one.engine,
            text=one.text,
            config=one.config,
            images=one.images,
            adapters=AdapterScales(one.config),
            beside={},
        )

    @property
    def is_ready(self) -> bool:
        """Whether both processes have loaded what they need. The text process has no `info` before that."""
        return self.engine.ready is not None and getattr(self.text, "info", None) is not None

    def bounds(self, n_ctx: int) -> RequestBounds:
        """Bounds of requests to the loaded model, of at most so many tokens. Raises EngineDown before there is one."""
        return RequestBounds(n_ctx, self.require_ready().model.n_vocab, len(self.config.adapters))

    def require_ready(self) -> Ready:
        """The engine's facts of the loaded model. Raises EngineDown before there is one."""
        if self.engine.ready is None or not self.is_ready:
            raise EngineDown("The model is still loading. Try again in a few seconds.", retry_after_s=2.0)
        return self.engine.ready


def serve_by(scope: Scope, services: Services) -> None:
    """Have the request of this scope served by a model that is loaded beside."""
    scope[_BESIDE] = services


def services_of(request: Request) -> Services:
    """The services of this request: those of its application, or of the model beside that it names."""
    services: Services = request.scope.get(_BESIDE) or request.app.state.services
    return services


def caller_of(request: Request, genkey: str = "") -> Caller:
    """The caller of a request, under the settings of its application."""
    return Caller.of(request, services_of(request).config, genkey)
