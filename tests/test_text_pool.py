"""Text processes: a slow call makes nobody wait who came after it, and whoever leaves or dies harms nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import psutil
import pytest

from server.chat.client import TextClient
from server.chat.pool import TextPool
from server.errors import EngineDown, InvalidRequest
from tests.test_text_client import HANGS, params, said

CALL_TIMEOUT_S = 3.0


@pytest.fixture
async def pool() -> AsyncIterator[TextPool]:
    pool = TextPool(lambda: TextClient(params(HANGS), call_timeout_s=CALL_TIMEOUT_S), patience_s=0.05)
    await pool.start()
    yield pool
    pids = pool.pids
    await pool.stop()
    assert not any(psutil.pid_exists(pid) for pid in pids)


async def test_one_process_is_enough_where_nobody_waits_long(pool: TextPool) -> None:
    tokens = await asyncio.gather(*(pool.encode(str(number)) for number in range(50)))
    assert [await pool.decode(one) for one in tokens] == [str(number) for number in range(50)]
    assert len(pool.pids) == 1


async def test_a_slow_call_makes_the_others_wait_only_until_there_is_a_second_process(pool: TextPool) -> None:
    slow = asyncio.create_task(pool.render(said("hang")))
    await asyncio.sleep(0)
    assert await pool.encode("x")
    assert not slow.done()
    started_s = time.monotonic()
    for number in range(10):
        assert await pool.encode(str(number))
    assert time.monotonic() - started_s < 1
    assert len(pool.pids) == 2
    with pytest.raises(InvalidRequest, match="took longer"):
        await slow


async def test_however_many_come_while_the_second_process_starts_there_is_no_third(pool: TextPool) -> None:
    slow = asyncio.create_task(pool.render(said("hang")))
    await asyncio.sleep(0)
    waiting = []
    while len(pool.pids) < 2:
        # One in every turn of the loop.
        waiting.append(asyncio.create_task(pool.encode("x")))
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    slow.cancel()
    assert len(pool._clients) == 2


async def test_one_who_leaves_a_slow_call_does_not_let_others_in_behind_it(pool: TextPool) -> None:
    slow = asyncio.create_task(pool.render(said("hang")))
    await asyncio.sleep(0.01)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    assert await pool.encode("x")
    assert len(pool.pids) == 2


async def test_one_who_leaves_while_waiting_is_passed_over(pool: TextPool) -> None:
    slow = asyncio.create_task(pool.render(said("hang")))
    await asyncio.sleep(0)
    leaving = [asyncio.create_task(pool.encode("left")) for _ in range(3)]
    staying = asyncio.create_task(pool.encode("stayed"))
    await asyncio.sleep(0)
    for one in leaving:
        one.cancel()
    assert await pool.decode(await staying) == "stayed"
    slow.cancel()


async def test_the_end_is_told_to_those_who_wait(pool: TextPool) -> None:
    waiting = [asyncio.create_task(pool.render(said("hang"))) for _ in range(3)]
    await asyncio.sleep(0.01)
    await pool.stop()
    for one in waiting:
        with pytest.raises(EngineDown):
            await one
    with pytest.raises(EngineDown):
        await pool.encode("late")


async def test_a_second_process_that_cannot_start_is_done_without() -> None:
    made: list[TextClient] = []

    def new_client() -> TextClient:
        made.append(TextClient(params(HANGS if not made else "{% for %}"), call_timeout_s=0.5))
        return made[-1]

    pool = TextPool(new_client, patience_s=0.01)
    await pool.start()
    slow = asyncio.create_task(pool.render(said("hang")))
    await asyncio.sleep(0)
    assert await pool.encode("x")
    with pytest.raises(InvalidRequest):
        await slow
    await pool.stop()
    assert len(made) == 2
