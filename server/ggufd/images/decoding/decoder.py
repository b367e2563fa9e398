"""Decoder of image files: one process, one file at a time, a new process when one dies or takes too long.

Lives on one event loop. Knows neither where files come from nor what becomes of the pixels.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import deque
from dataclasses import dataclass

from ggufd.chat.process.deadline import CallDeadline
from ggufd.errors import EngineDown, GgufdError, InvalidRequest
from ggufd.images.decoding.limits import DecodeLimits
from ggufd.images.decoding.worker import NAME, DecoderReady, FileRefused, Outcome, main
from ggufd.images.pixels import Pixels
from ggufd.images.refusals import at_place
from ggufd.processes.child import Child, ChildSpawner
from ggufd.processes.supervisor import TOO_SLOW, ChildSupervisor, ProcessExit, RestartPolicy

logger = logging.getLogger(__name__)

_START_S = 60.0
_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 5.0
_GIVE_UP_AFTER = 5
"""So many starts in a row that failed, and callers are told at once instead of waiting."""

_KILL_CODE = -signal.SIGKILL if hasattr(signal, "SIGKILL") else None


@dataclass(slots=True)
class _Decoding:
    """File whose pixels are awaited. `deaths` counts the processes that were killed from outside meanwhile."""

    data: bytes
    pixels: asyncio.Future[Pixels]
    deaths: int = 0


class ImageDecoder:
    """Decoder of image files in a process that is started with the first, or by `start`, and whenever it dies."""

    def __init__(self, limits: DecodeLimits) -> None:
        self._limits = limits
        spawn = ChildSpawner(NAME, main, lambda: (limits,))
        policy = RestartPolicy(_BACKOFF_S, longest_s=_MAX_BACKOFF_S, start_s=_START_S)
        self._process: ChildSupervisor[Child] = ChildSupervisor(spawn, policy, self._receive, self._exited)
        self._deadline = CallDeadline(self._overrun, self._cpu_s)
        self._waiting: deque[_Decoding] = deque()
        self._current: _Decoding | None = None
        self._late: _Decoding | None = None
        self._is_launched = False
        self._is_closed = False

    def start(self) -> None:
        """Start the process, so that the first file need not wait for it."""
        if not self._is_launched and not self._is_closed:
            self._is_launched = True
            self._process.launch()

    async def stop(self) -> None:
        """End; files under way raise EngineDown."""
        self._is_closed = True
        self._deadline.stop()
        self._fail_all(EngineDown("The server is shutting down."))
        self._process.end()
        await self._process.wait_gone()

    @property
    def pid(self) -> int | None:
        """Process id of the one that decodes now; None between two."""
        link = self._process.link
        return link.pid if link is not None and self._process.is_ready else None

    async def decode(self, data: bytes, place: str) -> Pixels:
        """Pixels of a file. Raises InvalidRequest for `place` where it is not taken."""
        if self._is_closed:
            raise EngineDown("The server is shutting down.")
        self.start()
        decoding = _Decoding(data, asyncio.get_running_loop().create_future())
        self._waiting.append(decoding)
        self._next()
        try:
            return await decoding.pixels
        except InvalidRequest as error:
            raise at_place(error, place) from None

    # --- one file after another ----------------------------------------------------------------------------------

    def _next(self) -> None:
        """Send the next file, if the process is free; those whose callers have gone are left out."""
        while self._current is None and self._waiting and self._process.is_ready:
            decoding = self._waiting.popleft()
            if not decoding.pixels.done():
                self._current = decoding
                self._process.send(decoding.data)
                self._deadline.begin(self._limits.timeout_s)

    def _receive(self, message: DecoderReady | Outcome) -> None:
        if isinstance(message, DecoderReady):
            self._process.mark_ready()
        elif isinstance(message, FileRefused):
            self._settle(InvalidRequest(message.message))
        else:
            self._settle(message)
        self._next()

    def _settle(self, outcome: Pixels | GgufdError) -> None:
        self._deadline.stop()
        decoding, self._current = self._current, None
        if decoding is None or decoding.pixels.done():
            return
        if isinstance(outcome, GgufdError):
            decoding.pixels.set_exception(outcome)
        else:
            decoding.pixels.set_result(outcome)

    def _fail_all(self, error: GgufdError) -> None:
        self._settle(error)
        while self._waiting:
            self._current = self._waiting.popleft()
            self._settle(error)

    # --- exits and limits ----------------------------------------------------------------------------------------

    def _cpu_s(self) -> float:
        return 0.0 if self._process.link is None else self._process.link.cpu_s

    def _overrun(self) -> None:
        self._late = self._current
        self._process.kill(TOO_SLOW)

    def _exited(self, how: ProcessExit) -> None:
        self._deadline.stop()
        if self._is_closed:
            return
        reason = how.reason or f"exit code {how.code}"
        if how.was_ready:
            self._refuse_current(how)
        elif self._process.n_restarts >= _GIVE_UP_AFTER:
            self._give_up(how.stderr or reason)
            return
        logger.warning("The image decoder ended (%s) and is started again.", reason)
        self._process.restart()

    def _give_up(self, reason: str) -> None:
        """Start no other process before the next file comes, which is the next try."""
        self._is_launched = False
        logger.error("The image decoder does not start: %s", reason)
        self._fail_all(EngineDown(f"The image decoder does not start: {reason.splitlines()[-1]}"))

    def _refuse_current(self, how: ProcessExit) -> None:
        """Refuse the file that the process worked on; one killed from outside is no fault of the file, once."""
        decoding = self._current
        if decoding is None:
            return
        decoding.deaths += 1
        # Where another was late, it was answered after all while its process was being killed.
        is_innocent = decoding is not self._late if how.is_killed else how.code == _KILL_CODE and decoding.deaths < 2
        if is_innocent:
            self._current = None
            self._waiting.appendleft(decoding)
            return
        what = f"took longer than {self._limits.timeout_s:g} s" if how.is_killed else "stopped the decoder"
        self._settle(InvalidRequest(f"The image could not be decoded: it {what}. Save it again, or send it smaller."))
