"""Batch worker: computes the lines of all batches as background work, as many at once as keep every slot busy.

A turn of the worker brings every open batch as far as it can go, then starts lines:

    validating   the input file is read; then it is in progress, or failed with a list of faults
    in progress  lines are computed, of all keys in turn; at the end, or when its time is over, it is finalizing
    finalizing   results become files; what was not computed is told as such
    cancelling   the same, after the lines that run were aborted

A line that ends with the server or the engine waits as before. What cannot be stored, for a full disk, is held until it
can be, and no new line begins meanwhile. Lines of a key that was removed wait, until their time is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from starlette.types import ASGIApp

from ggufd.api.batches.dispatch import LineResponse, dispatch
from ggufd.api.batches.lines import LineReader, body_of
from ggufd.api.batches.objects import given_up, lost, result_of
from ggufd.api.http.json_response import dumps
from ggufd.api.http.requestlog import log_crash
from ggufd.api.services.services import EngineService, Services
from ggufd.batches.records import BatchLine, BatchRecord, BatchStatus, LineFault, LineResult, StorageFull
from ggufd.batches.store import BatchStore
from ggufd.errors import GgufdError, Unavailable
from ggufd.keys.ring import ANYBODY, Key

logger = logging.getLogger("ggufd")

_POLL_S = 1.0
"""Seconds after which the worker looks for what it was not told of: time that is over, an engine that is back."""

_CLEAN_S = 60.0
_RETRY_S = 5.0
"""Seconds between two attempts to store what the disk did not take."""

_MAX_ATTEMPTS = 3
"""Attempts at a line that the engine failed on: it may be the line that ends the engine."""

_LEAST_AT_ONCE = 8
_LINES_A_TURN = 200
"""So few lines are checked at a time that streams get their turn."""

_TAKES_REQUESTS = ("ready", "sleeping", "waking")
_DRAINING = "draining"

_DISK_ERRORS = (OSError, StorageFull, Unavailable)


class _Running(NamedTuple):
    """Line that is being computed."""

    record: BatchRecord
    line: BatchLine


class BatchWorker:
    """Worker over `store`, which sends lines to `app`; `services` tells what is served now."""

    def __init__(self, app: ASGIApp, store: BatchStore, services: Callable[[], Services]) -> None:
        self._app = app
        self._store = store
        self._services = services
        self._wake = asyncio.Event()
        self._running: dict[asyncio.Task[None], _Running] = {}
        self._served: Counter[str] = Counter()
        self._main: asyncio.Task[None] | None = None
        self._cleaned_s = float("-inf")
        self._is_stuck = False
        self._n_held = 0

    # --- life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, or go on where the last run of the server ended."""
        if self._main is None:
            self._main = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """End at once; what is being computed waits for the next start."""
        tasks = [*self._running, *([] if self._main is None else [self._main])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._main = None

    def wake(self) -> None:
        """There is something new to do."""
        self._wake.set()

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._turn()
                if not self._n_held:
                    self._note_stuck(None)
            except _DISK_ERRORS as error:
                self._note_stuck(error)
            except Exception as error:
                log_crash(logger, "a turn of the batch worker failed", error)
            # Not `wait_for`: before Python 3.12 it may take a cancellation for its timeout, and then this never ends.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RETRY_S if self._is_stuck else _POLL_S):
                    await self._wake.wait()

    def _note_stuck(self, error: Exception | None) -> None:
        """Say once that batches stand still, and once that they go on."""
        if error is not None and not self._is_stuck:
            logger.error("batches pause, and are tried again every %d s: %s", _RETRY_S, error)
        if error is None and self._is_stuck:
            logger.info("batches go on")
        self._is_stuck = error is not None

    # --- a turn -----------------------------------------------------------------------------------------------------

    async def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() - self._cleaned_s >= _CLEAN_S:
            await self._store.run(BatchStore.clean)
            self._cleaned_s = loop.time()
        for record in await self._store.run(lambda store: store.batches.all_open()):
            await self._advance(record)
        await self._start_lines()

    async def _advance(self, record: BatchRecord) -> None:
        """Bring a batch to its next status, if it is due."""
        if record.status is BatchStatus.VALIDATING:
            await self._validate(record)
        elif record.status is BatchStatus.IN_PROGRESS:
            is_over = self._store.now() >= record.expires
            if is_over:
                await self._abort(record)
            if is_over or record.n_left == 0:
                ends_as = BatchStatus.EXPIRED if is_over and record.n_left else BatchStatus.COMPLETED
                moved = await self._store.run(BatchStore.move, record, BatchStatus.FINALIZING, ends_as=ends_as)
                await self._advance(moved)
        else:
            await self._abort(record)
            await self._store.run(BatchStore.finalize, record, lambda line: lost(line, record.ends_as))
            logger.info("%s is %s", record.batch_id, record.ends_as.value)

    async def _validate(self, record: BatchRecord) -> None:
        path = await self._store.run(BatchStore.input_path, record)
        if not path.exists():
            gone = LineFault("file_gone", "The input file is no longer there. Upload it again.", None, "input_file_id")
            await self._store.run(BatchStore.refuse, record, [gone])
            return
        reader = LineReader(path, record.order.endpoint, self._services().config.max_body_bytes)
        while await asyncio.to_thread(reader.read, _LINES_A_TURN):
            pass
        if reader.faults:
            await self._store.run(BatchStore.refuse, record, reader.faults)
        else:
            await self._store.run(BatchStore.begin, record, reader.lines)

    async def _abort(self, record: BatchRecord) -> None:
        """End the lines of a batch that run."""
        tasks = [task for task, one in self._running.items() if one.record.batch_id == record.batch_id]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- lines ------------------------------------------------------------------------------------------------------

    @property
    def _n_at_once(self) -> int:
        """Lines that run together: twice the slots, so that one that is free has its next line already."""
        services = self._services()
        if services.engine.ready is None or not services.is_ready or not _takes_requests(services.engine):
            return 0
        return max(_LEAST_AT_ONCE, 2 * services.engine.ready.n_slots)

    async def _start_lines(self) -> None:
        """Start lines until enough run, of the key that had the least of them so far, its oldest batch first."""
        n_free = self._n_at_once - len(self._running)
        if n_free <= 0 or self._n_held:
            return
        waiting: dict[str, list[_Running]] = {}
        for record in await self._store.run(lambda store: store.batches.all_open()):
            if record.status is BatchStatus.IN_PROGRESS and self._key_of(record) is not None:
                waiting.setdefault(record.owner, []).extend(await self._next_lines(record, n_free))
        self._lift(waiting)
        while n_free > 0 and waiting:
            owner = min(waiting, key=self._served.__getitem__)
            one = waiting[owner].pop(0)
            if not waiting[owner]:
                del waiting[owner]
            self._served[owner] += 1
            self._start(one)
            n_free -= 1

    async def _next_lines(self, record: BatchRecord, limit: int) -> list[_Running]:
        """The first lines of a batch that wait and do not run."""
        running = {one.line.number for one in self._running.values() if one.record.batch_id == record.batch_id}
        found = await self._store.run(lambda store: store.lines.waiting(record.batch_id, 0, limit + len(running)))
        return [_Running(record, line) for line in found if line.number not in running][:limit]

    def _lift(self, waiting: dict[str, list[_Running]]) -> None:
        """Keys that had nothing to do save up no turns."""
        for owner in [owner for owner, lines in waiting.items() if not lines]:
            del waiting[owner]
        known = [self._served[owner] for owner in waiting if owner in self._served]
        floor = min(known, default=0)
        self._served = Counter({owner: max(self._served[owner], floor) for owner in waiting})

    def _key_of(self, record: BatchRecord) -> Key | None:
        """The key that a batch is computed for; None where it is not valid now."""
        keys = self._services().config.keys
        if keys is None:
            return ANYBODY if not record.owner else None
        return next((key for key in keys if key.digest.hex() == record.owner), None)

    def _start(self, one: _Running) -> None:
        task = asyncio.create_task(self._compute(one))
        self._running[task] = one
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log_crash(logger, "a line of a batch failed", error)

    async def _compute(self, one: _Running) -> None:
        """Compute a line and store what came of it. Cancelled, it waits on."""
        key = self._key_of(one.record)
        if key is None:
            return
        try:
            raw = await self._store.run(BatchStore.read_line, one.record, one.line)
            body = dumps(body_of(raw))
        except (OSError, GgufdError) as error:
            await self._tell(one, given_up(one.line, f"The line could not be read again: {error}."))
            return
        order, engine = one.record.order, self._services().engine
        response = await dispatch(self._app, order.endpoint, body, key, order.address)
        result = await self._result(one, response, engine)
        if result is not None:
            await self._tell(one, result)

    async def _result(self, one: _Running, response: LineResponse, engine: EngineService) -> LineResult | None:
        """What is told of a response from `engine`; None where the line is to be computed again."""
        if self._key_of(one.record) is None or response.status in (401, 499):
            return None
        if response.status not in (429, 500, 503):
            return result_of(one.line, response)
        is_leaving = _state(engine) == _DRAINING
        await asyncio.sleep(_POLL_S)
        if is_leaving:
            # The server stops, or another model comes: no fault of the line.
            return None
        n_attempts = await self._store.run(BatchStore.note_attempt, one.record, one.line)
        return result_of(one.line, response) if n_attempts >= _MAX_ATTEMPTS else None

    async def _tell(self, one: _Running, result: LineResult) -> None:
        """Store a result; where the disk does not take it, hold it until it does."""
        if await self._is_stored(one, result):
            return
        self._n_held += 1
        try:
            while not await self._is_stored(one, result):  # noqa: ASYNC110 - a disk tells nobody that it has room
                await asyncio.sleep(_RETRY_S)
        finally:
            self._n_held -= 1

    async def _is_stored(self, one: _Running, result: LineResult) -> bool:
        try:
            await self._store.run(BatchStore.tell, one.record, one.line, result)
        except _DISK_ERRORS as error:
            self._note_stuck(error)
            return False
        return True


def _state(engine: EngineService) -> str:
    return engine.state.name.lower()


def _takes_requests(engine: EngineService) -> bool:
    return _state(engine) in _TAKES_REQUESTS and not engine.trouble
