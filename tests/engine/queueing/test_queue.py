"""The queue: order, fair shares, depth and deadlines; and a simulation of the policy alone."""

from __future__ import annotations

import random
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufd.engine.queueing.fairness import Accounts
from ggufd.engine.queueing.queue import RequestQueue
from ggufd.engine.sequence.sequence import SequenceState, Status
from ggufd.errors import EngineFailure
from ggufd.keys.ring import Limits
from tests.support.fakes.fake_llama import make_request


def sequences(request_id: int, *, n: int = 1, arrival_s: float = 0.0, **changes: Any) -> list[SequenceState]:
    request = make_request(request_id, **({"prompt": b"x"} | changes), n=n)
    return [SequenceState.of(request, index, arrival_s) for index in range(n)]


def take(queue: RequestQueue, sequence: SequenceState) -> None:
    """Give a sequence a slot, as the engine does."""
    queue.take(sequence)
    sequence.status, sequence.admit_s = Status.RUNNING, 1.0
    queue.charge_prompt(sequence)


def generate(queue: RequestQueue, sequence: SequenceState, n: int = 1) -> None:
    """Let a running sequence say `n` tokens."""
    sequence.n_past = sequence.n_prompt
    for _ in range(n):
        sequence.tokens.append(1)
        queue.charge_token(sequence)


def order(queue: RequestQueue) -> list[tuple[int, int]]:
    return [(sequence.request.request_id, sequence.index) for sequence in queue]


def test_first_come_first_served() -> None:
    queue = RequestQueue(60.0)
    for request_id in (5, 3, 9):
        queue.push(sequences(request_id, n=2))
    assert order(queue) == [(5, 0), (5, 1), (3, 0), (3, 1), (9, 0), (9, 1)]


def test_who_is_taken_may_leave_while_the_order_is_read() -> None:
    queue = RequestQueue(60.0)
    for request_id in range(4):
        queue.push(sequences(request_id))
    for sequence in queue:
        if sequence.request.request_id % 2 == 0:
            queue.take(sequence)
    assert order(queue) == [(1, 0), (3, 0)]


def test_all_sequences_of_a_request_are_found() -> None:
    queue = RequestQueue(60.0)
    wanted = sequences(2, n=3)
    queue.push(sequences(1))
    queue.push(wanted)
    assert queue.of_request(2) == wanted
    assert queue.of_request(7) == []


@pytest.mark.parametrize(("now_s", "is_expired"), [(0.0, False), (60.0, False), (60.1, True)])
def test_who_has_waited_longer_than_it_may_is_expired(now_s: float, is_expired: bool) -> None:
    queue = RequestQueue(60.0)
    queue.push(sequences(1, n=2))
    assert [sequence.index for sequence in queue.expired(now_s)] == ([0] if is_expired else [])


def test_a_later_choice_never_expires() -> None:
    queue = RequestQueue(60.0)
    first, *_ = request = sequences(1, n=3)
    queue.push(request)
    queue.remove(first)
    assert queue.expired(1e6) == []


# --- within an account ------------------------------------------------------------------------------------------------


def test_the_more_urgent_goes_first_and_waiting_makes_up_for_it() -> None:
    queue = RequestQueue(60.0, aging_s=30.0)
    queue.push(sequences(1, priority=2, arrival_s=0.0))
    queue.push(sequences(2, priority=0, arrival_s=59.0))
    queue.push(sequences(3, priority=0, arrival_s=61.0))
    queue.push(sequences(4, priority=-1, arrival_s=62.0))
    assert order(queue) == [(4, 0), (2, 0), (1, 0), (3, 0)]


def test_a_preempted_sequence_has_its_place_again_and_is_no_new_request() -> None:
    queue = RequestQueue(60.0)
    for request_id in (1, 2):
        queue.push(sequences(request_id))
    first = next(iter(queue))
    take(queue, first)
    queue.push(sequences(3))
    first.status, first.state = Status.WAITING, array("B", b"state")  # type: ignore[assignment]
    queue.put_back(first)
    queue.check_integrity([])
    assert order(queue) == [(1, 0), (2, 0), (3, 0)]
    assert [sequence.request.request_id for sequence in queue.expired(61.0)] == [2, 3]


# --- between accounts -------------------------------------------------------------------------------------------------


def test_accounts_that_were_served_alike_take_turns() -> None:
    queue = RequestQueue(60.0)
    for request_id in range(4):
        queue.push(sequences(request_id, account="many", prompt=b"x" * 8))
    queue.push(sequences(10, account="few", prompt=b"x" * 8))
    taken = []
    for sequence in queue:
        take(queue, sequence)
        taken.append(sequence.request.request_id)
    assert taken == [0, 10, 1, 2, 3]


def test_tokens_are_charged_by_weight_and_only_what_is_computed() -> None:
    queue = RequestQueue(60.0, accounts=Accounts(0.5))
    (sequence,) = sequences(1, account="a", prompt=b"x" * 10, limits=Limits(weight=2.0))
    queue.push([sequence])
    queue.take(sequence)
    sequence.n_past, sequence.admit_s = 4, 1.0
    queue.charge_prompt(sequence)
    assert queue.counters["a"] == 6 * 0.5 / 2
    generate(queue, sequence, 3)
    assert queue.counters["a"] == (6 * 0.5 + 3) / 2


def test_what_was_not_computed_of_a_prompt_is_given_back() -> None:
    queue = RequestQueue(60.0, accounts=Accounts(0.5))
    (sequence,) = sequences(1, account="a", prompt=b"x" * 10)
    queue.push([sequence])
    take(queue, sequence)
    sequence.n_past = 3
    queue.release(sequence)
    assert queue.counters["a"] == 3 * 0.5


def test_nobody_saves_up_by_being_idle() -> None:
    queue = RequestQueue(60.0)
    busy = sequences(1, account="busy", n=3)
    queue.push(busy)
    take(queue, busy[0])
    generate(queue, busy[0], 500)
    queue.push(sequences(2, account="new"))
    assert queue.counters["new"] == queue.counters["busy"] > 500


def test_who_comes_to_an_empty_queue_starts_where_the_last_one_left() -> None:
    queue = RequestQueue(60.0)
    (one, two) = sequences(1, account="a", n=2)
    queue.push([one, two])
    take(queue, one)
    generate(queue, one, 100)
    take(queue, two)
    assert not queue
    queue.push(sequences(2, account="b"))
    assert queue.counters["b"] == queue.counters["a"] - 0.25 > 100


def test_an_account_runs_no_more_than_it_may_and_lets_others_pass() -> None:
    queue = RequestQueue(60.0)
    limits = Limits(max_running=1)
    for request_id in range(2):
        queue.push(sequences(request_id, account="a", limits=limits))
    queue.push(sequences(5, account="b"))
    taken = []
    for sequence in queue:
        take(queue, sequence)
        taken.append(sequence)
    assert [sequence.request.request_id for sequence in taken] == [0, 5]
    queue.release(taken[0])
    assert order(queue) == [(1, 0)]


def test_counters_that_make_no_difference_are_forgotten() -> None:
    queue = RequestQueue(60.0)
    for request_id in range(1000):
        (sequence,) = sequences(request_id, account=f"address {request_id}")
        queue.push([sequence])
        take(queue, sequence)
        generate(queue, sequence)
        queue.release(sequence)
        (other,) = sequences(request_id, account="another")
        queue.push([other])
        take(queue, other)
        generate(queue, other, 2)
        queue.release(other)
    assert len(queue.counters) < 200


def test_books_that_disagree_are_noticed() -> None:
    queue = RequestQueue(60.0)
    (sequence,) = sequences(1)
    queue.push([sequence])
    queue.check_integrity([])
    with pytest.raises(EngineFailure):
        queue.check_integrity([sequence])
    sequence.status = Status.RUNNING
    with pytest.raises(EngineFailure):
        queue.check_integrity([])


# --- the policy alone, simulated --------------------------------------------------------------------------------------

PROMPT_COST = 0.25


@dataclass
class Simulation:
    """Slots that say a token a step, and accounts that send requests; every request says how long its answer is."""

    n_slots: int
    limits: dict[str, Limits] = field(default_factory=dict)
    queue: RequestQueue = field(default_factory=lambda: RequestQueue(1e9, accounts=Accounts(PROMPT_COST)))
    running: list[SequenceState] = field(default_factory=list)
    served: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    admitted: list[int] = field(default_factory=list)
    waiting: set[str] = field(default_factory=set)
    now_s: float = 0.0
    n_requests: int = 0
    n_idle: int = 0

    def send(self, account: str, n_prompt: int, n_answer: int) -> None:
        """A request of `n_answer` tokens arrives."""
        self.n_requests += 1
        prompt = b"x" * n_prompt
        self.queue.push(
            sequences(
                self.n_requests,
                arrival_s=self.now_s,
                account=account,
                prompt=prompt,
                max_tokens=n_answer,
                limits=self.limits.get(account, Limits()),
            )
        )

    def step(self) -> None:
        """Fill the slots, say a token of each, end those that are complete."""
        self.now_s += 1
        for sequence in self.queue:
            if len(self.running) == self.n_slots:
                break
            take(self.queue, sequence)
            self.running.append(sequence)
            self.admitted.append(sequence.request.request_id)
            self._serve(sequence, PROMPT_COST * sequence.n_prompt)
        self.n_idle += self.n_slots - len(self.running) if self.queue else 0
        for sequence in tuple(self.running):
            generate(self.queue, sequence)
            self._serve(sequence, 1)
            if sequence.n_generated == sequence.request.max_tokens:
                self.running.remove(sequence)
                self.queue.release(sequence)
                sequence.status = Status.FINISHED
        self.waiting = {sequence.request.principal.account for sequence in self.queue.waiting()}
        if self.now_s % 50 == 0:
            self.queue.check_integrity(self.running)

    def _serve(self, sequence: SequenceState, cost: float) -> None:
        self.served[sequence.request.principal.account] += cost / sequence.request.principal.limits.weight


@dataclass
class Watch:
    """Two accounts that both have work waiting; how far what they get drifts apart in any such time."""

    pair: tuple[str, str]
    least: float | None = None
    most: float = 0.0
    worst: float = 0.0
    n_steps: int = 0

    def look(self, simulation: Simulation) -> None:
        """After a step. The difference over any interval is that of two moments of the same backlogged time."""
        if not simulation.waiting.issuperset(self.pair):
            self.least = None
            return
        difference = simulation.served[self.pair[0]] - simulation.served[self.pair[1]]
        if self.least is None:
            self.least = self.most = difference
        self.least, self.most = min(self.least, difference), max(self.most, difference)
        self.worst = max(self.worst, self.most - self.least)
        self.n_steps += 1


MAX_PROMPT, MAX_ANSWER = 60, 30


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 6), st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=2, max_size=4))
def test_accounts_with_work_waiting_get_equal_shares_up_to_the_papers_bound(
    seed: int, n_slots: int, weights: list[float]
) -> None:
    draw = random.Random(seed)
    accounts = {f"account {i}": Limits(weight=weight) for i, weight in enumerate(weights)}
    simulation = Simulation(n_slots, accounts)
    names = list(accounts)
    watches = [Watch((a, b)) for i, a in enumerate(names) for b in names[:i]]
    eager = {name: draw.choice([0.05, 0.3, 1.0]) for name in names}
    sizes = {name: (draw.randint(1, MAX_PROMPT), draw.randint(1, MAX_ANSWER)) for name in names}
    for _ in range(400):
        for name in names:
            if draw.random() < eager[name] and simulation.n_requests < 4000:
                most_prompt, most_answer = sizes[name]
                simulation.send(name, draw.randint(1, most_prompt), draw.randint(1, most_answer))
        simulation.step()
        for watch in watches:
            watch.look(simulation)
    assert simulation.n_idle == 0, "a slot stood idle while somebody waited"
    for watch in watches:
        # Theorem 4.4: twice what one account can be charged before the other is chosen.
        bound = 2 * (PROMPT_COST * MAX_PROMPT + n_slots * MAX_ANSWER) / min(weights)
        assert watch.worst <= bound


def test_shares_are_those_of_the_weights_in_the_long_run() -> None:
    simulation = Simulation(4, {"a": Limits(weight=1.0), "b": Limits(weight=3.0)})
    for _ in range(500):
        simulation.send("a", 20, 20)
        simulation.send("b", 20, 20)
    for _ in range(900):
        simulation.step()
    assert simulation.waiting == {"a", "b"}
    # `served` is divided by the weight.
    assert simulation.served["a"] == pytest.approx(simulation.served["b"], rel=0.03)


def test_one_who_sends_one_at_a_time_is_not_held_up_by_one_who_sends_hundreds() -> None:
    simulation = Simulation(2)
    for _ in range(500):
        simulation.send("batch", 10, 20)
    waits = []
    for _ in range(50):
        simulation.send("chat", 5, 3)
        sent_s = simulation.now_s
        simulation.step()
        while "chat" in simulation.waiting:
            simulation.step()
        waits.append(simulation.now_s - sent_s)
        while any(sequence.request.principal.account == "chat" for sequence in simulation.running):
            simulation.step()
    assert max(waits) <= 20, "longer than the next slot takes to be free"


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(1, MAX_PROMPT), st.integers(1, MAX_ANSWER)), max_size=40), st.integers(1, 4))
def test_one_account_alone_is_served_in_order_of_arrival(sizes: list[tuple[int, int]], n_slots: int) -> None:
    simulation = Simulation(n_slots)
    for n_prompt, n_answer in sizes:
        simulation.send("only", n_prompt, n_answer)
        if n_answer % 2:
            simulation.step()
    while simulation.queue or simulation.running:
        simulation.step()
    assert simulation.admitted == list(range(1, len(sizes) + 1))


class TestCarried:
    """Accounts that waited at another engine before."""

    @staticmethod
    def served(carried: dict[str, float], first: str) -> list[str]:
        """Whose requests are served, of two accounts with six each, of which `first` sends first."""
        queue = RequestQueue(600.0, accounts=Accounts(carried=carried.items()))
        accounts = [first, *({"ann", "bob"} - {first})]
        for number in range(12):
            for sequence in sequences(number, account=accounts[number % 2]):
                queue.push([sequence])
        taken = []
        for _ in range(12):
            sequence = next(iter(queue))
            take(queue, sequence)
            generate(queue, sequence, 10)
            taken.append(sequence.request.principal.account)
        return taken

    @pytest.mark.parametrize("first", ["ann", "bob"])
    def test_the_one_who_got_less_there_goes_first_until_they_are_even(self, first: str) -> None:
        taken = self.served({"ann": 35.0, "bob": 0.0}, first)
        assert taken[:4] == ["bob"] * 4
        assert sorted(taken[4:6]) == ["ann", "bob"]

    def test_without_it_they_take_turns(self) -> None:
        assert self.served({}, "ann")[:4] == ["ann", "bob", "ann", "bob"]

    def test_it_holds_for_the_first_time_only(self) -> None:
        accounts = Accounts(carried=[("bob", 0.0), ("ann", 0.0)])
        for account in ("ann", "bob"):
            accounts.wait(account)
            accounts.settle(account)
        accounts.wait("ann")
        accounts.counters.charge("ann", 50.0, 1.0)
        accounts.wait("bob")
        assert accounts.counters["bob"] == 50.0, "somebody saved up by being idle"

    def test_those_who_have_not_come_yet_are_not_forgotten(self) -> None:
        accounts = Accounts(carried=[("ann", 50.0), ("bob", 0.0)])
        accounts.wait("ann")
        accounts.counters.forget({"ann"})
        accounts.wait("bob")
        assert accounts.counters["bob"] == 0.0
