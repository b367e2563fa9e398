"""Limits over the servers of a cluster: sums, places for `max_running`, and the bound that holds in a simulation."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufd.cluster.directory.directory import SILENT_AFTER_S, Directory
from ggufd.cluster.directory.limits import TURN_S, AccountUse, LimitBook, UsedElsewhere, shares
from ggufd.cluster.replicas import ReplicaLoad
from ggufd.engine.client.limits import SubmissionLimits, TokenBuckets
from ggufd.engine.client.open_requests import OpenRequests
from ggufd.engine.client.stream import RequestStream
from ggufd.engine.messages.events import Output
from ggufd.engine.messages.reports import UseElsewhere
from ggufd.engine.messages.requests import EngineRequest
from ggufd.errors import TooManyRequests
from ggufd.keys.principal import Principal
from ggufd.keys.ring import Limits
from tests.engine.queueing.test_queue import Simulation

# --- the book ---------------------------------------------------------------------------------------------------------


def tell(
    book: LimitBook, name: str, uses: Mapping[str, AccountUse], now_s: float = 0.0, n_slots: int = 8
) -> dict[str, UsedElsewhere]:
    told = book.post(name, f"http://{name}", n_slots, uses, now_s)
    book.check_integrity()
    return told


def test_waiting_requests_are_those_of_all_others_and_taken_tokens_those_since_the_last_word() -> None:
    book = LimitBook()
    for name in "abc":
        assert tell(book, name, {}) == {}
    tell(book, "a", {"key": AccountUse(used_s=3.0, waiting=2)})
    assert tell(book, "b", {"key": AccountUse(used_s=1.0, waiting=1)}) == {"key": UsedElsewhere(3.0, 2, 0)}
    assert tell(book, "c", {}) == {"key": UsedElsewhere(4.0, 3, 0)}
    assert tell(book, "c", {}) == {"key": UsedElsewhere(0.0, 3, 0)}
    assert tell(book, "a", {}) == {"key": UsedElsewhere(1.0, 1, 0)}
    tell(book, "b", {"key": AccountUse(used_s=1.0)})
    assert tell(book, "a", {}) == {}


def test_a_replica_that_starts_is_told_what_all_took_that_has_not_come_again() -> None:
    book = LimitBook()
    for name in "ab":
        tell(book, name, {"key": AccountUse()}, 100.0)
    tell(book, "a", {"key": AccountUse(used_s=50.0)}, 100.0)
    tell(book, "b", {"key": AccountUse(used_s=20.0)}, 110.0)
    assert tell(book, "c", {}, 120.0) == {"key": UsedElsewhere(50.0)}
    assert tell(book, "c", {}, 121.0) == {}, "once"
    assert book.post("b", "anew", 8, {}, 150.0) == {"key": UsedElsewhere(20.0)}
    assert tell(book, "d", {}, 170.0) == {}
    book.check_integrity()


def test_a_replica_that_is_silent_or_gone_uses_nothing() -> None:
    book = LimitBook()
    use = {"key": AccountUse(waiting=2, running=2, max_running=4)}
    tell(book, "a", use, 0.0)
    assert tell(book, "b", {}, SILENT_AFTER_S) == {"key": UsedElsewhere(0.0, 2, 2)}
    assert tell(book, "b", {}, SILENT_AFTER_S + 0.1) == {}
    tell(book, "a", use, 10.0)
    assert tell(book, "b", {}, 10.0) == {"key": UsedElsewhere(0.0, 2, 2)}
    book.drop("a")
    assert tell(book, "b", {}, 10.0) == {}


def test_below_the_limit_each_may_run_what_the_demand_of_the_others_leaves() -> None:
    book = LimitBook()
    tell(book, "a", {"key": AccountUse(running=1, queued=1, max_running=5)})
    assert tell(book, "b", {"key": AccountUse(running=2, max_running=5)})["key"].running == 2
    assert tell(book, "a", {"key": AccountUse(running=2, max_running=5)})["key"].running == 2
    assert tell(book, "c", {})["key"].running == 4, "also where nothing of the key is yet"


def test_an_account_without_a_limit_holds_nothing() -> None:
    book = LimitBook()
    tell(book, "a", {"key": AccountUse(running=5, queued=5)})
    assert tell(book, "b", {"key": AccountUse(running=5, queued=5)}) == {}


def test_above_the_limit_a_place_is_given_away_only_when_it_is_known_to_be_free() -> None:
    book = LimitBook()
    both = {"key": AccountUse(running=1, queued=5, max_running=2)}
    tell(book, "a", {"key": AccountUse(running=2, queued=5, max_running=2)})
    assert tell(book, "b", {"key": AccountUse(queued=5, max_running=2)})["key"].running == 2, "a has both"
    assert tell(book, "a", {"key": AccountUse(running=2, queued=5, max_running=2)})["key"].running == 1, (
        "one is its own"
    )
    assert tell(book, "b", {"key": AccountUse(queued=5, max_running=2)})["key"].running == 2, "a has not said so yet"
    assert tell(book, "a", both)["key"].running == 1
    assert tell(book, "b", {"key": AccountUse(queued=5, max_running=2)})["key"].running == 1
    assert tell(book, "a", both)["key"].running == 1


def test_places_go_round_where_there_are_too_few_for_all() -> None:
    demands = {"a": 9, "b": 9, "c": 1, "d": 0}
    assert shares(7, demands, 0) == {"a": 3, "b": 3, "c": 1, "d": 0}
    assert shares(99, demands, 0) == demands
    assert [shares(1, demands, turn) for turn in range(3)] == [{**dict.fromkeys(demands, 0), name: 1} for name in "abc"]
    assert shares(3, {}, 5) == {}


@given(st.integers(0, 30), st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 12)), st.integers(0, 9))
def test_shares_are_all_places_that_are_asked_for(n_places: int, demands: dict[str, int], turn: int) -> None:
    given_out = shares(n_places, demands, turn)
    assert sum(given_out.values()) == min(n_places, sum(demands.values()))
    assert all(0 <= given_out[name] <= demand for name, demand in demands.items())
    open_ones = [given_out[name] for name, demand in demands.items() if given_out[name] < demand]
    assert not open_ones or max(given_out.values()) <= min(open_ones) + 1, "nobody has two more than who asks for more"


def test_what_is_told_is_bounded() -> None:
    book = LimitBook(max_accounts=10)
    for name in "abcde":
        tell(book, name, {f"{name} {number}": AccountUse(1.0, 1, 1, 1, 1) for number in range(50)})
    assert len(tell(book, "f", {})) <= 20


# --- a cluster of real queues -----------------------------------------------------------------------------------------

BEAT = 5
"""Steps between two beats of a replica."""

KEY = "key"


class Cluster:
    """Replicas whose queues are real and go by what the directory says; one key with a limit, and another without."""

    def __init__(self, n_replicas: int, n_slots: int, max_running: int, *, has_directory: bool = True) -> None:
        self.replicas = [Simulation(n_slots, {KEY: Limits(max_running=max_running)}) for _ in range(n_replicas)]
        self.max_running = max_running
        self.directory = Directory() if has_directory else None
        self.load = ReplicaLoad(n_slots=n_slots)
        self.now = 0
        self.begun: list[tuple[int, int, int]] = []
        """When a request of the key began, where, and how many ran then in all."""

    @property
    def n_running(self) -> int:
        return sum(replica.queue.accounts.running[KEY] for replica in self.replicas)

    def step(self) -> None:
        """One step of all replicas, and the beats that are due."""
        self.now += 1
        for index, replica in enumerate(self.replicas):
            n_before, n_admitted = self.n_running, len(replica.admitted)
            own = {one.request.request_id for one in replica.queue.waiting() if one.request.principal.account == KEY}
            replica.step()
            if n_begun := len(own.intersection(replica.admitted[n_admitted:])):
                self.begun.append((self.now, index, n_before + n_begun))
        for index in range(len(self.replicas)):
            # Replicas beat at different times, each every second.
            if self.directory is not None and (self.now + index) % BEAT == 0:
                self._beat(self.directory, index)

    def _beat(self, directory: Directory, index: int) -> None:
        accounts, name, now_s = self.replicas[index].queue.accounts, f"r{index}", self.now / BEAT
        directory.beat(name, "", self.load, {}, now_s)
        standing = {account: (running, waiting) for account, running, waiting in accounts.standing}
        running, waiting = standing.get(KEY, (0, 0))
        uses = {KEY: AccountUse(0.0, 0, running, waiting, self.max_running)} if running or waiting else {}
        told = directory.share_limits(name, uses, now_s)
        directory.check_integrity()
        accounts.hold_elsewhere([(account, one.running) for account, one in told.items()])


def flooded(cluster: Cluster, n_steps: int, draw: random.Random, n_flooded: int) -> None:
    """The key always has many waiting at some replicas, and some at others; somebody else asks everywhere."""
    for _ in range(n_steps):
        for index, replica in enumerate(cluster.replicas):
            n_waiting = replica.queue.accounts.waiting[KEY]
            if n_waiting < 20 and (index < n_flooded or draw.random() < 0.1):
                replica.send(KEY, draw.randint(1, 20), draw.randint(1, 12))
                replica.send(KEY, draw.randint(1, 20), draw.randint(1, 12))
            if draw.random() < 0.3 and len(replica.queue) < 50:
                replica.send("other", draw.randint(1, 20), draw.randint(1, 12))
        cluster.step()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 5), st.integers(1, 6), st.integers(1, 5))
def test_a_key_that_asks_for_more_than_its_limit_never_begins_more_after_two_beats(
    seed: int, n_replicas: int, max_running: int, n_flooded: int
) -> None:
    cluster = Cluster(n_replicas, 8, max_running)
    flooded(cluster, 60 * BEAT, random.Random(seed), min(n_flooded, n_replicas))
    # In the first beats its requests come, and nobody knows of the others.
    late = [(now, index, n) for now, index, n in cluster.begun if now > 4 * BEAT]
    assert late
    assert max(n for _, _, n in late) <= max_running
    assert max(n for _, _, n in cluster.begun) <= n_replicas * max_running


def test_its_places_are_used_and_go_round() -> None:
    cluster = Cluster(3, 8, 2)
    draw = random.Random(1)
    flooded(cluster, 5 * BEAT, draw, 3)
    n_ran, steps = 0, int(9 * TURN_S * BEAT)
    for _ in range(steps):
        flooded(cluster, 1, draw, 3)
        n_ran += cluster.n_running
    assert n_ran / steps > 0.8 * 2
    by_replica = [sum(index == one for _, index, _ in cluster.begun) for one in range(3)]
    assert min(by_replica) > 0.6 * max(by_replica)


def test_without_a_directory_each_replica_counts_alone() -> None:
    cluster = Cluster(3, 8, 2, has_directory=False)
    flooded(cluster, 20 * BEAT, random.Random(1), 3)
    assert max(n for _, _, n in cluster.begun) == 6


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_key_below_its_limit_begins_at_once_anywhere(index: int) -> None:
    cluster = Cluster(3, 8, 4)
    cluster.replicas[0].send(KEY, 5, 500)
    for _ in range(4 * BEAT):
        cluster.step()
    for _ in range(3):
        cluster.replicas[index].send(KEY, 5, 5)
    cluster.step()
    assert cluster.n_running == 4


# --- submissions at several servers -----------------------------------------------------------------------------------

STEPS_A_SECOND = 5


class Submissions:
    """Servers that take or refuse requests of one key by their real limits, and beat every second."""

    def __init__(self, n_servers: int, limits: Limits, *, has_directory: bool = True) -> None:
        self.now_s = 1000.0
        self.principal = Principal(account=KEY, limits=limits)
        self.buckets = [TokenBuckets(lambda: self.now_s) for _ in range(n_servers)]
        self.requests = [OpenRequests() for _ in range(n_servers)]
        self.limits = [
            SubmissionLimits(requests, 1000, buckets)
            for requests, buckets in zip(self.requests, self.buckets, strict=True)
        ]
        self._book = LimitBook() if has_directory else None
        self._n_steps = self._n_requests = 0

    def ask(self, index: int) -> RequestStream | None:
        """The stream of one more request, None where it is refused."""
        self._n_requests += 1
        request = EngineRequest(self._n_requests, (1,), principal=self.principal)
        try:
            self.limits[index].check(request, n_slots=1)
        except TooManyRequests:
            return None
        return RequestStream(request, lambda stream: None, lambda stream, index: None)

    def step(self) -> None:
        """A fifth of a second, and the beats that are due."""
        self.now_s += 1 / STEPS_A_SECOND
        self._n_steps += 1
        for index, one in enumerate(self.limits):
            if self._book is None or (self._n_steps + index) % STEPS_A_SECOND:
                continue
            uses = {use.account: AccountUse(use.used_s, use.waiting) for use in one.use(1)}
            told = self._book.post(f"s{index}", "", 1, uses, self.now_s)
            one.count_elsewhere(
                [UseElsewhere(name, use.used_s, use.waiting, use.running) for name, use in told.items()]
            )


def taken(servers: Submissions, n_tokens: int, n_seconds: int) -> list[int]:
    """Tokens that a key took at each server, which asks everywhere as often as it can."""
    took = [0 for _ in servers.limits]
    for _ in range(n_seconds * STEPS_A_SECOND):
        for index, one in enumerate(servers.limits):
            if (stream := servers.ask(index)) is not None:
                one.charge(stream.request, Output(1, 0, "text", tuple(range(n_tokens))))
                took[index] += n_tokens
        servers.step()
    return took


@pytest.mark.parametrize("n_servers", [2, 5])
def test_a_key_takes_its_tokens_a_minute_once_and_what_the_others_compute_in_two_seconds(n_servers: int) -> None:
    per_minute, n_seconds, n_tokens = 600, 240, 3
    took = sum(taken(Submissions(n_servers, Limits(tokens_per_minute=per_minute)), n_tokens, n_seconds))
    on_one_server = per_minute + per_minute / 60 * n_seconds + n_tokens
    in_two_seconds = (n_servers - 1) * 2 * STEPS_A_SECOND * n_tokens
    assert 0.95 * on_one_server < took <= on_one_server + in_two_seconds
    alone = Submissions(n_servers, Limits(tokens_per_minute=per_minute), has_directory=False)
    assert sum(taken(alone, n_tokens, n_seconds)) > 0.95 * n_servers * on_one_server


@pytest.mark.parametrize("n_servers", [2, 5])
def test_no_more_of_a_key_wait_than_may_and_than_the_others_accept_in_two_seconds(n_servers: int) -> None:
    draw, most = random.Random(3), 10
    servers = Submissions(n_servers, Limits(max_waiting=most))
    accepted: deque[Counter[int]] = deque(maxlen=2 * STEPS_A_SECOND + 1)
    worst = 0
    for _ in range(400):
        accepted.append(Counter())
        for index, requests in enumerate(servers.requests):
            if draw.random() < 0.3 and (stream := servers.ask(index)) is not None:
                requests.add(stream)
                accepted[-1][index] += 1
                # One at each server has its slot next.
                n_waiting = sum(max(0, one.n_waiting - 1) for one in servers.requests)
                by_others = sum(step.total() - step[index] for step in accepted)
                assert n_waiting <= most + by_others
                worst = max(worst, n_waiting)
            if requests.n_waiting > 1 and draw.random() < 0.05:
                requests.remove(next(iter(requests)))
        servers.step()
    assert most <= worst <= n_servers * most
