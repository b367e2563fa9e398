"""What accounts had and hold at other servers of a cluster: whom that holds back here, and until when."""

from __future__ import annotations

from ggufd.engine.messages.requests import ChargeElsewhere
from ggufd.engine.queueing.fairness import _MAX_COUNTERS, Accounts
from ggufd.engine.queueing.queue import RequestQueue
from ggufd.keys.principal import BACKGROUND
from ggufd.keys.ring import Limits
from tests.engine.queueing.test_queue import order, sequences, take
from tests.support.fakes.fake_llama import make_engine, make_request, run_alone


def test_who_was_served_elsewhere_comes_after_who_was_not() -> None:
    queue = RequestQueue(60.0)
    queue.push(sequences(1, account="flood"))
    queue.push(sequences(2, account="chat"))
    queue.accounts.charge_elsewhere([("flood", 100.0), ("chat", 10.0)])
    assert order(queue) == [(2, 0), (1, 0)]
    queue.accounts.charge_elsewhere([("chat", 100.0)])
    assert order(queue) == [(1, 0), (2, 0)]


def test_who_comes_later_has_not_saved_up_what_it_was_served_elsewhere_meanwhile() -> None:
    queue = RequestQueue(60.0)
    (first,) = sequences(1, account="chat", prompt=b"x" * 4000)
    queue.push([first])
    queue.push(sequences(2, account="chat"))
    take(queue, first)
    queue.accounts.charge_elsewhere([("flood", 100.0)])
    queue.push(sequences(3, account="flood"))
    assert queue.counters["flood"] == queue.counters["chat"] + 100 == 1100


def test_nothing_is_charged_while_nobody_else_waits() -> None:
    queue = RequestQueue(60.0)
    queue.accounts.charge_elsewhere([("flood", 100.0)])
    queue.push(sequences(1, account="flood"))
    queue.accounts.charge_elsewhere([("flood", 100.0)])
    queue.push(sequences(2, account="chat"))
    assert queue.counters["flood"] == queue.counters["chat"] == 0


def test_the_end_of_the_busy_period_ends_the_charges() -> None:
    queue = RequestQueue(60.0)
    (chat,) = sequences(1, account="chat")
    queue.push([chat])
    queue.accounts.charge_elsewhere([("flood", 100.0)])
    take(queue, chat)
    queue.push(sequences(2, account="flood"))
    queue.push(sequences(3, account="chat"))
    assert order(queue) == [(2, 0), (3, 0)]


def test_background_work_and_what_is_reported_are_not_changed() -> None:
    accounts = Accounts()
    accounts.wait("chat")
    accounts.charge_elsewhere([(BACKGROUND, 5.0), ("flood", 5.0)])
    assert len(accounts.counters) == 2
    assert accounts.served == {}, "it would come back as if it were served twice"


def test_counters_of_who_is_only_served_elsewhere_are_bounded() -> None:
    accounts = Accounts()
    accounts.wait("chat")
    for number in range(3 * _MAX_COUNTERS):
        accounts.charge_elsewhere([(f"address {number}", 1.0)])
    assert len(accounts.counters) <= _MAX_COUNTERS
    accounts.charge_elsewhere([("chat", 1.0), ("address 0", 1.0)])
    accounts.wait("other")
    accounts.charge_elsewhere([("chat", 5.0)])
    assert accounts.counters["chat"] == 5, "who waits is charged all the same"


def test_the_engine_takes_the_charges_between_two_steps() -> None:
    rig = make_engine(n_slots=1)
    for request_id, account in ((1, "chat"), (2, "flood"), (3, "chat")):
        rig.engine.add(make_request(request_id, b"x", account=account))
    rig.engine.charge_elsewhere(ChargeElsewhere((("flood", 100.0), ("chat", 0.5))).costs)
    entries = {one.request_id: one.turn for one in rig.engine.queue_state().entries}
    turns = {request_id: turn.position for request_id, turn in entries.items() if turn is not None}
    assert turns[3] < turns[2]


def test_slots_that_an_account_holds_elsewhere_count_by_its_limit() -> None:
    queue = RequestQueue(60.0)
    for request_id, account in ((1, "two"), (2, "two"), (3, "any")):
        limits = Limits(max_running=2) if account == "two" else Limits()
        queue.push(sequences(request_id, account=account, limits=limits))
    queue.accounts.hold_elsewhere([("two", 2), ("any", 9)])
    assert order(queue) == [(3, 0)]
    queue.accounts.hold_elsewhere([("two", 1)])
    (first, *_) = [one for one in queue if one.request.principal.account == "two"]
    take(queue, first)
    assert order(queue) == [(3, 0)]
    assert queue.accounts.standing == (("any", 0, 1), ("two", 1, 1))
    queue.accounts.hold_elsewhere([])
    assert order(queue) == [(3, 0), (2, 0)]
    queue.check_integrity([first])


def test_the_engine_waits_for_other_servers_without_spinning_and_goes_on_when_they_are_done() -> None:
    rig = make_engine(n_slots=2)
    rig.engine.hold_elsewhere([("a", 1)])
    request = make_request(1, b"x", account="a", limits=Limits(max_running=1))
    rig.add(request)
    for _ in range(3):
        assert rig.engine.is_preparing
        assert rig.engine.step() == []
    rig.engine.hold_elsewhere([])
    assert not rig.engine.is_preparing
    assert rig.run()[1].texts[0] == run_alone(request).texts[0]
    assert rig.engine.live_state().standing == ()
