"""Turns foreseen and told, and requests that have only so much time."""

from __future__ import annotations

from typing import Any

import pytest

from ggufd.engine.costs.step_costs import StepCosts
from ggufd.engine.messages.events import Admitted, Finish, FinishReason, Queued, Turn
from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.queueing.forecast import Forecast
from ggufd.engine.sequence.sequence import SequenceState
from tests.support.costs import FixedCosts
from tests.support.fakes.fake_llama import Rig, make_engine, make_request, run_alone

STEP_S = 0.0105
"""A step of one row of the fake context."""


def job(request_id: int, n_tokens: int = 100, **changes: Any) -> EngineRequest:
    return make_request(request_id, b"ab", **({"max_tokens": n_tokens, "ignore_eos": True} | changes))


def turns_of(rig: Rig, request_id: int) -> list[Turn]:
    return [event.turn for event in rig.collected[request_id].events if isinstance(event, Queued)]


def measured() -> StepCosts:
    return FixedCosts(0.1, 0.01)


def waiting(request_id: int, n_prompt: int = 10, max_tokens: int | None = 10, **changes: Any) -> SequenceState:
    return SequenceState.of(make_request(request_id, bytes(n_prompt), max_tokens=max_tokens, **changes), 0, 0.0)


# --- the forecast -----------------------------------------------------------------------------------------------------


def test_the_next_take_the_slots_that_are_free_first() -> None:
    forecast = Forecast(measured())
    short, long = waiting(1, max_tokens=5), waiting(2, max_tokens=50)
    turns = forecast.turns([waiting(i) for i in (3, 4, 5)], [short, long], n_free=0)
    assert turns[3] == (1, pytest.approx(0.6))
    assert turns[4] == (2, pytest.approx(0.6 + 1.1))
    assert turns[5] == (3, pytest.approx(0.6 + 2.2))


def test_a_free_slot_is_no_wait() -> None:
    assert Forecast(measured()).turns([waiting(1)], [waiting(2)], n_free=1) == {1: (1, 0.0)}


def test_one_more_request_waits_behind_all_that_wait() -> None:
    forecast = Forecast(measured())
    order, running = [waiting(1), waiting(2)], [waiting(3)]
    turns = forecast.turns([*order, waiting(4)], running, n_free=1)
    assert forecast.next_wait_s(order, running, n_free=1) == turns[4].wait_s > 0
    assert forecast.next_wait_s([], running, n_free=1) == 0


def test_the_pace_of_prompts_is_known_once_it_was_measured() -> None:
    assert Forecast(StepCosts()).prefill_tok_s == 0
    assert Forecast(measured()).prefill_tok_s == pytest.approx(100)


def test_an_answer_is_expected_to_be_as_long_as_the_latest_ones_beside_their_limits() -> None:
    forecast = Forecast(measured())
    assert forecast.expected_tokens(waiting(1, max_tokens=None)) == 0
    assert forecast.expected_tokens(waiting(1, max_tokens=80)) == 80
    ended = waiting(2, max_tokens=80)
    ended.tokens.extend([1] * 40)
    forecast.note_answer(ended, 10.0)
    assert forecast.expected_tokens(waiting(1, max_tokens=80)) == 40
    assert forecast.expected_tokens(waiting(1, max_tokens=30)) == 15
    assert forecast.expected_tokens(waiting(1, max_tokens=None)) == 40
    assert forecast.expected_tokens(waiting(1, max_tokens=80, ignore_eos=True)) == 80
    long = waiting(1, max_tokens=None)
    long.tokens.extend([1] * 100)
    assert forecast.expected_tokens(long) == 125


@pytest.mark.parametrize(("tokens_per_s", "left_s"), [(10.0, 0.6), (20.0, 0.35), (5.0, 1.1), (0.1, 1.6), (0.0, 0.6)])
def test_the_tokens_of_an_answer_take_what_they_took_lately(tokens_per_s: float, left_s: float) -> None:
    """Where steps take 0.1 s: with guesses that come true less, beside prompts more, but not for ever."""
    forecast = Forecast(measured())
    forecast.note_answer(waiting(1), tokens_per_s)
    one = waiting(2, max_tokens=5, ignore_eos=True)
    assert forecast.left_s(one) == pytest.approx(left_s)


def test_before_anything_was_measured_nothing_takes_any_time() -> None:
    forecast = Forecast(StepCosts())
    assert forecast.turns([waiting(1), waiting(2)], [waiting(3)], n_free=0) == {1: (1, 0.0), 2: (2, 0.0)}


def test_what_is_foreseen_comes_true() -> None:
    """Within a fifth, on the fake context, whose steps take the time they take."""
    rig = make_engine(n_slots=2)
    rig.add(*(job(i, 40 + 20 * (i % 3)) for i in range(10)))
    for _ in range(8):
        rig.step()
    now_s = rig.decoder.clock()
    foreseen = {entry.request_id: entry.turn for entry in rig.engine.queue_state().entries if entry.turn}
    assert [turn.position for turn in foreseen.values()] == list(range(1, 9))
    admitted_s: dict[int, float] = {}
    while rig.engine.has_work:
        at_s = rig.decoder.clock()
        admitted_s |= {event.request_id: at_s for event in rig.step() if isinstance(event, Admitted)}
    for request_id, turn in foreseen.items():
        assert turn.wait_s == pytest.approx(admitted_s[request_id] - now_s, rel=0.2)


# --- what is told -----------------------------------------------------------------------------------------------------


def test_who_asks_is_told_its_turn_until_it_has_it_and_nobody_else() -> None:
    rig = make_engine(n_slots=1)
    rig.add(job(1, 200), job(2, 200), job(3, report_queue=True), job(4))
    rig.run()
    turns = turns_of(rig, 3)
    assert [turn.position for turn in turns] == sorted((turn.position for turn in turns), reverse=True)
    assert {turn.position for turn in turns} == {1, 2}
    waits = [turn.wait_s for turn in turns[1:] if turn.position == 2]
    assert waits == sorted(waits, reverse=True)
    assert len(turns) <= 2 + 400 * STEP_S / 1.0 + 1
    assert not turns_of(rig, 4)
    assert not rig.engine._statistics._announcer._told


def test_several_choices_are_one_place() -> None:
    rig = make_engine(n_slots=1)
    rig.add(job(1), job(2, n=3), job(3, report_queue=True))
    rig.step()
    assert turns_of(rig, 3)[0].position == 2


def test_the_foreseen_order_is_the_fair_one() -> None:
    rig = make_engine(n_slots=1)
    rig.add(job(1, account="a"), job(2, account="a"), job(3, account="a"), job(4, account="b", report_queue=True))
    rig.step()
    assert turns_of(rig, 4)[0].position == 1


def test_the_state_shows_all_in_order() -> None:
    rig = make_engine(n_slots=1)
    rig.add(job(1, name="alice", person="alice", n=2), job(2, person="10.0.0.1", priority=3))
    for _ in range(5):
        rig.step()
    running, queued = rig.engine.queue_state().entries
    assert (running.request_id, running.principal.name, running.turn, running.generated_tokens) == (1, "alice", None, 5)
    assert (queued.request_id, queued.principal.person, queued.priority, queued.prompt_tokens) == (2, "10.0.0.1", 3, 2)
    assert queued.turn is not None
    assert queued.age_s == pytest.approx(rig.decoder.clock() - 100.0)
    rig.run()


# --- only so much time ------------------------------------------------------------------------------------------------


def warm(**options: Any) -> Rig:
    """An engine that has measured its rates, with long answers in its only slot."""
    rig = make_engine(n_slots=1, n_ctx=2048, **options)
    rig.add(job(100, 400, prompt_logprobs=True))
    rig.run()
    rig.add(job(101, 400), job(102, 400))
    for _ in range(10):
        rig.step()
    return rig


def test_a_request_that_could_not_begin_in_its_time_is_refused_at_once() -> None:
    rig = warm()
    rig.add(job(1, timeout_s=2.0))
    rig.step()
    failure = rig.collected[1].failure
    assert failure is not None
    assert (failure.code, failure.param) == ("queue_timeout", "timeout")
    assert failure.retry_after_s == pytest.approx(790 * STEP_S - 2.0, rel=0.2)
    rig.run()


def test_a_request_that_has_time_enough_waits_and_is_told_so() -> None:
    rig = warm()
    rig.add(job(1, 20, timeout_s=30.0))
    rig.step()
    assert turns_of(rig, 1) == [Turn(2, pytest.approx(790 * STEP_S, rel=0.2))]
    assert rig.run()[1].finishes[0].usage.completion_tokens == 20
    assert len(turns_of(rig, 1)) == 1


def test_one_that_is_admitted_at_once_is_never_refused() -> None:
    rig = warm(preempts=True)
    rig.add(job(1, 5, timeout_s=2.0, priority=-1))
    assert rig.run()[1].finishes[0].usage.completion_tokens == 5


def finish_of(rig: Rig, request_id: int, index: int = 0) -> Finish:
    return rig.collected[request_id].finishes[index]


def test_what_there_is_when_the_time_is_over_is_the_answer() -> None:
    rig = make_engine(n_ctx=1024)
    request = job(1, 500, timeout_s=1.0)
    rig.add(request)
    rig.run()
    finish = finish_of(rig, 1)
    assert finish.reason is FinishReason.LENGTH
    assert 90 < finish.usage.completion_tokens <= 96
    assert run_alone(job(1, 500), n_ctx=1024).texts[0].startswith(rig.text(1))


def test_a_request_whose_time_is_over_before_its_first_token_fails() -> None:
    rig = make_engine(n_slots=1, n_ctx=1024, n_batch=32)
    rig.add(make_request(1, b"x" * 900, timeout_s=0.1))
    failure = rig.run()[1].failure
    assert failure is not None
    assert (failure.code, failure.param) == ("queue_timeout", "timeout")


def test_all_choices_end_together_when_some_have_begun() -> None:
    rig = make_engine(n_slots=1, n_ctx=1024)
    rig.add(job(1, 500, n=2, timeout_s=1.0))
    rig.run()
    assert finish_of(rig, 1, 0).usage.completion_tokens > 50
    assert finish_of(rig, 1, 1).usage.completion_tokens == 0
    assert finish_of(rig, 1, 1).usage.queue_s == pytest.approx(1.0, rel=0.1)
    assert all(finish_of(rig, 1, index).reason is FinishReason.LENGTH for index in (0, 1))


def test_a_preempted_request_whose_time_is_over_ends_with_what_it_has() -> None:
    rig = make_engine(n_slots=1, n_ctx=1024, preempts=True)
    rig.add(job(1, 500, priority=1, timeout_s=1.0, xtc_probability=0.5))
    for _ in range(10):
        rig.step()
    rig.add(job(2, 300))
    rig.run()
    assert finish_of(rig, 1).reason is FinishReason.LENGTH
    assert finish_of(rig, 1).usage.completion_tokens == 10
    assert all(chain.is_closed for chain in rig.decoder.chains)
    assert len(rig.text(2)) > 100
