"""The replicas as an ingress knows them: asked of the directory each second, kept while that is gone. Knows no Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from ggufd.cluster.replicas import Replica

logger = logging.getLogger("ggufd.cluster")

_FRESH_S = 1.0
_ASK_S = 5.0


class KnownReplicas:
    """List that `ask` refreshes, one call at a time. Only the first request waits for it: others take what there is."""

    def __init__(
        self, ask: Callable[[], Awaitable[Sequence[Replica]]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._known: Sequence[Replica] = ()
        self._asked_s: float | None = None
        self._asking: asyncio.Task[None] | None = None
        self._is_in_touch = True

    async def all(self) -> Sequence[Replica]:
        """Every known replica, draining ones too; the last known ones where the directory does not answer."""
        is_stale = self._asked_s is None or self._clock() - self._asked_s >= _FRESH_S
        if is_stale and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._refresh())
        if not self._known and self._asking is not None:
            await asyncio.shield(self._asking)
        return self._known

    async def _refresh(self) -> None:
        try:
            found = await asyncio.wait_for(self._ask(), _ASK_S)
        except Exception as error:
            # Whatever Ray raises: a stale list costs a retry, none would cost every request.
            if self._is_in_touch:
                logger.warning("the directory does not answer: %s", error or type(error).__name__)
            self._is_in_touch = False
        else:
            self._is_in_touch = True
            # A directory that has just come back has heard of nobody yet.
            self._known = found or self._known
        self._asked_s = self._clock()
