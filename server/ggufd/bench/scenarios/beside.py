"""One chat beside clients that keep every slot busy: what the scenarios `background` and `full` have in common."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from dataclasses import dataclass

from ggufd.bench.measure.client import Client, Stream, TimedAnswer, closing_all
from ggufd.bench.measure.figures import Better, Metric
from ggufd.bench.measure.site import Figure, Site

CARD = 200
MESSAGE = 25
ANSWER = 24
LEAST_TURNS = 3
MOST_TURNS = 12
CHAT_CONTEXT = CARD + CARD // 10 + MOST_TURNS * 2 * (MESSAGE + ANSWER)
"""Tokens of context that the chat needs at most."""


@dataclass(frozen=True, slots=True)
class JobClients:
    """`n` clients, each with one unseen prompt after another.

    The chat begins `head_start_s` seconds after them, and goes on for `seconds`, and for `LEAST_TURNS` at least.
    """

    n: int
    n_prompt: int
    n_tokens: int
    head_start_s: float
    seconds: float


async def measure(site: Site, jobs: JobClients, scenario: str, label: str) -> list[Figure]:
    """Figures of the chat, and the rate of the jobs while it lasted; theirs is the other key, where there is one."""
    streams: list[Stream] = []
    with closing_all(streams):
        client = site.server.other or site.client
        clients = [asyncio.create_task(_job(site, client, jobs, streams)) for _ in range(jobs.n)]
        start = time.perf_counter() + jobs.head_start_s
        chat = asyncio.create_task(_chat(site, start, start + jobs.seconds))
        try:
            # A job only ends by an error, which is then the scenario's.
            await asyncio.wait([chat, *clients], return_when=asyncio.FIRST_COMPLETED)
            for job in clients:
                if job.done():
                    job.result()
            answers = await chat
            end = time.perf_counter()
        finally:
            for task in (chat, *clients):
                task.cancel()
            await asyncio.gather(chat, *clients, return_exceptions=True)
        done = sum(start < moment <= end for stream in streams for moment in stream.times)
        gaps = [b - a for stream in streams for a, b in itertools.pairwise(stream.times) if start < b <= end]
    return [
        *_chat_figures(scenario, label, answers),
        Figure(Metric(scenario, label, "jobs", "tok/s", Better.HIGHER), done / (end - start)),
        *([Figure(Metric(scenario, label, "longest ITL of the jobs", "s", Better.LOWER), max(gaps))] if gaps else []),
    ]


async def _job(site: Site, client: Client, jobs: JobClients, streams: list[Stream]) -> None:
    while True:
        stream = await client.start(site.words.text(jobs.n_prompt), jobs.n_tokens)
        streams.append(stream)
        await stream.answer()


async def _chat(site: Site, start: float, until: float) -> list[TimedAnswer]:
    """Turns of a growing chat until the time is over; the first one, which reads the card, is left out."""
    await asyncio.sleep(start - time.perf_counter())
    text = site.words.text(CARD)
    answers: list[TimedAnswer] = []
    while len(answers) <= LEAST_TURNS or (time.perf_counter() < until and len(answers) < MOST_TURNS):
        text += f"\n{site.words.text(MESSAGE)}\n"
        answers.append(await site.client.complete(text, ANSWER))
        text += answers[-1].text
    return answers[1:]


def _chat_figures(scenario: str, label: str, answers: list[TimedAnswer]) -> list[Figure]:
    waits = tuple(answer.wait for answer in answers)
    gaps = tuple(b - a for answer in answers for a, b in itertools.pairwise(answer.times))
    figures = [Figure(Metric(scenario, label, "median TTFT", "s", Better.LOWER), statistics.median(waits), waits)]
    if gaps:
        figures.append(Figure(Metric(scenario, label, "longest ITL", "s", Better.LOWER), max(gaps), gaps))
    return figures
