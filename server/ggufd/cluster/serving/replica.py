"""A replica of the cluster without Ray: one whole server as a child, told to the directory every second.

Startup, beats, health, and the way out: no new requests, chats handed over, drain, end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, Protocol

import aiohttp

from ggufd.api.peers.gate import TOKEN_HEADER
from ggufd.cluster.directory.limits import AccountUse, UsedElsewhere
from ggufd.cluster.replicas import ReplicaLoad
from ggufd.cluster.serving.launch import Launch, LaunchedServer
from ggufd.errors import StartupError

logger = logging.getLogger("ggufd.cluster")

BEAT_S = 1.0
_CALL_S = 5.0
_READY_S = 1800.0
"""A model may have to be downloaded first."""

_END_S = 10.0
"""What a server needs for its end beyond the drain."""

_BUSY_BEATS = 5
"""So many beats in a row with requests that wait, and chats are copied to others."""

_RELIEVED_S = 120.0
"""How long that is not done again."""

_LOAD = frozenset(one.name for one in fields(ReplicaLoad))


class DirectoryLink(Protocol):
    """The directory as a replica calls it; what fails is tried again with the next beat."""

    async def beat(
        self, replica_id: str, url: str, load: ReplicaLoad, served: Mapping[str, float], uses: Mapping[str, AccountUse]
    ) -> tuple[Mapping[str, float], Mapping[str, UsedElsewhere]]:
        """Tell load, served tokens and what accounts use of their limits.

        What other replicas served each account since the last call, and what it uses of its limits there.
        """

    async def leave(self, replica_id: str) -> None:
        """Take the replica out at once."""


class Handover(Protocol):
    """Where a replica's kept chats go when it ends, and where a new one's come from."""

    async def welcome(self, replica_id: str, url: str) -> object:
        """Bring a new replica the chats that are routed to it."""

    async def part(self, replica_id: str, url: str) -> object:
        """Hand the chats of a replica that drains to those who will be asked for them."""

    async def relieve(self, replica_id: str, url: str) -> object:
        """Copy chats of a replica with too much to do to where they will be sent for that reason."""


class EngineReplica:
    """One server of the cluster, `replica_id` there. `drain_s` is what its running requests get at its end."""

    def __init__(
        self,
        replica_id: str,
        launch: Launch,
        directory: DirectoryLink,
        handover: Handover | None = None,
        drain_s: float = 30.0,
    ) -> None:
        self.id = replica_id
        self.load = ReplicaLoad()
        self.url = ""
        self._launch = launch
        self._directory = directory
        self._handover = handover
        self._drain_s = drain_s
        self._is_draining = False
        self._n_busy = 0
        self._relieved_s = -_RELIEVED_S
        self._relief: asyncio.Task[None] | None = None
        self._is_in_touch = True
        self._has_told_limits = False
        self._is_silent = False
        self._server: LaunchedServer | None = None
        self._session: aiohttp.ClientSession | None = None
        self._beats: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Process of the server; 0 before it was started."""
        return 0 if self._server is None else self._server.process.pid

    @property
    def exit_code(self) -> int | None:
        """How the server ended; None while it runs, and before."""
        return None if self._server is None else self._server.process.exit_code

    async def start(self) -> None:
        """Start the server, wait until it serves, and tell the directory. Raises StartupError."""
        self._server = self._launch.start(_print)
        try:
            self.url = await asyncio.wait_for(asyncio.wrap_future(self._server.process.address), _READY_S)
        except TimeoutError:
            raise StartupError(f"no model was loaded within {_READY_S:.0f} seconds") from None
        headers = {TOKEN_HEADER: self._launch.token}
        self._session = aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(_CALL_S))
        if self._handover is not None:
            await self._try(self._handover.welcome(self.id, self.url))
        await self.beat()
        self._beats = asyncio.create_task(self._beat_on())

    async def check(self) -> None:
        """Raises StartupError when the server has ended or does not answer its health probe."""
        assert self._server is not None
        if (code := self.exit_code) is not None:
            raise StartupError(f"the server ended with {code}: {self._server.process.last_line}")
        assert self._session is not None
        try:
            async with self._session.get(f"{self.url}/health/live") as response:
                status = response.status
        except (aiohttp.ClientError, TimeoutError) as error:
            self._is_silent = True
            raise StartupError(f"the server gives no answer: {str(error) or type(error).__name__}") from None
        self._is_silent = False
        if status != 200:
            raise StartupError(f"the server is not alive: its probe answers {status}")

    async def beat(self) -> None:
        """Tell load and served tokens to the directory, and what others served to the server."""
        try:
            told = await self._get("/peers/load")
            self.load = replace(load_of(told), is_draining=self._is_draining or bool(told.get("is_draining")))
            own = await self._get("/peers/served")
            uses = {account: AccountUse(**use) for account, use in own["limits"].items()}
            call = self._directory.beat(self.id, self.url, self.load, own["accounts"], uses)
            await self._tell(*await asyncio.wait_for(call, _CALL_S))
        except Exception as error:
            # Of Ray, of HTTP, of a server that just ended: the next beat tries again, and health is checked elsewhere.
            if self._is_in_touch:
                logger.warning("replica %s cannot tell its load: %s", self.id, error or type(error).__name__)
            self._is_in_touch = False
        else:
            self._is_in_touch = True

    async def _tell(self, served: Mapping[str, float], uses: Mapping[str, UsedElsewhere]) -> None:
        """Tell the server of the others, where there is anything to tell, or was a moment ago."""
        if served or uses or self._has_told_limits:
            limits = {account: asdict(use) for account, use in uses.items()}
            await self._post("/peers/served", {"accounts": dict(served), "limits": limits})
        self._has_told_limits = bool(uses)

    async def stop(self) -> None:
        """Take no new requests, hand chats over, let the server drain, end it. One that hangs is killed at once."""
        self._is_draining = True
        is_hung = await self._is_hung()
        if self._server is not None and self._session is not None and not is_hung:
            await self.beat()
            if self._handover is not None and self._server.process.exit_code is None:
                await self._try(self._handover.part(self.id, self.url))
        if self._server is not None:
            await asyncio.to_thread(self._server.stop, 0.0 if is_hung else self._drain_s + _END_S)
        tasks = [task for task in (self._beats, self._relief) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._try(asyncio.wait_for(self._directory.leave(self.id), _CALL_S))
        if self._session is not None:
            await self._session.close()

    async def _is_hung(self) -> bool:
        """Whether the server gave no answer to its last health check and gives none now: it holds memory for nobody.

        Asked twice, since one that is only slow has streams that would be cut.
        """
        if self._is_silent:
            with contextlib.suppress(StartupError):
                await self.check()
        return self._is_silent

    async def _beat_on(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            await self.beat()
            self._relieve_if_busy()

    def _relieve_if_busy(self) -> None:
        """Begin to copy chats to others, where requests have been waiting for a while."""
        self._n_busy = self._n_busy + 1 if self.load.waiting and not self._is_draining else 0
        now_s = time.monotonic()
        if self._handover is None or self._n_busy < _BUSY_BEATS or now_s - self._relieved_s < _RELIEVED_S:
            return
        self._relieved_s = now_s
        self._relief = asyncio.create_task(self._try(self._handover.relieve(self.id, self.url)))

    async def _get(self, path: str) -> Any:
        assert self._session is not None
        async with self._session.get(self.url + path) as response:
            response.raise_for_status()
            return await response.json()

    async def _post(self, path: str, body: Any) -> None:
        assert self._session is not None
        async with self._session.post(self.url + path, json=body) as response:
            response.raise_for_status()

    async def _try(self, step: Any) -> None:
        """A step of which nothing depends: its failure is logged."""
        try:
            await step
        except Exception as error:
            logger.warning("replica %s: %s", self.id, error or type(error).__name__)


def load_of(told: Mapping[str, Any]) -> ReplicaLoad:
    """Load from what `GET /peers/load` answers, which may tell more."""
    return ReplicaLoad(**{name: value for name, value in told.items() if name in _LOAD})


def _print(line: str) -> None:
    """A line of the server, into the log of this process."""
    with contextlib.suppress(OSError):
        print(line, flush=True)
