"""The directory: who is there, and the ledger that tells each replica what the others served."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ggufd.cluster.directory.directory import SILENT_AFTER_S, Directory
from ggufd.cluster.directory.moves import MoveExchange
from ggufd.cluster.replicas import ReplicaLoad
from ggufd.errors import EngineFailure

LOAD = ReplicaLoad(n_slots=4)


def beat(
    directory: Directory, replica_id: str, served: dict[str, float], now_s: float = 0.0, url: str = ""
) -> dict[str, float]:
    others = dict(directory.beat(replica_id, url or f"http://{replica_id}:1", LOAD, served, now_s))
    directory.check_integrity()
    return others


def ids(directory: Directory, now_s: float) -> list[str]:
    return [replica.id for replica in directory.replicas(now_s)]


# --- registry ---------------------------------------------------------------------------------------------------------


def test_a_replica_is_there_from_its_first_beat_with_what_it_told_last() -> None:
    directory = Directory()
    directory.beat("a", "http://a:1", LOAD, {}, 0.0)
    busy = ReplicaLoad(running=4, waiting=2, n_slots=4, wait_s=3.0, is_draining=True)
    directory.beat("a", "http://a:2", busy, {}, 1.0)
    (replica,) = directory.replicas(1.0)
    assert (replica.id, replica.url, replica.load) == ("a", "http://a:2", busy)


@pytest.mark.parametrize(("silent_s", "is_there"), [(SILENT_AFTER_S, True), (SILENT_AFTER_S + 0.1, False)])
def test_a_silent_replica_is_left_out_and_comes_back_with_a_beat(silent_s: float, is_there: bool) -> None:
    directory = Directory()
    beat(directory, "a", {})
    beat(directory, "b", {}, silent_s)
    assert ids(directory, silent_s) == (["a", "b"] if is_there else ["b"])
    beat(directory, "a", {}, silent_s + 1)
    assert ids(directory, silent_s + 1) == ["a", "b"]


def test_a_replica_that_leaves_is_gone_at_once_and_one_that_never_was_may_leave() -> None:
    directory = Directory()
    beat(directory, "a", {})
    directory.leave("a")
    directory.leave("b")
    assert directory.replicas(0.0) == []
    directory.check_integrity()


def test_replicas_that_are_silent_for_long_are_forgotten() -> None:
    directory = Directory()
    for number in range(500):
        beat(directory, f"r{number}", {"a": 1.0}, 10.0 * number)
    assert len(directory._beats) < 10


# --- ledger -----------------------------------------------------------------------------------------------------------


def test_each_is_told_what_the_others_served_since_it_last_asked() -> None:
    directory = Directory()
    for name in "abc":
        assert beat(directory, name, {}) == {}
    assert beat(directory, "a", {"x": 10.0}) == {}
    assert beat(directory, "b", {"x": 5.0, "y": 1.0}) == {"x": 10.0}
    assert beat(directory, "c", {}) == {"x": 15.0, "y": 1.0}
    assert beat(directory, "a", {"x": 10.0}) == {"x": 5.0, "y": 1.0}
    assert beat(directory, "a", {"x": 12.0}) == {}
    assert beat(directory, "b", {"x": 5.0, "y": 1.0}) == {"x": 2.0}
    assert directory.served() == {"x": 17.0, "y": 1.0}


def test_what_was_served_before_the_directory_began_is_charged_to_nobody() -> None:
    directory = Directory()
    beat(directory, "a", {})
    assert beat(directory, "b", {"x": 1e9}) == {}
    assert beat(directory, "a", {}) == {}
    beat(directory, "b", {"x": 1e9 + 5})
    assert beat(directory, "a", {}) == {"x": 5.0}


def test_a_replica_that_starts_again_counts_from_zero() -> None:
    directory = Directory()
    beat(directory, "a", {})
    beat(directory, "b", {})
    beat(directory, "b", {"x": 100.0})
    assert beat(directory, "a", {}) == {"x": 100.0}
    # More than before already, so only its address tells.
    beat(directory, "b", {"x": 130.0}, url="http://b:2")
    assert beat(directory, "a", {}) == {"x": 130.0}


def test_an_engine_that_starts_again_behind_the_same_address_is_noticed_by_its_counters() -> None:
    directory = Directory()
    beat(directory, "a", {})
    beat(directory, "b", {"x": 100.0})
    beat(directory, "b", {"x": 7.0})
    assert beat(directory, "a", {}) == {"x": 7.0}


def test_tokens_that_are_given_back_are_not_taken_for_a_new_start() -> None:
    directory = Directory()
    beat(directory, "a", {})
    beat(directory, "b", {"x": 1000.0})
    beat(directory, "b", {"x": 950.0})
    beat(directory, "b", {"x": 1010.0})
    assert beat(directory, "a", {}) == {"x": 10.0}


def test_an_account_that_is_not_told_for_a_while_is_what_it_was() -> None:
    directory = Directory()
    beat(directory, "a", {})
    beat(directory, "b", {"x": 100.0})
    beat(directory, "b", {})
    beat(directory, "b", {"x": 101.0})
    assert beat(directory, "a", {}) == {"x": 1.0}


def test_what_a_replica_served_that_left_is_still_told() -> None:
    directory = Directory()
    beat(directory, "a", {})
    beat(directory, "b", {})
    beat(directory, "b", {"x": 3.0})
    directory.leave("b")
    assert beat(directory, "a", {}) == {"x": 3.0}


def test_numbers_that_are_none_are_left_out() -> None:
    directory = Directory()
    beat(directory, "a", {})
    beat(directory, "b", {})
    beat(directory, "b", {"x": math.nan, "y": math.inf, "z": -5.0, "w": 2.0})
    assert beat(directory, "a", {}) == {"w": 2.0}


def test_accounts_are_bounded_and_those_that_were_served_last_are_kept() -> None:
    directory = Directory(max_accounts=10)
    beat(directory, "a", {})
    beat(directory, "b", {})
    for number in range(1000):
        beat(directory, "b", {f"address {number}": 1.0})
    assert len(directory.served()) <= 20
    assert "address 999" in directory.served()
    assert {f"address {number}" for number in range(990, 1000)} <= beat(directory, "a", {}).keys()


def test_an_account_that_was_dropped_starts_at_zero_for_everybody() -> None:
    directory = Directory(max_accounts=2)
    beat(directory, "a", {})
    beat(directory, "b", {})
    beat(directory, "b", {"x": 100.0})
    beat(directory, "a", {})
    for number in range(6):
        beat(directory, "b", {f"{number}": 1.0})
    beat(directory, "b", {"x": 3.0})
    assert beat(directory, "a", {})["x"] == 3.0


def test_a_ledger_that_is_wrong_is_noticed() -> None:
    directory = Directory()
    beat(directory, "a", {})
    directory._ledger.drop("a")
    with pytest.raises(EngineFailure):
        directory.check_integrity()


# --- moves ------------------------------------------------------------------------------------------------------------


def test_each_ingress_is_told_once_what_the_others_noted_since_it_asked() -> None:
    directory = Directory()
    assert directory.exchange_moves("one", {b"a": "r1"}) == {}
    assert directory.exchange_moves("two", {}) == {}, "it comes to what was there before: its memory is empty anyway"
    directory.exchange_moves("one", {b"a": "r2", b"b": "r3"})
    directory.exchange_moves("one", {b"b": ""})
    assert directory.exchange_moves("two", {b"c": "r4"}) == {b"a": "r2", b"b": ""}
    assert directory.exchange_moves("two", {}) == {}
    assert directory.exchange_moves("one", {}) == {b"c": "r4"}


def test_moves_are_bounded() -> None:
    exchange = MoveExchange(max_moves=10)
    exchange.exchange("slow", {})
    for number in range(1000):
        exchange.exchange(f"ingress {number}", {number.to_bytes(2, "little"): "r"})
    assert len(exchange.exchange("slow", {})) <= 10
    assert len(exchange._known) <= 256


class LedgerMachine(RuleBasedStateMachine):
    """Replicas that serve, start again, leave and come back, against sums that are kept by hand."""

    replicas = st.sampled_from(["a", "b", "c"])
    accounts = st.sampled_from(["x", "y", "z"])

    def __init__(self) -> None:
        super().__init__()
        self.directory = Directory()
        self.counters: dict[str, dict[str, float]] = {}
        self.starts: dict[str, int] = defaultdict(int)
        self.untold: dict[str, dict[str, float]] = {}
        self.not_counted: dict[str, dict[str, float]] = {}

    @rule(replica=replicas, account=accounts, tokens=st.integers(1, 1000))
    def serve(self, replica: str, account: str, tokens: int) -> None:
        if replica in self.counters:
            served = self.counters[replica]
            served[account] = served.get(account, 0.0) + tokens
            pending = self.not_counted[replica]
            pending[account] = pending.get(account, 0.0) + tokens

    @rule(replica=replicas)
    def tell(self, replica: str) -> None:
        is_new = replica not in self.counters
        served = self.counters.setdefault(replica, {})
        told = beat(self.directory, replica, served, url=f"http://{replica}:{self.starts[replica]}")
        if is_new:
            self.untold[replica], self.not_counted[replica] = defaultdict(float), {}
            assert told == {}
            return
        assert told == {account: tokens for account, tokens in self.untold[replica].items() if tokens}
        self.untold[replica] = defaultdict(float)
        for other, untold in self.untold.items():
            if other != replica:
                for account, tokens in self.not_counted[replica].items():
                    untold[account] += tokens
        self.not_counted[replica] = {}

    @rule(replica=replicas)
    def start_again(self, replica: str) -> None:
        """What it served since its last beat is lost with it."""
        if replica in self.counters:
            self.starts[replica] += 1
            self.counters[replica], self.not_counted[replica] = {}, {}

    @rule(replica=replicas)
    def leave(self, replica: str) -> None:
        self.directory.leave(replica)
        for known in (self.counters, self.untold, self.not_counted):
            known.pop(replica, None)

    @invariant()
    def is_whole(self) -> None:
        self.directory.check_integrity()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
