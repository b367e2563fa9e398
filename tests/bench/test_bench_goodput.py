"""`ggufd bench goodput`: the load is what it says, and the rate that is found is the one that a server keeps."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import math
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ggufd.bench.app import app
from ggufd.bench.goodput.attempt import LoadCounts, play
from ggufd.bench.goodput.chats import ChatPool, LoadChat
from ggufd.bench.goodput.load import QUICK_MIX, Arrival, LoadDraw, LoadMix, RequestKind, poisson
from ggufd.bench.goodput.objective import Objective, Outcome, RateResult, RateRow
from ggufd.bench.goodput.report import GoodputReport, rate_line
from ggufd.bench.goodput.run import GoodputOptions, GoodputRun
from ggufd.bench.goodput.search import MOST_FALLS, RateSearch
from ggufd.bench.goodput.unloaded import ITL_TIMES, TRIES, TTFT_TIMES, Unloaded, objective_of
from ggufd.bench.measure.client import BenchError, Client, TimedAnswer
from ggufd.bench.measure.figures import Better, Metric
from ggufd.bench.scenarios.chat import ChatLine
from tests.support.fakes.bench_server import FakeServer, serving, serving_here
from tests.support.virtual_time import virtual_time

CHAT, DOCUMENT, QUESTION = RequestKind.CHAT, RequestKind.DOCUMENT, RequestKind.QUESTION


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    found = FakeServer()
    with virtual_time():
        async with serving_here(found):
            yield found


def quiet(line: str) -> None:
    """For progress that nobody reads."""


def draw(seed: int, *texts: object, mix: LoadMix = QUICK_MIX) -> LoadDraw:
    return LoadDraw(mix, "You are Alice.", 1.0, (seed,), texts)


def answered(
    *times: float, due: float = 0.0, sent: float = 0.0, kind: RequestKind = QUESTION, tokens: int | None = None
) -> Outcome:
    return Outcome(kind, due, TimedAnswer(sent, times, " w" * len(times), 5, tokens, None))


def failed(error: str = "refused the request") -> Outcome:
    return Outcome(QUESTION, 0.0, error=error)


# --- arrivals ------------------------------------------------------------------------------------------------------


def test_arrivals_offer_exactly_the_rate() -> None:
    for n, rate in itertools.product((1, 2, 100), (0.1, 1.0, 37.0)):
        times = poisson(random.Random(n), n, rate)
        assert times == sorted(times)
        assert min(times) > 0
        assert times[-1] == pytest.approx(n / rate)


def test_arrivals_are_a_poisson_process() -> None:
    """Gaps are exponential and do not know each other; counts in equal windows vary as much as their mean."""
    rate, n = 4.0, 40_000
    times = poisson(random.Random(11), n, rate)
    gaps = [late - early for early, late in itertools.pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(1 / rate, rel=0.001)
    assert statistics.stdev(gaps) == pytest.approx(1 / rate, rel=0.03)
    for length in (0.5, 1.0, 2.0):
        assert sum(gap > length / rate for gap in gaps) / len(gaps) == pytest.approx(math.exp(-length), abs=0.01)
    assert statistics.correlation(gaps[:-1], gaps[1:]) == pytest.approx(0.0, abs=0.02)
    counts = Counter(int(moment) for moment in times)
    windows = [counts[second] for second in range(int(n / rate))]
    assert statistics.variance(windows) / statistics.mean(windows) == pytest.approx(1.0, abs=0.06)


@given(st.integers(1, 400))
def test_the_kinds_have_their_shares_at_every_rate(n: int) -> None:
    mix = LoadMix()
    kinds = Counter(mix.kinds(n))
    assert kinds.total() == n
    assert abs(kinds[DOCUMENT] - mix.documents * n) <= 1
    assert abs(kinds[QUESTION] - mix.questions * n) <= 1


def test_the_same_seeds_give_the_same_load() -> None:
    assert texts_of(draw(1, "2.0").arrivals(20, 2.0), draw(1)) == texts_of(draw(1, "2.0").arrivals(20, 2.0), draw(1))


def test_another_seed_gives_another_load() -> None:
    one, two = draw(1).arrivals(20, 2.0), draw(2).arrivals(20, 2.0)
    assert not set(texts_of(one, draw(1))) & set(texts_of(two, draw(2)))
    assert shape(one) != shape(two)


def test_another_rate_is_the_same_pattern_at_another_pace_with_other_words() -> None:
    one, two = draw(1, "2.0").arrivals(20, 2.0), draw(1, "3.0").arrivals(20, 3.0)
    assert shape(one) == shape(two)
    assert [2 * arrival.due_s for arrival in one] == pytest.approx([3 * arrival.due_s for arrival in two])
    assert not set(texts_of(one, draw(1))) & set(texts_of(two, draw(1)))


def texts_of(arrivals: list[Arrival], load: LoadDraw) -> list[str]:
    return [load.prompt(arrival).text for arrival in arrivals]


def shape(arrivals: list[Arrival]) -> list[tuple[RequestKind, int, int]]:
    return [(arrival.kind, arrival.n_prompt, arrival.n_answer) for arrival in arrivals]


@given(st.sampled_from(list(RequestKind)), st.integers(0, 1000))
def test_prompts_and_answers_are_as_long_as_the_mix_says(kind: RequestKind, number: int) -> None:
    mix = LoadMix()
    load = LoadDraw(mix, "Alice. " * 200, 1.0, (number,), ())
    arrival = load.arrival(number, kind)
    prompt = load.prompt(arrival)
    n_words = len(prompt.text.split())
    low, high = {
        CHAT: (200 + mix.message[0], 200 + mix.message[1] + 8),
        DOCUMENT: (mix.document[0], mix.document[1] + 12),
        QUESTION: mix.message,
    }[kind]
    assert low <= n_words <= high
    low, high = mix.summary if kind is DOCUMENT else mix.answer
    assert low <= arrival.n_answer <= high
    assert (prompt.chat is not None) == (kind is CHAT)
    assert n_words + arrival.n_answer <= mix.needs


# --- chats ---------------------------------------------------------------------------------------------------------


def chat(turns: int = 3) -> LoadChat:
    return LoadChat(ChatLine("You are Alice.", 4), turns, 1000)


def test_a_turn_sends_the_whole_history_with_the_real_answer() -> None:
    one = chat()
    assert one.ask("Hello.", 2) == "You are Alice.\nBob: Hello.\nAlice:"
    one.hear(" w1 w2", 2)
    assert one.ask("And?", 2) == "You are Alice.\nBob: Hello.\nAlice: w1 w2\nBob: And?\nAlice:"


def test_the_longest_chat_is_never_cut() -> None:
    mix = LoadMix()
    one = LoadChat(ChatLine("system", mix.system), mix.turns, mix.needs)
    for _ in range(mix.turns):
        prompt = one.ask("message", mix.message[1])
        one.hear("answer", mix.answer[1])
    assert prompt.count("message") == mix.turns
    assert one.turns_left == 0


def test_a_chat_that_waits_for_its_answer_is_not_taken_and_a_new_one_begins() -> None:
    begun: list[LoadChat] = []

    def begin() -> LoadChat:
        begun.append(chat())
        return begun[-1]

    pool, source = ChatPool(begin, 2), random.Random(1)
    first, second, third = (pool.take(source) for _ in range(3))
    assert len({id(one) for one in (first, second, third)}) == 3
    assert begun == [one for one in begun if one in (first, second, third)]
    second.ask("Hello.", 1)
    pool.give_back(second, (" w", 1))
    assert pool.take(source) is second
    assert pool.take(source) is begun[3]


def test_a_chat_that_is_over_or_failed_makes_room_for_a_new_one() -> None:
    pool, source = ChatPool(lambda: chat(turns=1), 1), random.Random(1)
    one = pool.take(source)
    one.ask("Hello.", 1)
    pool.give_back(one, (" w", 1))
    two = pool.take(source)
    assert two is not one
    assert two.turns_left == 1
    pool = ChatPool(lambda: chat(turns=9), 1)
    one = pool.take(source)
    pool.give_back(one, None)
    assert pool.take(source) is not one


# --- objective -----------------------------------------------------------------------------------------------------

OBJECTIVE = Objective(ttft_s=1.0, itl_p95_s=0.5)


@pytest.mark.parametrize(
    ("outcome", "is_kept"),
    [
        (answered(1.0, 1.5, 2.0), True),  # both at their limits
        (answered(1.0625, 1.5), False),
        (answered(0.5, 1.0625), False),
        (answered(1.0), True),  # one piece: no gap
        (answered(1.0625), False),
        (answered(11.0, 11.5, due=10.0), True),
        (answered(11.0, 11.5, due=9.0, sent=10.9), False),  # counted from when it was due
        (failed(), False),
    ],
)
def test_a_request_keeps_both_or_none(outcome: Outcome, is_kept: bool) -> None:
    assert OBJECTIVE.is_kept_by(outcome) is is_kept


def test_one_long_gap_of_twenty_is_allowed_and_two_are_not() -> None:
    one = itertools.accumulate([0.0, *[0.125] * 19, 4.0])
    two = itertools.accumulate([0.0, *[0.125] * 18, 4.0, 4.0])
    assert OBJECTIVE.is_kept_by(answered(*one))
    assert not OBJECTIVE.is_kept_by(answered(*two))
    assert not OBJECTIVE.is_kept_by(answered(0.0, 0.125, 4.0))


def test_an_answer_of_one_piece_has_no_gaps() -> None:
    assert (answered(1.0).gaps_s, answered(1.0).itl_p95_s) == ([], None)
    assert (failed().ttft_s, failed().gaps_s, failed().itl_p95_s) == (None, [], None)


def test_the_share_is_of_all_requests() -> None:
    assert OBJECTIVE.share_kept([answered(1.0), answered(2.0), failed(), answered(0.5)]) == 0.5
    assert OBJECTIVE.share_kept([]) is None


def test_a_row_is_the_arithmetic_of_its_requests() -> None:
    outcomes = [answered(100.5, 101.0, due=100.0), answered(103.0, 104.0, due=101.0), failed("oops"), failed()]
    row = RateRow.of(RateResult(0, 0, 2.0, 99.0, outcomes, [answered(1.0), answered(3.0)]), OBJECTIVE)
    assert row == RateRow(
        rate=2.0,
        attained=2 / 5,
        kept_share=0.25,
        kept_a_second=1 / 5,
        ttft_p50_s=0.5,
        ttft_p90_s=2.0,
        itl_p95_s=1.0,
        errors=2,
        light_share=0.5,
    )
    assert not row.is_kept


def test_a_row_of_failures_alone_has_no_times() -> None:
    row = RateRow.of(RateResult(0, 0, 2.0, 99.0, [failed()]), OBJECTIVE)
    assert (row.attained, row.kept_a_second, row.ttft_p50_s, row.itl_p95_s, row.light_share) == (0, 0, None, None, None)
    assert rate_line("B", row, 1) == "B, 2.00 requests/s: 0% of 1 kept it, TTFT p90 - s, ITL p95 - s; 1 errors"


@pytest.mark.parametrize(("n_kept", "is_kept"), [(89, False), (90, True)])
def test_nine_of_ten_requests_are_enough(n_kept: int, is_kept: bool) -> None:
    outcomes = [answered(1.0)] * n_kept + [failed()] * (100 - n_kept)
    assert RateRow.of(RateResult(0, 0, 1.0, 0.0, outcomes), OBJECTIVE).is_kept is is_kept


def unloaded(ttft_s: float, gap_s: float, document_s: float) -> Unloaded:
    def one(wait_s: float, kind: RequestKind) -> Outcome:
        return answered(wait_s, wait_s + gap_s, wait_s + 2 * gap_s, kind=kind)

    return Unloaded([one(ttft_s, CHAT), one(ttft_s, QUESTION), one(document_s, DOCUMENT), one(document_s, DOCUMENT)])


def test_the_objective_is_so_many_times_what_the_faster_server_does_alone() -> None:
    found = objective_of([unloaded(0.25, 0.5, 2.0), unloaded(0.5, 0.25, 4.0)], None, None)
    assert found == Objective(TTFT_TIMES * 2.0, ITL_TIMES * 0.25)
    assert objective_of([unloaded(0.25, 0.5, 2.0)], 3.0, None) == Objective(3.0, ITL_TIMES * 0.5)
    assert objective_of([unloaded(0.25, 0.5, 2.0)], None, 4.0) == Objective(TTFT_TIMES * 2.0, 4.0)


def test_without_gaps_there_is_no_objective_for_them() -> None:
    whole = Unloaded([answered(1.0, kind=kind) for kind in RequestKind])
    with pytest.raises(BenchError, match="--itl-p95-ms"):
        objective_of([whole], None, None)
    assert objective_of([whole], None, 0.5) == Objective(TTFT_TIMES * 1.0, 0.5)


def test_the_rate_of_requests_one_after_the_other_is_that_of_the_mix() -> None:
    found = unloaded(0.5, 0.25, 3.5)
    assert found.rate(LoadMix(documents=0.5, questions=0.25)) == pytest.approx(1 / (0.5 * 4.0 + 0.5 * 1.0))


# --- search --------------------------------------------------------------------------------------------------------


def rates_of(search: RateSearch, knee: float) -> list[float]:
    """Everything that is measured on a server that keeps each rate up to its knee."""
    found = []
    while search.rate is not None:
        found.append(search.rate)
        search.tell(is_kept=search.rate <= knee)
    return found


@given(st.floats(0.05, 80.0), st.floats(1.1, 3.0), st.integers(0, 5), st.floats(0.2, 5.0))
def test_the_search_finds_the_knee(knee: float, factor: float, n_bisections: int, first: float) -> None:
    search = RateSearch(first, factor, n_bisections, 1000.0)
    rates = rates_of(search, knee)
    assert len(rates) == len(set(rates))
    if knee < first / factor**MOST_FALLS:
        assert search.kept == 0.0
        assert len(rates) == 1 + MOST_FALLS
        assert search.missed == pytest.approx(first / factor**MOST_FALLS)
    else:
        assert search.kept <= knee < search.missed
        assert search.missed / search.kept == pytest.approx(factor ** (0.5**n_bisections))


def test_the_search_rises_then_bisects() -> None:
    between = [4 * 2**0.5, 4 * 2**0.25]
    assert rates_of(RateSearch(1.0, 2.0, 2, 100.0), 4.5) == pytest.approx([1, 2, 4, 8, *between])


def test_the_search_ends_at_the_highest_rate_allowed() -> None:
    search = RateSearch(1.0, 4.0, 3, 10.0)
    assert rates_of(search, 1e9) == [1, 4, 10]
    assert (search.kept, search.missed) == (10.0, math.inf)
    assert rates_of(RateSearch(99.0, 4.0, 3, 10.0), 1e9) == [10]


# --- one load ------------------------------------------------------------------------------------------------------


async def test_arrivals_wait_for_no_answer(fake: FakeServer) -> None:
    fake.step_s = 1.0
    load = draw(1)
    arrivals = [load.arrival(i, QUESTION, 0.1 * i) for i in range(10)]
    start = time.perf_counter() + 1.0
    outcomes = await play(Client(fake.url), load, arrivals, start, LoadCounts())
    assert [outcome.due - start for outcome in outcomes] == pytest.approx([0.1 * i for i in range(10)])
    assert all(outcome.ttft_s is not None and 0 <= outcome.ttft_s < 0.1 for outcome in outcomes)
    assert all(gap == pytest.approx(1.0, abs=0.1) for outcome in outcomes for gap in outcome.gaps_s)


async def test_a_chats_next_turn_comes_after_its_answer_with_its_words(fake: FakeServer) -> None:
    fake.step_s = 0.01
    load = draw(1, mix=dataclasses.replace(QUICK_MIX, n_chats=1, turns=3))
    arrivals = [load.arrival(i, CHAT, float(i)) for i in range(4)]
    outcomes = await play(Client(fake.url), load, arrivals, time.perf_counter(), LoadCounts())
    prompts = [body["prompt"] for body in fake.bodies]
    for earlier, later, outcome in zip(prompts, prompts[1:3], outcomes, strict=False):
        assert outcome.answer is not None
        assert later.startswith(f"{earlier}{outcome.answer.text}\nBob: ")
    assert prompts[3].count("Bob:") == 1, "the fourth is a new chat's"


async def test_turns_of_a_slow_server_are_sent_all_the_same_as_new_chats(fake: FakeServer) -> None:
    fake.step_s = 100.0
    load = draw(1, mix=dataclasses.replace(QUICK_MIX, n_chats=2))
    arrivals = [load.arrival(i, CHAT, float(i)) for i in range(6)]
    outcomes = await play(Client(fake.url, timeout_s=1e6), load, arrivals, time.perf_counter(), LoadCounts())
    assert [body["prompt"].count("Bob:") for body in fake.bodies] == [1] * 6
    assert all(outcome.ttft_s is not None and outcome.ttft_s < 0.1 for outcome in outcomes)


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ({"refuse": (503, '{"error": {"message": "queue full"}}')}, r"refused the request (503: queue full)"),
        ({"error_after": 1}, "out of memory"),
        ({"break_after": 1}, "broke off"),
    ],
)
async def test_what_fails_is_an_outcome_and_the_others_go_on(
    fake: FakeServer, trouble: dict[str, object], said: str
) -> None:
    for name, value in trouble.items():
        setattr(fake, name, value)
    load = draw(1)
    outcomes = await play(Client(fake.url), load, load.arrivals(12, 10.0), time.perf_counter(), LoadCounts())
    assert len(outcomes) == 12
    assert all(said in outcome.error for outcome in outcomes)
    assert not any(OBJECTIVE.is_kept_by(outcome) for outcome in outcomes)


# --- whole runs ----------------------------------------------------------------------------------------------------


def options(*fakes: FakeServer, **others: object) -> GoodputOptions:
    given: dict[str, object] = {
        "seed": 7,
        "mix": QUICK_MIX,
        "n_requests": 60,
        "factor": 2.0,
        "bisections": 2,
        "rounds": 1,
    }
    given |= {"against": fakes[1].url} if len(fakes) > 1 else {}
    return GoodputOptions(fakes[0].url, **(given | others))  # type: ignore[arg-type]


def empty_report() -> GoodputReport:
    machine: dict[str, str | int] = {"cpu": "a CPU", "cores": 2}
    return GoodputReport(7, date="2026-01-01T00:00:00+00:00", machine=machine, warnings=[])


async def measured(*fakes: FakeServer, **others: object) -> tuple[GoodputReport, list[str]]:
    report, said = empty_report(), list[str]()
    with virtual_time():
        async with serving_here(*fakes):
            await GoodputRun(options(*fakes, **others), report, said.append, quiet).run()
    return report, said


HIGHEST = Metric("goodput", "90% of requests keep the objective", "highest rate", "requests/s", Better.HIGHER)


async def test_the_rate_found_is_what_a_server_can_read() -> None:
    """The fake reads one prompt after the other, as fast as it is, and so has a highest rate that is known."""
    report, said = await measured(FakeServer(token_s=0.01, step_s=0.001), ttft_s=1.5, itl_p95_s=100.0)
    (row,) = report.rows()
    assert row.metric == HIGHEST
    assert row.summaries[0] is not None
    goodput = row.summaries[0].median
    n_new = statistics.mean(
        outcome.answer.prompt_tokens - (outcome.answer.cached_tokens or 0)
        for result in report.results
        for outcome in result.outcomes
        if outcome.answer is not None and outcome.answer.prompt_tokens is not None
    )
    assert 0.2 < goodput * n_new * 0.01 < 1.2
    for result, one in report.rate_rows():
        assert one.is_kept == (one.rate <= goodput)
        assert one.rate == pytest.approx(len(result.outcomes) / (result.outcomes[-1].due - result.start), rel=0.01)
        assert rate_line("A", one, 60) in said


async def test_a_server_of_half_the_speed_has_half_the_rate_under_twice_the_objective() -> None:
    rates, kept = [], []
    for times in (1, 2):
        server = FakeServer(token_s=0.01 * times, step_s=0.002 * times)
        objective = {"ttft_s": 1.5 * times, "itl_p95_s": 1.0 * times}
        report, _ = await measured(server, first_rate=2.0 / times, bisections=1, **objective)
        rates.append([row.rate * times for _, row in report.rate_rows()])
        kept.append([row.is_kept for _, row in report.rate_rows()])
    assert rates[0] == pytest.approx(rates[1])
    assert kept[0] == kept[1]
    assert set(kept[0]) == {True, False}


async def test_the_faster_of_two_has_the_higher_rate_and_the_ratio_says_so() -> None:
    fast, slow = FakeServer(token_s=0.01, step_s=0.001), FakeServer(token_s=0.02, step_s=0.001)
    report, _ = await measured(fast, slow, ttft_s=3.0, itl_p95_s=100.0, bisections=0)
    (row,) = report.rows()
    assert row.ratio is not None
    assert row.ratio.of_medians > 1.4


async def test_only_one_server_is_loaded_at_a_time_and_both_get_the_same() -> None:
    log: list[str] = []
    one, two = FakeServer(token_s=0.001, name="a", log=log), FakeServer(token_s=0.001, name="b", log=log)
    report, _ = await measured(one, two, itl_p95_s=100.0, first_rate=2.0, most_rate=4.0)
    assert report.objective is not None
    # A document is 40 to 80 words, and six that say what to do with it.
    assert TTFT_TIMES * 0.046 <= report.objective.ttft_s <= TTFT_TIMES * 0.09
    assert report.objective.itl_p95_s == 100.0
    turns = [(name, len(list(run))) for name, run in itertools.groupby(log)]
    assert turns[:2] == [("a", 1), ("b", 1)], "the warm-up"
    assert turns[2:4] == [("a", 3 * TRIES), ("b", 3 * TRIES)], "without load"
    assert turns[4:] == [("a", 60), ("b", 60)] * 2
    assert [(result.server, result.rate) for result in report.results] == [(0, 2.0), (1, 2.0), (0, 4.0), (1, 4.0)]
    for first, second in zip(report.results[::2], report.results[1::2], strict=True):
        assert [outcome.kind for outcome in first.outcomes] == [outcome.kind for outcome in second.outcomes]
    documents = [[body["prompt"] for body in fake.bodies if "few words" in body["prompt"]] for fake in (one, two)]
    assert documents[0] == documents[1]
    assert len(set(documents[0])) == len(documents[0]) > 10


async def test_a_server_that_keeps_every_rate_has_at_least_the_highest(fake: FakeServer) -> None:
    report = empty_report()
    await GoodputRun(options(fake, itl_p95_s=1.0, first_rate=5.0, most_rate=20.0), report, quiet, quiet).run()
    assert [result.rate for result in report.results] == [5, 10, 20]
    (row,) = report.rows()
    assert row.summaries[0] is not None
    assert row.summaries[0].median == 20
    assert any("its goodput may be higher" in warning for warning in report.warnings)


async def test_a_server_that_keeps_it_at_no_rate_has_none_and_it_is_said(fake: FakeServer) -> None:
    fake.token_s = 0.01
    report = empty_report()
    await GoodputRun(options(fake, ttft_s=0.001, itl_p95_s=1.0, first_rate=8.0), report, quiet, quiet).run()
    assert [result.rate for result in report.results] == [8, 4, 2, 1, 0.5]
    (row,) = report.rows()
    assert row.summaries[0] is not None
    assert row.summaries[0].median == 0
    assert "A kept the objective at no rate, down to 0.500/s" in report.warnings
    assert "A kept the objective in 0% of its requests without load" in report.warnings


async def test_a_server_that_refuses_under_load_has_its_errors_counted_and_quoted(fake: FakeServer) -> None:
    report = empty_report()

    def refuse(line: str) -> None:  # once it is known without load
        fake.refuse = (503, '{"error": {"message": "queue full"}}')

    await GoodputRun(options(fake, first_rate=50.0, ttft_s=1.0, itl_p95_s=1.0), report, refuse, quiet).run()
    assert all(row.errors == 60 for _, row in report.rate_rows())
    said = f"A, 50.0 requests/s: 60 requests failed, the first: {fake.url} refused the request (503: queue full)"
    assert said in report.warnings


async def test_a_second_user_has_a_share_of_its_own_at_every_rate_and_above_the_goodput(fake: FakeServer) -> None:
    fake.token_s = 0.01
    report, said = empty_report(), list[str]()
    keys = {"api_key": "heavy", "other_api_key": "light", "light_rate": 2.0, "bisections": 1}
    await GoodputRun(options(fake, itl_p95_s=100.0, **keys), report, said.append, quiet).run()
    highest, light = report.rows()
    assert highest.summaries[0] is not None
    assert light.summaries[0] is not None
    rows = list(report.rate_rows())
    assert max(row.rate for _, row in rows) == pytest.approx(3 * highest.summaries[0].median)
    assert (light.metric.case, light.metric.quantity) == ("the light user, at any rate", "least share kept")
    shares = [row.light_share for _, row in rows]
    assert light.summaries[0].median == pytest.approx(100 * min(share for share in shares if share is not None))
    for result, row in rows:
        assert len(result.light) >= 20
        assert len(result.outcomes) >= 60
        assert {outcome.kind for outcome in result.light} == {CHAT}
        # It comes at its own rate, for as long as the load lasts.
        assert result.light[-1].due - result.start == pytest.approx(len(result.light) / 2.0, rel=0.01)
        assert len(result.light) / 2.0 == pytest.approx(len(result.outcomes) / row.rate, rel=0.1)
    assert all("light user" in line for line in said[2:])
    asked = Counter(key for key, _ in zip(fake.keys, fake.bodies, strict=True))
    assert asked["bearer light"] == 1 + sum(len(result.light) for result, _ in rows)


async def test_a_context_that_is_too_small_is_said_before_anything_is_measured(fake: FakeServer) -> None:
    fake.n_ctx = 100
    with pytest.raises(BenchError, match=r"needs \d+ tokens of context, http.* has 100 a slot"):
        await GoodputRun(options(fake), empty_report(), quiet, quiet).run()


async def test_a_server_that_fails_without_load_is_not_measured(fake: FakeServer) -> None:
    fake.break_after = 1
    found = options(fake)
    with pytest.raises(BenchError, match="broke off"):
        await GoodputRun(found, empty_report(), quiet, quiet).run()


async def test_every_round_has_texts_of_its_own(fake: FakeServer) -> None:
    report = empty_report()
    await GoodputRun(options(fake, rounds=2, first_rate=5.0, most_rate=5.0, itl_p95_s=1.0), report, quiet, quiet).run()
    assert [(result.repetition, result.rate) for result in report.results] == [(0, 5.0), (1, 5.0)]
    documents = [body["prompt"] for body in fake.bodies if "few words" in body["prompt"]]
    assert len(set(documents)) == len(documents) == 2 * 9 + TRIES
    assert len(report.records) == 2


async def test_a_later_round_begins_below_what_was_found_and_takes_the_median(fake: FakeServer) -> None:
    fake.token_s = 0.01
    report = empty_report()
    given = {"rounds": 3, "first_rate": 0.5, "ttft_s": 1.5, "itl_p95_s": 100.0, "bisections": 0}
    await GoodputRun(options(fake, **given), report, quiet, quiet).run()
    found = [record.figure.value for record in report.records]
    first = {result.repetition: result.rate for result in reversed(report.results)}
    assert first[0] == 0.5
    assert first[1] == pytest.approx(max(0.5, found[0] / 2.0))
    assert first[2] == pytest.approx(max(first[1], found[1] / 2.0))
    (row,) = report.rows()
    assert row.summaries[0] is not None
    assert row.summaries[0].median == statistics.median(found)


async def test_how_far_a_load_is_can_be_seen_while_it_runs(fake: FakeServer) -> None:
    seen: list[str] = []
    fake.step_s = 1.0
    given = options(fake, n_requests=10, first_rate=1.0, most_rate=1.0, ttft_s=1.0, itl_p95_s=2.0)
    await GoodputRun(given, empty_report(), quiet, seen.append).run()
    said = [re.fullmatch(r"A, 1\.00 requests/s: (\d+) requests sent, (\d+) of them not over", line) for line in seen]
    counts = [(int(one[1]), int(one[2])) for one in said if one]
    assert [sent for sent, _ in counts] == sorted(sent for sent, _ in counts)
    assert counts[-1][0] == 10
    assert all(0 < running <= sent for sent, running in counts[1:])
    assert seen[-1] == "", "it is wiped at the end"


async def test_a_run_that_is_cut_short_says_what_it_knows(fake: FakeServer) -> None:
    fake.token_s = 0.01
    report, second = empty_report(), asyncio.Event()

    def watch(line: str) -> None:
        if len(report.results) == 2:
            second.set()

    run = asyncio.create_task(
        GoodputRun(options(fake, first_rate=0.1, ttft_s=10.0, itl_p95_s=10.0), report, watch, quiet).run()
    )
    await second.wait()
    await asyncio.sleep(5.0)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    (row,) = report.rows()
    assert row.summaries[0] is not None
    assert row.summaries[0].median == pytest.approx(0.2)
    assert [rate["rate"] for rate in report.as_json()["rates"]] == [0.1, 0.2]


async def test_a_run_that_is_cut_short_before_any_rate_was_kept_has_no_goodput_yet(fake: FakeServer) -> None:
    report, first = empty_report(), asyncio.Event()

    def watch(line: str) -> None:
        if report.results:
            first.set()

    run = asyncio.create_task(GoodputRun(options(fake, ttft_s=1e-9, itl_p95_s=1.0), report, watch, quiet).run())
    await first.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert [row.kept_share for _, row in report.rate_rows()] == [0.0]
    assert report.rows() == []


# --- command -------------------------------------------------------------------------------------------------------


@pytest.mark.timed
def test_the_command_says_every_rate_and_writes_every_request(tmp_path: Path) -> None:
    one, two = FakeServer(step_s=0.001), FakeServer(step_s=0.002)
    out = tmp_path / "out.json"
    flags = ["--quick", "--requests", "6", "--rate", "20", "--max-rate", "40", "--seed", "5", "--json", str(out)]
    flags += ["--ttft-ms", "60000", "--itl-p95-ms", "60000"]
    with serving(one, two):
        result = CliRunner().invoke(app, ["goodput", one.url, "--against", two.url, *flags])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert found["seed"] == 5
    assert {rate["server"] for rate in found["rates"]} == {0, 1}
    assert {(metric["scenario"], metric["unit"]) for metric in found["results"]} == {("goodput", "requests/s")}
    assert found["objective"].keys() == {"ttft_s", "itl_p95_s", "basis"}
    for rate in found["rates"]:
        assert len(rate["requests"]) == 6
        assert {request["kind"] for request in rate["requests"]} <= {kind.value for kind in RequestKind}
        assert rate["light_requests"] == []
    for words in ("requests/s", "kept/s", "TTFT p90", "ITL p95", "A / B", "seed 5", "TTFT up to 60,000 ms"):
        assert words in result.output
    said = [line for line in result.output.splitlines() if " kept it, " in line]
    assert len(said) == len(found["rates"])


def test_two_runs_draw_different_texts() -> None:
    one, two = FakeServer(), FakeServer()
    with serving(one, two):
        for fake in (one, two):
            flags = ["--quick", "--requests", "4", "--rate", "100", "--max-rate", "100", "--itl-p95-ms", "1000"]
            result = CliRunner().invoke(app, ["goodput", fake.url, *flags])
            assert result.exit_code == 0, result.output
    first, second = ({body["prompt"] for body in fake.bodies} for fake in (one, two))
    assert not first & second


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["127.0.0.1:1"], "http://127.0.0.1:1 cannot be reached"),
        (["127.0.0.1:1", "--against", "http://127.0.0.1:1/v1"], "was given twice"),
    ],
)
def test_what_cannot_be_measured_is_one_line(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["goodput", *arguments])
    assert result.exit_code == 1
    assert said in result.output
    assert "Traceback" not in result.output


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
@pytest.mark.skipif(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="in the background nobody hears SIGINT")
def test_ctrl_c_prints_the_rates_until_then() -> None:
    fake = FakeServer()
    with serving(fake):
        flags = ["--quick", "--rate", "20", "--factor", "1.01", "--max-rate", "1000"]
        flags += ["--ttft-ms", "60000", "--itl-p95-ms", "60000"]
        process = subprocess.Popen(
            [sys.executable, "-m", "ggufd.bench", "goodput", fake.url, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        n_rates = 0
        for line in process.stderr:
            n_rates += " kept it, " in line
            if n_rates == 2:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "20.0" in out
    assert "highest rate" in out
    assert "interrupted" in out
    assert "Traceback" not in err
