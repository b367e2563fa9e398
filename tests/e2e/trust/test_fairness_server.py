"""The real server and the demo model: one key sends twenty long jobs, another one short question at a time."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from itertools import pairwise
from typing import Any

import httpx
import pytest

from tests.support.programs.live_server import LiveServer, live_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

N_JOBS = 20
N_QUESTIONS = 7
JOB = {"temperature": 0, "ignore_eos": True, "max_tokens": 80}
QUESTION = {"temperature": 0, "ignore_eos": True, "max_tokens": 6}


async def ask(http: httpx.AsyncClient, key: str, prompt: str, **fields: Any) -> tuple[list[float], dict[str, Any]]:
    """Arrivals of the chunks of a stream, and the last chunk's timings."""
    body = {"prompt": prompt, "stream": True, **fields}
    times: list[float] = []
    last: dict[str, Any] = {}
    async with http.stream("POST", "/completion", json=body, headers={"x-api-key": key}) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                times.append(time.perf_counter())
                last = json.loads(line[6:])
    return times, last["timings"]


async def run(server: LiveServer) -> tuple[list[float], list[float]]:
    """Seconds that each question waited for a slot, and the gaps between the tokens of the jobs, which are steps."""
    async with httpx.AsyncClient(base_url=server.url, timeout=120, trust_env=False) as http:
        jobs = [asyncio.create_task(ask(http, "jobs", f"Job {i}: once upon a time", **JOB)) for i in range(N_JOBS)]
        await asyncio.sleep(1.0)
        waits = []
        for i in range(N_QUESTIONS):
            _, timings = await ask(http, "chat", f"Question {i}: who are you?", **QUESTION)
            waits.append(timings["queue_ms"] / 1000)
        assert sum(job.done() for job in jobs) < N_JOBS - 4, "the jobs were over before the questions"
        answers = await asyncio.gather(*jobs)
    gaps = [b - a for times, _ in answers for a, b in pairwise(times)]
    assert all(timings["predicted_n"] == JOB["max_tokens"] for _, timings in answers)
    return waits, gaps


@pytest.mark.parametrize(
    "flags", [("--preempt",), ("--reserved-slots", "1", "--short-tokens", "64")], ids=["preempt", "reserved"]
)
async def test_a_short_question_waits_two_steps_at_most_beside_twenty_long_jobs(flags: tuple[str, ...]) -> None:
    keys = ("--api-key", "jobs", "--api-key", "chat")
    with live_server("-np", "4", "-c", "4096", "-t", "1", "--max-queue", "64", *keys, *flags) as server:
        waits, gaps = await run(server)
    step_s = statistics.median(gaps)
    assert statistics.median(waits) <= 2 * step_s, (waits, step_s)
