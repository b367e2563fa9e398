"""background: one chat beside batch jobs that keep every slot busy, with a second key for the jobs where one is given.

With one key the chat waits in line like everybody. A server that is fair between keys lets it pass.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time

from ggufd.bench.measure.client import Stream, TimedAnswer, closing_all
from ggufd.bench.measure.figures import Better, Metric
from ggufd.bench.measure.site import Case, Figure, Site, Sizes

NAME = "background"
JOB_PROMPT = 100
JOB_TOKENS = 160
CARD = 200
MESSAGE = 25
ANSWER = 24
HEAD_START_S = 1.0  # of the jobs
LEAST_TURNS = 3
MOST_TURNS = 12


def cases(sizes: Sizes) -> list[Case]:
    """The one case."""
    needs = CARD + CARD // 10 + MOST_TURNS * 2 * (MESSAGE + ANSWER)
    return [Case(NAME, f"a chat beside {sizes.jobs} jobs", needs, _measure, streams=sizes.jobs + 1)]


def _label(site: Site) -> str:
    keys = "one key" if site.server.other is None else "two keys"
    return f"a chat beside {site.sizes.jobs} jobs, {keys}"


async def _measure(site: Site) -> list[Figure]:
    streams: list[Stream] = []
    with closing_all(streams):
        jobs = [asyncio.create_task(_job(site, streams)) for _ in range(site.sizes.jobs)]
        start = time.perf_counter() + HEAD_START_S
        chat = asyncio.create_task(_chat(site, start, start + site.sizes.seconds))
        try:
            # A job only ends by an error, which is then the scenario's.
            await asyncio.wait([chat, *jobs], return_when=asyncio.FIRST_COMPLETED)
            for job in jobs:
                if job.done():
                    job.result()
            answers = await chat
            end = time.perf_counter()
        finally:
            for task in (chat, *jobs):
                task.cancel()
            await asyncio.gather(chat, *jobs, return_exceptions=True)
        done = sum(start < moment <= end for stream in streams for moment in stream.times)
    return _figures(_label(site), answers, done / (end - start))


async def _job(site: Site, streams: list[Stream]) -> None:
    """Endless unseen prompts, one after the other; with the other key, if there is one."""
    client = site.server.other or site.client
    while True:
        stream = await client.start(site.words.text(JOB_PROMPT), JOB_TOKENS)
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


def _figures(case: str, answers: list[TimedAnswer], rate: float) -> list[Figure]:
    waits = tuple(answer.wait for answer in answers)
    gaps = tuple(b - a for answer in answers for a, b in itertools.pairwise(answer.times))
    figures = [
        Figure(Metric(NAME, case, "median TTFT", "s", Better.LOWER), statistics.median(waits), waits),
        Figure(Metric(NAME, case, "jobs", "tok/s", Better.HIGHER), rate),
    ]
    if gaps:
        figures.insert(1, Figure(Metric(NAME, case, "longest ITL", "s", Better.LOWER), max(gaps), gaps))
    return figures
