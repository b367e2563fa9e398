"""Swap policy under a simulated clock: fair, seldom, and nobody is forgotten."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from ggufd.model_pool.swap_scheduler import Phase, SwapScheduler, Ticket

SWAP_AFTER_S = 30.0
LOAD_S = 5.0


@dataclass
class Simulation:
    """A server in simulated time: requests take `service_s`, swaps take `LOAD_S`."""

    loaded: str = "a"
    swap_after_s: float = SWAP_AFTER_S
    now_s: float = 0.0
    swaps: list[tuple[float, str]] = field(default_factory=list)
    answered: list[tuple[float, str, str]] = field(default_factory=list)
    """When, whose, and by which model."""
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.policy = SwapScheduler(self.loaded, self.swap_after_s, lambda: self.now_s)
        self._ends: dict[Ticket, Callable[[], None]] = {}
        self._services: dict[Ticket, float] = {}
        self._alarm = 0

    def at(self, time_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time_s, next(self._numbers), act))

    def ask(
        self,
        model: str | None,
        account: str,
        service_s: float = 1.0,
        then: Callable[[], None] = lambda: None,
        *,
        is_background: bool = False,
        may_swap: bool = True,
    ) -> Ticket:
        ticket = Ticket(model, account, is_background=is_background, may_swap=may_swap)
        self._services[ticket], self._ends[ticket] = service_s, then
        self.policy.enter(ticket)
        self.look()
        return ticket

    def look(self) -> None:
        step = self.policy.step()
        for ticket in step.released:
            assert self.policy.phase is not Phase.SWAPPING, "released while nothing is loaded"
            assert ticket.model in (None, self.policy.loaded), "an answer from the wrong model"
            self.at(self.now_s + self._services[ticket], lambda ticket=ticket: self._end(ticket))  # type: ignore[misc]
        if step.swap_to is not None:
            assert all(one.is_background for one in self.policy.running), "a swap under a running request"
            name = step.swap_to
            self.at(self.now_s + LOAD_S, lambda: self._swapped(name))
        self._alarm += 1
        if step.look_in_s is not None:
            alarm = self._alarm
            self.at(self.now_s + step.look_in_s, lambda: self.look() if self._alarm == alarm else None)

    def _end(self, ticket: Ticket) -> None:
        self.answered.append((self.now_s, ticket.account, self.policy.loaded))
        self.policy.leave(ticket)
        self._ends[ticket]()
        self.look()

    def _swapped(self, name: str) -> None:
        self.policy.swapped(name)
        self.swaps.append((self.now_s, name))
        self.look()

    def run(self, until_s: float) -> None:
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, act = heapq.heappop(self._events)
            act()
        self.now_s = until_s

    def keeps_asking(self, account: str, model: str, service_s: float = 2.0, pause_s: float = 0.0) -> None:
        """Somebody who sends a request as soon as the last one was answered."""

        def again() -> None:
            self.at(self.now_s + pause_s, lambda: self.ask(model, account, service_s, again))

        again()

    def seconds_with(self, account: str) -> int:
        return sum(whose == account for _, whose, _ in self.answered)


def gaps(swaps: list[tuple[float, str]]) -> list[float]:
    return [later - earlier for (earlier, _), (later, _) in itertools.pairwise(swaps)]


class TestTwoUsers:
    def test_who_want_different_models_for_minutes_are_served_alike_with_few_swaps(self) -> None:
        simulation = Simulation()
        simulation.keeps_asking("ann", "a")
        simulation.keeps_asking("bob", "b")
        simulation.run(1200)
        assert min(gaps(simulation.swaps)) >= SWAP_AFTER_S, "more than one swap in that time"
        assert len(simulation.swaps) > 20, "somebody waits too long"
        ann, bob = simulation.seconds_with("ann"), simulation.seconds_with("bob")
        assert abs(ann - bob) <= 0.1 * (ann + bob)
        assert {(whose, model) for _, whose, model in simulation.answered} == {("ann", "a"), ("bob", "b")}

    def test_nobody_waits_longer_than_the_bound(self) -> None:
        simulation = Simulation()
        simulation.keeps_asking("ann", "a", 1.0)
        asked = []

        def ask() -> None:
            began_s = simulation.now_s
            simulation.ask("b", "bob", 1.0, lambda: asked.append(simulation.now_s - began_s))

        for time_s in range(10, 1000, 47):
            simulation.at(time_s, ask)
        simulation.run(2000)
        assert len(asked) == len(range(10, 1000, 47)), "something was lost"
        # Its own waiting, what runs, the swap, and its service.
        assert max(asked) <= SWAP_AFTER_S + 1 + LOAD_S + 1 + 1e-6

    def test_an_idle_model_gives_way_only_after_its_time_where_another_used_it(self) -> None:
        simulation = Simulation()
        simulation.ask("a", "ann")
        simulation.run(5)
        simulation.ask("b", "bob")
        simulation.run(SWAP_AFTER_S - 1)
        assert simulation.swaps == []
        simulation.run(SWAP_AFTER_S + LOAD_S + 1)
        assert simulation.swaps == [(SWAP_AFTER_S + LOAD_S, "b")]


class TestOneUser:
    def test_who_is_alone_has_a_swap_at_once(self) -> None:
        simulation = Simulation()
        for number in range(10):
            simulation.at(number * 8.0, lambda number=number: simulation.ask("ab"[number % 2], "ann"))  # type: ignore[misc]
        simulation.run(100)
        assert [model for _, _, model in simulation.answered] == ["a", "b"] * 5
        assert len(simulation.swaps) == 9

    def test_who_wants_two_at_a_time_is_two_people(self) -> None:
        """Without keys all programs of a machine are one account."""
        simulation = Simulation()
        simulation.keeps_asking("here", "a")
        simulation.keeps_asking("here", "b")
        simulation.run(600)
        assert min(gaps(simulation.swaps)) >= SWAP_AFTER_S
        counts = Counter(model for _, _, model in simulation.answered)
        assert abs(counts["a"] - counts["b"]) <= 0.2 * sum(counts.values())

    def test_does_not_cut_their_own_running_answer(self) -> None:
        simulation = Simulation()
        simulation.ask("a", "ann", 100.0)
        simulation.ask("b", "ann")
        simulation.run(300)
        assert [time_s for time_s, _, _ in simulation.answered] == [100.0, 100.0 + LOAD_S + 1]


class TestThreeModels:
    def test_all_have_their_turn(self) -> None:
        simulation = Simulation()
        for account, model in (("ann", "a"), ("bob", "b"), ("cid", "c")):
            simulation.keeps_asking(account, model)
        simulation.run(3000)
        counts = Counter(model for _, _, model in simulation.answered)
        assert max(counts.values()) - min(counts.values()) <= 0.1 * sum(counts.values())
        assert min(gaps(simulation.swaps)) >= SWAP_AFTER_S

    def test_the_least_served_account_goes_first(self) -> None:
        simulation = Simulation()
        simulation.ask("a", "bob", 100.0)
        simulation.run(1)
        # Both become due while it loads: who came first had the model for a hundred seconds, the other nothing.
        simulation.policy.begin_swap("d")
        simulation.ask("b", "bob")
        simulation.ask("c", "new")
        simulation.run(200)
        simulation.policy.swapped("d")
        simulation.run(240)
        simulation.look()
        simulation.run(400)
        assert [name for _, name in simulation.swaps] == ["c", "b"]

    def test_swap_time_is_charged_to_who_asked_for_it(self) -> None:
        simulation = Simulation()
        simulation.ask("a", "ann", 1.0)
        simulation.run(SWAP_AFTER_S + 1)
        before = simulation.policy.counters["ann"]
        simulation.ask("b", "bob", 1.0)
        simulation.ask("a", "ann", 1.0)
        simulation.run(SWAP_AFTER_S * 3)
        assert len(simulation.swaps) == 2
        assert simulation.policy.counters["bob"] >= LOAD_S
        assert simulation.policy.counters["ann"] >= before


class TestNothingIsLost:
    @pytest.mark.parametrize("seed", range(20))
    def test_every_request_is_answered_by_its_model(self, seed: int) -> None:
        draw = random.Random(seed)
        simulation = Simulation(swap_after_s=draw.choice([0.0, 1.0, 10.0, 30.0]))
        answers: list[bool] = []
        n = 200
        for _ in range(n):
            model = draw.choice([None, "a", "b", "c"])
            account = draw.choice(["ann", "bob", "cid", "dan"])
            service_s = draw.expovariate(1)
            is_background = draw.random() < 0.1

            def ask(
                model: str | None = model,
                account: str = account,
                service_s: float = service_s,
                is_background: bool = is_background,
            ) -> None:
                simulation.ask(model, account, service_s, lambda: answers.append(True), is_background=is_background)

            simulation.at(draw.uniform(0, 300), ask)
        simulation.run(20_000)
        assert len(answers) == n
        assert not simulation.policy.waiting
        assert not simulation.policy.running
        # A swap takes LOAD_S, and the next begins `swap_after_s` after it where two accounts want something else.
        lone_users_apart = [gap for gap in gaps(simulation.swaps) if gap < LOAD_S]
        assert not lone_users_apart


class TestHolding:
    def test_when_the_one_who_waits_leaves_a_drain_is_called_off(self) -> None:
        simulation = Simulation()
        simulation.ask("a", "ann", 100.0)
        ticket = simulation.ask("b", "bob")
        simulation.run(SWAP_AFTER_S + 1)
        assert simulation.policy.phase is Phase.DRAINING
        held = simulation.ask("a", "cid")
        assert held in simulation.policy.waiting
        simulation.policy.leave(ticket)
        simulation.look()
        assert simulation.policy.phase is Phase.SERVING
        assert held in simulation.policy.running

    def test_a_name_that_means_whichever_is_loaded_never_swaps(self) -> None:
        simulation = Simulation(loaded="b")
        simulation.ask(None, "ann")
        simulation.run(100)
        assert simulation.swaps == []
        assert simulation.answered == [(1.0, "ann", "b")]

    def test_without_the_right_to_it_a_request_waits_for_another_to_cause_the_swap(self) -> None:
        simulation = Simulation()
        ticket = simulation.ask("b", "user", may_swap=False)
        simulation.run(200)
        assert simulation.swaps == []
        assert simulation.policy.stranded() == [ticket]
        simulation.ask("b", "admin")
        simulation.run(300)
        assert len(simulation.answered) == 2

    def test_what_needs_the_vocabulary_only_is_not_held_while_it_drains(self) -> None:
        simulation = Simulation()
        simulation.ask("a", "ann", 100.0)
        simulation.ask("b", "bob")
        simulation.run(SWAP_AFTER_S + 1)
        light = Ticket(None, "cid", is_light=True)
        simulation.policy.enter(light)
        assert light in simulation.policy.step().released

    def test_a_swap_that_failed_gives_its_tickets_back(self) -> None:
        clock = [0.0]
        policy = SwapScheduler("a", 0.0, lambda: clock[0])
        ticket = Ticket("b", "ann")
        policy.enter(ticket)
        assert policy.step().swap_to == "b"
        held = Ticket(None, "bob")
        policy.enter(held)
        assert policy.step().released == ()
        clock[0] = 5.0
        assert policy.kept() == [ticket]
        policy.leave(ticket)
        assert policy.step().released == (held,)
        assert policy.loaded == "a"


class TestBackground:
    def test_lines_of_batches_wait_until_nobody_asks_for_anything(self) -> None:
        simulation = Simulation()
        simulation.keeps_asking("ann", "a", 1.0, pause_s=10.0)
        simulation.ask("b", "batch", is_background=True)
        simulation.run(600)
        assert simulation.swaps == []

    def test_they_get_their_model_when_it_is_quiet(self) -> None:
        simulation = Simulation()
        simulation.ask("b", "batch", is_background=True)
        simulation.run(SWAP_AFTER_S + LOAD_S + 2)
        assert [name for _, name in simulation.swaps] == ["b"]

    def test_a_person_takes_the_model_from_them_at_once(self) -> None:
        simulation = Simulation()
        simulation.ask("a", "batch", 1000.0, is_background=True)
        simulation.run(1)
        simulation.ask("b", "ann")
        simulation.run(10)
        assert [name for _, name in simulation.swaps] == ["b"]


class TestForecast:
    def load_s(self, name: str) -> float:
        return {"a": 3.0, "b": 5.0, "c": 7.0}[name]

    def test_who_is_next_waits_for_the_load(self) -> None:
        simulation = Simulation()
        ticket = Ticket("b", "bob")
        simulation.policy.enter(ticket)
        assert simulation.policy.forecast(ticket, self.load_s) == (1, 5.0)

    def test_a_model_in_use_stays_for_its_time(self) -> None:
        simulation = Simulation()
        simulation.ask("a", "ann", 100.0)
        simulation.run(10)
        ticket = simulation.ask("b", "bob")
        assert simulation.policy.forecast(ticket, self.load_s) == (1, SWAP_AFTER_S - 10 + 5.0)
        later = simulation.ask("c", "cid")
        assert simulation.policy.forecast(later, self.load_s) == (2, SWAP_AFTER_S - 10 + 5.0 + SWAP_AFTER_S + 7.0)

    def test_during_a_swap_what_is_left_of_it_is_told(self) -> None:
        simulation = Simulation()
        ticket = simulation.ask("b", "bob")
        simulation.now_s = 2.0
        assert simulation.policy.phase is Phase.SWAPPING
        assert simulation.policy.forecast(ticket, self.load_s) == (1, 3.0)


class TestTokens:
    """What engines served, which the next engine has to know."""

    def test_those_who_wait_are_told_by_how_much_they_got_more_than_the_least_served(self) -> None:
        one = Simulation()
        tokens = one.policy._tokens
        one.ask("a", "ann", service_s=50.0)
        tokens.charge("ann", 100.0, 1.0)
        one.ask("b", "bob")
        # Bob waits from here on, so what Ann gets now is more than his share.
        tokens.charge("ann", 40.0, 1.0)
        one.ask("b", "ann")
        one.ask("c", "cid")
        assert one.policy.standing("b") == {"ann": 40.0, "bob": 0.0}
        assert one.policy.standing("a") == {}

    def test_nobody_is_remembered_once_nothing_waits(self) -> None:
        one = Simulation()
        one.ask("a", "ann", service_s=1.0)
        one.policy._tokens.charge("ann", 40.0, 1.0)
        one.run(10.0)
        one.ask("a", "bob", service_s=1.0)
        assert one.policy._tokens["bob"] == one.policy._tokens["ann"]


@pytest.mark.parametrize("is_background", [True, False])
@pytest.mark.parametrize("early_s", [n * 1e-7 for n in range(-3, 40)])
def test_what_becomes_due_while_it_is_looked_at_is_looked_at_again(early_s: float, *, is_background: bool) -> None:
    """Alarms come a little early, and time goes on between two readings of the clock."""
    now_s = 100.0

    def clock() -> float:
        nonlocal now_s
        now_s += 5e-7
        return now_s

    policy = SwapScheduler("a", 1.0, clock)
    policy.enter(Ticket("b", is_background=is_background))
    for _ in range(20):
        step = policy.step()
        if step.swap_to is not None:
            return
        assert step.look_in_s is not None, "nobody would look again"
        now_s += max(0.0, step.look_in_s - early_s)
    pytest.fail("never swapped")
