"""Shortest work first: who may go before whom, what it costs whom, and that nobody waits for twice as much work."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.scheduling.shortest_first import ShortestFirst
from ggufd.engine.sequence.sequence import SequenceState
from tests.support.costs import FixedCosts
from tests.support.fakes.fake_llama import make_request

TOKEN_S = 0.01


def policy(n_slots: int = 1, expected: float = 0.0) -> ShortestFirst:
    return ShortestFirst(FixedCosts(0.1, TOKEN_S), lambda _: expected, n_slots)


def waiting(n_prompt: int, patience_s: float | None = None, *, priority: int = 0, n_matched: int = 0) -> SequenceState:
    made = SequenceState.of(make_request(n_prompt, bytes(n_prompt), priority=priority), 0, 0.0)
    made.patience_s, made.n_matched = patience_s, n_matched
    return made


def picked(*line: SequenceState) -> int:
    return line.index(policy().pick(line))


def test_the_first_goes_first_where_nobody_has_patience() -> None:
    assert picked(waiting(100)) == 0
    assert picked(waiting(100), waiting(1)) == 0
    assert picked(waiting(100, 0.0), waiting(1, 9.0)) == 0


def test_a_much_shorter_one_goes_first_while_there_is_patience_for_its_work() -> None:
    assert picked(waiting(100, 0.1), waiting(10, 9.0)) == 1
    assert picked(waiting(100, 0.09), waiting(10, 9.0)) == 0


def test_one_that_is_not_much_shorter_does_not() -> None:
    assert picked(waiting(100, 9.0), waiting(60, 9.0)) == 0


def test_the_shortest_of_several_goes_first() -> None:
    assert picked(waiting(100, 9.0), waiting(40, 9.0), waiting(10, 9.0), waiting(20, 9.0)) == 2


def test_everybody_that_is_passed_must_have_the_patience() -> None:
    assert picked(waiting(100, 9.0), waiting(99, 0.0), waiting(10, 9.0)) == 0
    assert picked(waiting(100, 9.0), waiting(40, 0.0), waiting(10, 9.0)) == 1


def test_what_is_cached_of_a_prompt_is_no_work() -> None:
    assert picked(waiting(100, 0.1), waiting(500, 9.0, n_matched=490)) == 1


def test_what_a_preempted_one_has_computed_is_no_work() -> None:
    one = waiting(500, 9.0)
    one.state, one.n_past = array("B", b"state"), 490  # type: ignore[assignment]
    assert picked(waiting(100, 0.1), one) == 1


def test_a_less_urgent_one_passes_nobody() -> None:
    assert picked(waiting(100, 9.0), waiting(10, 9.0, priority=1)) == 0
    assert picked(waiting(100, 9.0, priority=1), waiting(10, 9.0, priority=0)) == 1


def test_long_answers_are_work_too() -> None:
    assert policy(n_slots=4, expected=20).work_s(waiting(30)) == pytest.approx(0.3 + 20 * 0.1 / 4)


def test_patience_is_the_prefill_that_is_ahead() -> None:
    one, running = waiting(10), waiting(50)
    running.slot, running.n_past = 0, 20
    policy().meet(one, [running, waiting(40, n_matched=10)], n_cached=4)
    assert one.patience_s == pytest.approx(0.6)
    assert one.n_matched == 4


def test_only_those_that_are_passed_pay() -> None:
    line = [waiting(100, 1.0), waiting(100, 0.2), waiting(10, 5.0), waiting(100, 1.0)]
    policy().charge(line, line[2], 0.3)
    assert [one.patience_s for one in line] == pytest.approx([0.7, 0.0, 5.0, 1.0])


@dataclass
class Job:
    """Work of the simulation: what was ahead of it when it came, and what later ones put before it."""

    sequence: SequenceState
    ahead_s: float
    passed_s: float = 0.0


@dataclass
class Server:
    """A server that does one job after another, in the policy's order."""

    policy: ShortestFirst = field(default_factory=policy)
    line: list[Job] = field(default_factory=list)

    def arrive(self, n_tokens: int) -> None:
        sequence = waiting(n_tokens)
        others = [job.sequence for job in self.line]
        self.policy.meet(sequence, others, 0)
        self.line.append(Job(sequence, sum(map(self.policy.work_s, others))))

    def serve(self) -> Job:
        sequences = [job.sequence for job in self.line]
        taken = self.policy.pick(sequences)
        work_s = self.policy.work_s(taken)
        self.policy.charge(sequences, taken, work_s)
        place = sequences.index(taken)
        for job in self.line[:place]:
            job.passed_s += work_s
        return self.line.pop(place)


@given(st.lists(st.one_of(st.integers(1, 400), st.none()), max_size=80))
def test_nobody_waits_for_more_than_twice_the_work_of_first_come_first_served(events: list[int | None]) -> None:
    """A number is a prompt that comes, None is the server taking its next."""
    server = Server()
    done = []
    for event in events:
        if event is not None:
            server.arrive(event)
        elif server.line:
            done.append(server.serve())
    while server.line:
        done.append(server.serve())
    for job in done:
        assert job.passed_s <= job.ahead_s + 1e-9


def test_short_prompts_among_long_ones_wait_less_and_long_ones_hardly_more() -> None:
    """Ten long prompts wait; a short one comes before each that is served: it is served next, until patience ends."""
    server = Server()
    for _ in range(10):
        server.arrive(400)
    order = []
    for _ in range(10):
        server.arrive(20)
        order.append(server.serve().sequence.n_prompt)
    assert order[0] == 400  # nothing was ahead of it, so it may not be passed
    assert order[1:] == [20] * 9
    assert all(job.passed_s <= job.ahead_s for job in server.line)
