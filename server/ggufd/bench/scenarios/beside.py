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


class _JobClient:
    """A client of jobs: when it sent each of them, and their streams."""

    def __init__(self) -> None:
        self.jobs: list[tuple[float, Stream]] = []

    async def run(self, site: Site, client: Client, jobs: JobClients, streams: list[Stream]) -> None:
        while True:
            prompt = site.words.text(jobs.n_prompt)
            sent = time.perf_counter()
            streams.append(await client.start(prompt, jobs.n_tokens))
            self.jobs.append((sent, streams[-1]))
            await streams[-1].answer()

    def rate(self, start: float, end: float) -> float:
        """Tokens a second of its whole jobs between two moments; of the moments themselves where there is none.

        A server that computes its clients in step reads for half a minute and then writes for all: how much of that
        falls between two moments would be chance.
        """
        begun = [(sent, stream) for sent, stream in self.jobs if start <= sent <= end]
        if len(begun) > 1:
            return sum(len(stream.times) for _, stream in begun[:-1]) / (begun[-1][0] - begun[0][0])
        written = sum(start < moment <= end for _, stream in self.jobs for moment in stream.times)
        return written / (end - start)


async def measure(site: Site, jobs: JobClients, scenario: str, label: str) -> list[Figure]:
    """Figures of the chat, and the rates of the jobs and of all while it lasted.

    The jobs' is the other key, where there is one. Who keeps a chat waiting writes less of it.
    """
    streams: list[Stream] = []
    with closing_all(streams):
        client = site.server.other or site.client
        job_clients = [_JobClient() for _ in range(jobs.n)]
        clients = [asyncio.create_task(one.run(site, client, jobs, streams)) for one in job_clients]
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
        rate = sum(one.rate(start, end) for one in job_clients)
        chat_rate = sum(len(answer.times) for answer in answers) / (end - start)
        gaps = [b - a for stream in streams for a, b in itertools.pairwise(stream.times) if start < b <= end]
    return [
        # The first turn reads the card.
        *_chat_figures(scenario, label, answers[1:]),
        Figure(Metric(scenario, label, "jobs", "tok/s", Better.HIGHER), rate),
        Figure(Metric(scenario, label, "jobs and chat", "tok/s", Better.HIGHER), rate + chat_rate),
        *([Figure(Metric(scenario, label, "longest ITL of the jobs", "s", Better.LOWER), max(gaps))] if gaps else []),
    ]


async def _chat(site: Site, start: float, until: float) -> list[TimedAnswer]:
    """Turns of a growing chat until the time is over."""
    await asyncio.sleep(start - time.perf_counter())
    text = site.words.text(CARD)
    answers: list[TimedAnswer] = []
    while len(answers) <= LEAST_TURNS or (time.perf_counter() < until and len(answers) < MOST_TURNS):
        text += f"\n{site.words.text(MESSAGE)}\n"
        answers.append(await site.client.complete(text, ANSWER))
        text += answers[-1].text
    return answers


def _chat_figures(scenario: str, label: str, answers: list[TimedAnswer]) -> list[Figure]:
    waits = tuple(answer.wait for answer in answers)
    gaps = tuple(b - a for answer in answers for a, b in itertools.pairwise(answer.times))
    figures = [Figure(Metric(scenario, label, "median TTFT", "s", Better.LOWER), statistics.median(waits), waits)]
    if gaps:
        figures.append(Figure(Metric(scenario, label, "longest ITL", "s", Better.LOWER), max(gaps), gaps))
    return figures
