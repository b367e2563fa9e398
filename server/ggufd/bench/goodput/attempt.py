"""One load on one server: requests sent when they are due, whatever became of those before.

A request that fails is an outcome, not an end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from ggufd.bench.goodput.load import Arrival, LoadDraw
from ggufd.bench.goodput.objective import Outcome
from ggufd.bench.measure.client import BenchError, Client


async def play(client: Client, draw: LoadDraw, arrivals: Sequence[Arrival], start: float) -> list[Outcome]:
    """Send all arrivals of a load that begins at `start`, and wait for their answers; in order of arrival."""
    async with asyncio.TaskGroup() as group:
        tasks = []
        for arrival in arrivals:
            due = start + arrival.due_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(group.create_task(request(client, draw, arrival, due)))
    return [task.result() for task in tasks]


async def request(client: Client, draw: LoadDraw, arrival: Arrival, due: float) -> Outcome:
    """Ask, and give a chat its answer."""
    prompt = draw.prompt(arrival)
    try:
        answer = await client.complete(prompt.text, arrival.n_answer)
    except BenchError as error:
        draw.done(prompt, None)
        return Outcome(arrival.kind, due, error=str(error))
    draw.done(prompt, (answer.text, answer.tokens))
    return Outcome(arrival.kind, due, answer)
