"""Supervision of a child process: start, restart with backoff after an unexpected exit, end by a deadline.

One process runs at a time. The owner says when it is ready, and decides what an exit means; messages and exits of
earlier processes never reach it. Knows nothing of what the messages mean.
"""

from __future__ import annotations

import asyncio
import enum
import functools
import logging
import math
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

logger = logging.getLogger(__name__)

END_S = 5.0
"""How long a process may take to end when it is told to, and once more when it is killed."""

TOO_SLOW = "it took too long"


class Link(Protocol):
    """Running process to talk to: a `Child`, or a thread in tests."""

    def send(self, message: Any) -> None: ...
    def kill(self) -> None: ...


LinkT = TypeVar("LinkT", bound=Link)
LinkT_co = TypeVar("LinkT_co", bound=Link, covariant=True)


class Spawn(Protocol[LinkT_co]):
    """Factory of processes. `on_message` and `on_exit` are called on the event loop, and not before it returns.

    Raises OSError when none can be started.
    """

    def __call__(self, on_message: Callable[[Any], None], on_exit: Callable[[int, str], None], /) -> LinkT_co: ...


class ProcessState(enum.Enum):
    """State of a supervised process. Each launch goes once round:

        STOPPED --launch--> STARTING --mark_ready--> READY --end--> ENDING
           ^                   |                       |              |
           +------- exit ------+-------- exit ---------+---- exit ----+

    `end` leads from STARTING to ENDING as well. A restart is a launch that waits for the exit, and then for a backoff.
    """

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    ENDING = "ending"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Backoff between restarts: none before the first, then doubling from `first_s` up to `longest_s`.

    After `most` restarts in a row there is no further one. One that was ready for `healthy_s` seconds ends the row. One
    that is not ready after `start_s` seconds is killed.
    """

    first_s: float
    longest_s: float = math.inf
    most: int | None = None
    healthy_s: float = 0.0
    start_s: float | None = None

    def delay_s(self, n_restarts: int) -> float:
        """The wait before the next restart, after so many in a row."""
        return float(min(self.longest_s, self.first_s * (2.0 ** min(n_restarts, 64) - 1)))


@dataclass(frozen=True, slots=True)
class ProcessExit:
    """Exit of a process.

    `code` is negative for a signal. `reason` is the one that was known before (`set_reason`, `kill`), or why no process
    could be started (`never_started`). `is_expected` says that it was told to end, `is_killed` that the supervisor
    killed it for `reason`.
    """

    code: int
    stderr: str = ""
    reason: str = ""
    was_ready: bool = False
    is_expected: bool = False
    is_killed: bool = False
    never_started: bool = False

    @property
    def summary(self) -> str:
        """Why it ended, in a few words: the reason that was known, or the signal or code and its last line."""
        if self.reason:
            return self.reason
        last_line = self.stderr.splitlines()[-1] if self.stderr else ""
        ended = f"signal {signal.Signals(-self.code).name}" if self.code < 0 else f"exit code {self.code}"
        return f"{ended}: {last_line}" if last_line else ended


class ChildSupervisor(Generic[LinkT]):
    """Supervisor of one child process, over as many launches as it takes. Lives on one event loop.

    `on_message(message)` gets what the process says, `on_exit(ProcessExit)` how it ended, exactly once for a launch;
    whether to `restart` is the owner's decision.
    """

    def __init__(
        self,
        spawn: Spawn[LinkT],
        policy: RestartPolicy,
        on_message: Callable[[Any], None],
        on_exit: Callable[[ProcessExit], None],
    ) -> None:
        self.spawn = spawn
        self.state = ProcessState.STOPPED
        self.link: LinkT | None = None
        self.n_restarts = 0
        """Restarts in a row, without a healthy time between them."""
        self._policy = policy
        self._on_message = on_message
        self._on_exit = on_exit
        self._generation = 0
        self._reason = ""
        self._is_killed = False
        self._launched_s = 0.0
        self._ready_s = math.inf
        self._gone = asyncio.Event()
        self._gone.set()
        self._relaunching: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def is_ready(self) -> bool:
        return self.state is ProcessState.READY

    def launch(self) -> None:
        """Start a process now. One that cannot be started has exited at once."""
        self._generation += 1
        self._reason, self._is_killed = "", False
        self._launched_s, self._ready_s = time.monotonic(), math.inf
        self.state = ProcessState.STARTING
        self._gone.clear()
        on_message = functools.partial(self._receive, self._generation)
        on_exit = functools.partial(self._exited, self._generation)
        try:
            self.link = self.spawn(on_message, on_exit)
        except OSError as error:
            self._finish(ProcessExit(error.errno or 0, reason=f"could not be started ({error})", never_started=True))
            return
        if self._policy.start_s is not None:
            self._set_deadline(self._policy.start_s, functools.partial(self.kill, TOO_SLOW))

    def mark_ready(self) -> float:
        """Note that the process is ready; the seconds that took."""
        self._set_deadline(None)
        self.state = ProcessState.READY
        self._ready_s = time.monotonic()
        return self._ready_s - self._launched_s

    def restart(self, check: Callable[[], Awaitable[bool]] | None = None) -> bool:
        """Launch again after the backoff; False where the policy allows no further restart. See `relaunch`."""
        if time.monotonic() - self._ready_s >= self._policy.healthy_s:
            self.n_restarts = 0
        if self._policy.most is not None and self.n_restarts >= self._policy.most:
            return False
        delay_s = self._policy.delay_s(self.n_restarts)
        self.n_restarts += 1
        self.relaunch(check, delay_s)
        return True

    def relaunch(self, check: Callable[[], Awaitable[bool]] | None = None, delay_s: float = 0.0) -> None:
        """Launch when the process before is gone, its memory with it, and `delay_s` have passed, if `check` agrees."""
        self._cancel_relaunch()
        self._relaunching = asyncio.get_running_loop().create_task(self._launch_later(check, delay_s))

    async def _launch_later(self, check: Callable[[], Awaitable[bool]] | None, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        await self._gone.wait()
        if check is None or await check():
            # This task is done: the launch may fail at once, and the owner ask for the next.
            self._relaunching = None
            self.launch()

    def send(self, message: Any) -> None:
        """Send a message to the process; dropped where there is none."""
        if self.link is not None:
            self.link.send(message)

    def set_reason(self, reason: str) -> None:
        """Set the reason of an exit that is about to come."""
        self._reason = reason

    def kill(self, reason: str) -> None:
        """Kill the process for `reason`; its exit is an unexpected one."""
        if self.link is not None:
            self.set_reason(reason)
            self._is_killed = True
            self.link.kill()

    def expect_exit(self, deadline_s: float = END_S) -> None:
        """Expect the process to end of its own accord; it is killed at the deadline."""
        if self.link is not None:
            self.state = ProcessState.ENDING
            self._set_deadline(deadline_s, self.link.kill)

    def end(self, farewell: Any = None, deadline_s: float = END_S) -> None:
        """End the process, and any restart: by the message `farewell` and a deadline, without one by a kill."""
        self._cancel_relaunch()
        self.n_restarts = 0
        if farewell is not None and self.is_ready:
            self.send(farewell)
        elif self.link is not None and (farewell is None or self.state is ProcessState.STARTING):
            # While it starts it reads no messages.
            self.link.kill()
        self.expect_exit(deadline_s)

    async def wait_gone(self, timeout_s: float = 2 * END_S) -> bool:
        """Wait until no process is left; False where that takes longer than `timeout_s`."""
        try:
            await asyncio.wait_for(self._gone.wait(), timeout_s)
        except TimeoutError:
            logger.error("a process does not end, although it was killed")
            return False
        return True

    # --- what the process does ----------------------------------------------------------------------------------

    def _receive(self, generation: int, message: Any) -> None:
        if generation == self._generation:
            self._on_message(message)

    def _exited(self, generation: int, code: int, stderr: str) -> None:
        if generation == self._generation:
            is_expected = self.state is ProcessState.ENDING
            self._finish(ProcessExit(code, stderr, self._reason, self.is_ready, is_expected, self._is_killed))

    def _finish(self, how: ProcessExit) -> None:
        self._set_deadline(None)
        self.link = None
        self.state = ProcessState.STOPPED
        self._gone.set()
        self._on_exit(how)

    def _set_deadline(self, after_s: float | None, act: Callable[[], None] = lambda: None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if after_s is None else asyncio.get_running_loop().call_later(after_s, act)

    def _cancel_relaunch(self) -> None:
        if self._relaunching is not None:
            self._relaunching.cancel()
            self._relaunching = None
