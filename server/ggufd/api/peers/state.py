"""What a server of a cluster remembers between the cluster's requests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from starlette.requests import Request

from ggufd.api.services.services import EngineService
from ggufd.engine.messages.reports import LiveState

_MAX_FETCHES = 2


@dataclass(slots=True)
class PeerState:
    """The engine's state as it was told last, and whose it was; and the fetches of chats, of which few run at once."""

    load: tuple[EngineService, LiveState] | None = None
    fetches: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MAX_FETCHES))


def peer_state_of(request: Request) -> PeerState:
    """That of this request's application."""
    state: PeerState = request.app.state.peers
    return state
