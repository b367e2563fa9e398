"""fairness: one client sends many long requests at once, another a short one now and then; with one key, and with two.

With one key the questions wait behind the jobs. With two, a fair server admits them first, without loss of throughput:
compare `all requests` of the two cases, which is the same work. The second case wants `--other-api-key`; without it
both are the same.
"""

from __future__ import annotations

import asyncio
import functools
import statistics
import time

from ggufd.bench.measure.client import Stream, TimedAnswer, closing_all
from ggufd.bench.measure.figures import Better, Metric
from ggufd.bench.measure.site import Case, Figure, Site, Sizes

NAME = "fairness"
N_JOBS = 20
JOB_PROMPT = 60
JOB_TOKENS = 160
QUESTION = 20
ANSWER = 8
ALONE = 5  # questions asked of the idle server, for what one takes by itself
N_QUESTIONS = 8
PAUSE_S = 0.4  # before each question, the first one too


def cases(sizes: Sizes) -> list[Case]:
    """Both senders with one key, then with two."""
    needs = 2 * (JOB_PROMPT + JOB_TOKENS)
    return [
        Case(NAME, label, needs, functools.partial(_measure, label))
        for label in (f"{N_JOBS} jobs and questions, one key", f"{N_JOBS} jobs and questions, two keys")
    ]


async def _measure(case: str, site: Site) -> list[Figure]:
    person = (site.server.other if case.endswith("two keys") else None) or site.client
    alone = [await person.complete(site.words.text(QUESTION), ANSWER) for _ in range(ALONE)]
    streams: list[Stream] = []
    with closing_all(streams):
        start = time.perf_counter()
        streams.extend([await site.client.start(site.words.text(JOB_PROMPT), JOB_TOKENS) for _ in range(N_JOBS)])
        for _ in range(N_QUESTIONS):
            await asyncio.sleep(PAUSE_S)
            streams.append(await person.start(site.words.text(QUESTION), ANSWER))
        answers = await asyncio.gather(*(stream.answer() for stream in streams))
        seconds = max(answer.times[-1] for answer in answers) - start
    return _figures(case, alone, answers[N_JOBS:], sum(answer.tokens for answer in answers) / seconds)


def _figures(case: str, alone: list[TimedAnswer], questions: list[TimedAnswer], rate: float) -> list[Figure]:
    own = statistics.median(answer.wait for answer in alone)
    waits = tuple(answer.wait - own for answer in questions)
    return [
        Figure(
            Metric(NAME, case, "median wait of a question beyond its own work", "s", Better.LOWER),
            statistics.median(waits),
            waits,
        ),
        Figure(Metric(NAME, case, "all requests", "tok/s", Better.HIGHER), rate),
    ]
