"""Mover of chats: when a replica leaves, comes or has too much to do, what it keeps is where it will be asked for.

Nothing depends on it: a chat that is not moved, for whatever reason, is computed again. So every step has its time, and
no failure is more than a line of the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ggufd.cluster.moving.peer_calls import FETCH_S, CallFailed, KeptChat, PeerCalls
from ggufd.cluster.moving.plan import ChatMove, Home, moves
from ggufd.cluster.replicas import Replica, Replicas

logger = logging.getLogger("ggufd.cluster")

_SAVE_S = 10.0
_POLL_S = 0.25
_N_AT_ONCE = 4
_LATELY_S = 600.0
"""Chats that were used within it are worth moving from a replica that goes on."""


@dataclass(slots=True)
class Moved:
    """What came of moving: chats and bytes that moved, chats that were there already, and why others did not."""

    n_chats: int = 0
    n_bytes: int = 0
    n_present: int = 0
    failures: Counter[str] = field(default_factory=Counter)


class ChatMover:
    """Moves chats among the `replicas` of a cluster, each to its `home`, for at most `timeout_s` at a time."""

    def __init__(self, replicas: Replicas, home: Home, token: str, timeout_s: float = 60.0) -> None:
        self._replicas = replicas
        self._home = home
        self._token = token
        self._timeout_s = timeout_s

    async def part(self, replica_id: str, url: str) -> Moved:
        """Hand the chats of a replica that drains to those who will be asked for them.

        What still runs there is waited for: the chats that it answers go too.
        """
        async with PeerCalls(self._token) as calls:
            transfer = _Transfer(calls, time.monotonic() + self._timeout_s)
            source = Replica(replica_id, url)
            staying = [one for one in await self._replicas.all() if one.id != replica_id and not one.load.is_draining]
            targets = await transfer.alike(source, staying)
            while targets and transfer.left_s > 0:
                was_idle = await transfer.is_idle(source)
                kept = {source: await transfer.kept_of(source)}
                await transfer.carry_out(moves(kept, staying, self._home, targets))
                if was_idle:
                    break
                await asyncio.sleep(_POLL_S)
        return self._told(transfer.moved, f"{replica_id} handed over")

    async def welcome(self, replica_id: str, url: str) -> Moved:
        """Bring a new replica, which nobody is routed to yet, the chats that will be."""
        async with PeerCalls(self._token) as calls:
            transfer = _Transfer(calls, time.monotonic() + self._timeout_s)
            new = Replica(replica_id, url)
            others = [one for one in await self._replicas.all() if one.id != replica_id]
            alike = await transfer.alike(new, others)
            sources = [one for one in others if one.id in alike]
            kept = dict(zip(sources, await asyncio.gather(*map(transfer.kept_of, sources)), strict=True))
            await transfer.carry_out(moves(kept, [*others, new], self._home, {replica_id}))
        return self._told(transfer.moved, f"{replica_id} was given")

    async def relieve(self, replica_id: str, url: str) -> Moved:
        """Copy the chats that were used lately at a replica with too much to do to where the load guard sends them:
        each to its next home, where nobody waits.
        """
        async with PeerCalls(self._token) as calls:
            transfer = _Transfer(calls, time.monotonic() + self._timeout_s)
            source = Replica(replica_id, url)
            others = [one for one in await self._replicas.all() if one.id != replica_id]
            free = [one for one in others if not (one.load.waiting or one.load.is_draining)]
            targets = await transfer.alike(source, free)
            since_s = time.time() - _LATELY_S
            lately = [one for one in await transfer.kept_of(source) if one.used_s > since_s] if targets else []
            await transfer.carry_out(moves({source: lately}, others, self._home, targets))
        return self._told(transfer.moved, f"{replica_id} was relieved of")

    def _told(self, moved: Moved, what: str) -> Moved:
        if moved.n_chats or moved.failures:
            logger.info("replica %s %d chats, %.1f MB", what, moved.n_chats, moved.n_bytes / 1e6)
        for reason, n_times in moved.failures.most_common(3):
            logger.info("%d chats were not moved: %s", n_times, reason)
        return moved


class _Transfer:
    """One round of moves, which ends by a deadline. Who gives no answer once is not asked again."""

    def __init__(self, calls: PeerCalls, deadline_s: float) -> None:
        self._calls = calls
        self._deadline_s = deadline_s
        self._tried: set[tuple[str, str]] = set()
        self._silent: set[str] = set()
        self._places = asyncio.Semaphore(_N_AT_ONCE)
        self.moved = Moved()

    @property
    def left_s(self) -> float:
        return self._deadline_s - time.monotonic()

    async def alike(self, one: Replica, others: Sequence[Replica]) -> set[str]:
        """Ids of the replicas that compute with the same model and settings."""
        own, *found = await asyncio.gather(*(self._fingerprint(each) for each in (one, *others)))
        return {each.id for each, its in zip(others, found, strict=True) if own and its == own}

    async def is_idle(self, replica: Replica) -> bool:
        """Whether nothing runs there that could still become a chat; so it is with one that gives no answer."""
        try:
            return await self._calls.n_open(replica.url) == 0
        except CallFailed:
            return True

    async def kept_of(self, replica: Replica) -> list[KeptChat]:
        """What a replica keeps, after all of it was written to disk; nothing of one that gives no answer."""
        try:
            await self._calls.save(replica.url, max(0.1, min(_SAVE_S, self.left_s)))
            return await self._calls.kept(replica.url)
        except CallFailed as error:
            self.moved.failures[str(error)] += 1
            return []

    async def carry_out(self, planned: Sequence[ChatMove]) -> None:
        """Make the moves that were not tried yet, some at a time."""
        fresh = [one for one in planned if (one.kept.digest, one.target.id) not in self._tried]
        self._tried |= {(one.kept.digest, one.target.id) for one in fresh}
        await asyncio.gather(*map(self._carry, fresh))

    async def _carry(self, move: ChatMove) -> None:
        async with self._places:
            if self.left_s <= 0:
                self.moved.failures["there was no time left"] += 1
            elif not self._silent & {move.target.id}:
                await self._fetch(move)

    async def _fetch(self, move: ChatMove) -> None:
        timeout_s = min(FETCH_S, max(0.1, self.left_s))
        try:
            call = self._calls.fetch(move.target.url, move.source.url, move.kept.digest, timeout_s)
            fetched = await asyncio.wait_for(call, max(0.1, self.left_s))
        except (CallFailed, TimeoutError) as error:
            self._silent.add(move.target.id)
            self.moved.failures[str(error) or "there was no time left"] += 1
            return
        self.moved.n_chats += fetched.status == "fetched"
        self.moved.n_present += fetched.status == "present"
        self.moved.n_bytes += fetched.n_bytes
        if fetched.status == "failed":
            self.moved.failures[fetched.reason] += 1

    async def _fingerprint(self, replica: Replica) -> str:
        try:
            return await self._calls.fingerprint(replica.url)
        except CallFailed as error:
            self.moved.failures[str(error)] += 1
            return ""
