"""One load on one server: requests sent when they are due, whatever became of those before.

A request that fails is an outcome, not an end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ggufd.bench.goodput.load import Arrival, LoadDraw
from ggufd.bench.goodput.objective import Outcome
from ggufd.bench.measure.client import BenchError, Client


@dataclass(slots=True)
class LoadCounts:
    """How far a load is: requests sent, and those of them that are over."""

    sent: int = 0
    over: int = 0


async def play(
    client: Client, draw: LoadDraw, arrivals: Sequence[Arrival], start: float, counts: LoadCounts
) -> list[Outcome]:
    """Send all arrivals of a load that begins at `start`, and wait for their answers; in order of arrival."""
    async with asyncio.TaskGroup() as group:
        tasks = []
        for arrival in arrivals:
            due = start + arrival.due_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            counts.sent += 1
            task = group.create_task(request(client, draw, arrival, due))
            task.add_done_callback(lambda _: _count(counts))
            tasks.append(task)
    return [task.result() for task in tasks]


def _count(counts: LoadCounts) -> None:
    counts.over += 1


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
