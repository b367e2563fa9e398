"""Virtual time: sleeps cost nothing, keep their order and their length, and sockets come before timers."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.support.virtual_time import virtual_time

REAL_S = time.monotonic


async def test_sleeps_take_no_time_and_are_measured_in_full() -> None:
    begun_s, woken = REAL_S(), []

    async def sleep(seconds: float) -> None:
        start_s = time.perf_counter()
        await asyncio.sleep(seconds)
        woken.append(time.perf_counter() - start_s)

    with virtual_time():
        await asyncio.gather(*(sleep(seconds) for seconds in (300.0, 0.25, 1000.0, 0.0)))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 5000)
    assert woken == pytest.approx([0.0, 0.25, 300.0, 1000.0], abs=0.01)
    assert REAL_S() - begun_s < 100


async def test_what_is_written_is_read_before_the_next_timer() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()

    with virtual_time():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for number in range(50):
            start_s = time.perf_counter()
            writer.write(b"%d\n" % number)
            async with asyncio.timeout(1):
                assert await reader.readline() == b"%d\n" % number
            assert time.perf_counter() - start_s < 0.01
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        server.close()
        await asyncio.sleep(1)


async def test_the_loops_own_time_comes_back() -> None:
    loop = asyncio.get_running_loop()
    with virtual_time():
        await asyncio.sleep(1000)
        assert loop.time() == time.perf_counter() == time.monotonic() > REAL_S() + 900
    assert loop.time() == pytest.approx(REAL_S(), abs=60)
