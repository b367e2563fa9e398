"""Sixty-four clients on four slots for a while, engines killed under them: nobody reads another's text, nothing leaks.

`TESTS_SOAK_S=1800` makes it half an hour.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.support.programs.live_server import LiveServer, live_server
from tests.support.programs.soak import Footprint, Tally, kill_engines, make_clients

SOAK_S = float(os.environ.get("TESTS_SOAK_S", "60"))
N_CLIENTS = 64
LIFETIME_S = min(65.0, max(15.0, SOAK_S / 5))
"""Of an engine: a young one that dies is started again later each time, and given up after the sixth death."""

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(SOAK_S + 240),
    pytest.mark.skipif(sys.platform == "win32", reason="counts files as POSIX does"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    # One thread: two that wait for each other stand still on a machine that has other work, and this is no race.
    arguments = ("--ctx-size", "4096", "--parallel", "4", "--threads", "1", "--cache-ram", "64")
    with live_server(*arguments) as running:
        yield running


async def test_nobody_reads_anothers_text_nothing_is_lost_and_nothing_leaks(
    server: LiveServer, record_property: pytest.RecordProperty
) -> None:
    tally, footprint = Tally(), Footprint()
    clients = make_clients(N_CLIENTS, tally)
    limits = httpx.Limits(max_connections=2 * N_CLIENTS)
    files_before = psutil.Process(server.pid).num_fds()
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits, trust_env=False) as http:
        deadline_s = time.monotonic() + SOAK_S
        n_killed, *_ = await asyncio.gather(
            kill_engines(server, tally, LIFETIME_S, deadline_s),
            footprint.watch(server.pid, deadline_s),
            *(client.run(http, deadline_s) for client in clients),
        )
    figures = {**tally.ends, "requests": tally.n_started, "engines killed": n_killed}
    figures |= {"slowest, s": round(tally.latest_s, 1), "growth, MiB": round(footprint.growth_mib, 1)}
    for name, value in figures.items():
        record_property(name, value)
    print(figures)

    assert tally.n_ended == tally.n_started, "a request was lost"
    assert [client.foreign for client in clients] == [[]] * N_CLIENTS
    # If answers did not carry the clients' words, finding no foreign one would prove nothing.
    n_whole = sum(client.n_whole for client in clients)
    assert sum(client.n_own for client in clients) > n_whole / 2 > 5
    assert tally.ends["left"] + tally.ends["left while streaming"] > N_CLIENTS // 4
    assert tally.ends["refused rightly"] > 0

    assert n_killed > 0
    n_deaths = sum("engine process ended" in line and "ERROR" in line for line in server.log)
    assert n_deaths == n_killed, "an engine died that nobody killed"
    assert not any("Traceback" in line for line in server.log)

    await asyncio.sleep(1)
    server.wait_ready()
    assert server.wait_running(0, timeout_s=30)
    # The engine, three text processes, and what multiprocessing keeps to itself.
    assert len(server.children()) <= 5, "a process was left behind"
    assert psutil.Process(server.pid).num_fds() <= files_before + 10
    assert footprint.growth_mib < 8
    body = {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 2}
    async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as http:
        answer = await http.post("/v1/completions", json=body)
    assert answer.json()["choices"][0]["text"].startswith(" Paris")
