"""Background work over the fake context: it yields to everybody, pauses for first tokens, and loses nothing by it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggufd.engine.messages.events import Admitted
from ggufd.engine.messages.requests import EmbedRequest, EngineRequest
from ggufd.keys.principal import BACKGROUND, Principal
from tests.support.examples import examples
from tests.support.fakes.fake_llama import Rig, make_engine, make_request, run_alone

BEHIND = Principal("alice", account=BACKGROUND)


def line(request_id: int, **changes: Any) -> EngineRequest:
    """A line of a batch: a long answer to a prompt of its own."""
    prompt = bytes([65 + request_id % 26]) * 40
    return make_request(request_id, prompt, **({"max_tokens": 60, "ignore_eos": True, "principal": BEHIND} | changes))


def chat(request_id: int, **changes: Any) -> EngineRequest:
    prompt = bytes([97 + request_id % 26]) * 30
    return make_request(request_id, prompt, **({"max_tokens": 4, "ignore_eos": True, "account": "chat"} | changes))


def admitted(rig: Rig, request_id: int) -> int:
    """Steps until a request has a slot."""
    for n in range(1, 1000):
        if any(isinstance(event, Admitted) and event.request_id == request_id for event in rig.step()):
            return n
    raise AssertionError("never admitted")


def assert_as_alone(rig: Rig, *requests: EngineRequest) -> None:
    for request in requests:
        assert rig.collected[request.request_id].texts == run_alone(request).texts, request.request_id


@pytest.mark.parametrize("n_slots", [1, 2, 4])
def test_a_request_gets_a_slot_at_once_and_its_first_token_as_if_there_were_no_batch(n_slots: int) -> None:
    rig = make_engine(n_slots=n_slots)
    lines = [line(i) for i in range(2 * n_slots)]
    rig.add(*lines)
    for _ in range(12):
        rig.step()
    assert rig.engine.stats().running == n_slots
    asked = chat(50, max_tokens=20)
    rig.add(asked)
    n_before = rig.engine.stats().computed_tokens
    rig.step()
    n_rows = rig.engine.stats().computed_tokens - n_before
    assert rig.collected[50].tokens[0], "a step was lost"
    assert n_rows == len(asked.prompt), "a row of the batch was computed"
    rig.run()
    assert_as_alone(rig, *lines, asked)


def test_lines_go_on_beside_the_answer_once_its_first_token_is_there() -> None:
    rig = make_engine(n_slots=2)
    rig.add(line(0), line(1), line(2))
    for _ in range(12):
        rig.step()
    rig.add(chat(50, max_tokens=20))
    rig.step()
    assert rig.collected[50].tokens[0]
    n = sum(len(rig.collected[i].tokens.get(0, ())) for i in range(3))
    rig.step()
    assert sum(len(rig.collected[i].tokens.get(0, ())) for i in range(3)) == n + 1, "the free slot's line goes on"
    rig.run()


def test_an_idle_machine_computes_as_many_lines_at_once_as_it_has_slots() -> None:
    rig = make_engine(n_slots=4, n_reserved=2, short_tokens=8)
    rig.add(*(line(i, max_tokens=10) for i in range(8)))
    rig.step()
    assert rig.engine.stats().running == 4, "reserved slots too: they are given up when a short request comes"
    rig.run()


def test_reserved_slots_stay_reserved_for_those_who_ask() -> None:
    rig = make_engine(n_slots=2, n_reserved=1, short_tokens=40)
    rig.add(line(0), line(1))
    for _ in range(3):
        rig.step()
    rig.add(chat(50, max_tokens=60), chat(51, max_tokens=60))
    assert admitted(rig, 50) == 1
    for _ in range(5):
        rig.step()
    assert not any(isinstance(event, Admitted) for event in rig.collected[51].events)
    rig.add(chat(52, max_tokens=2))
    assert admitted(rig, 52) == 1
    rig.run()


def test_what_is_waiting_comes_first_however_much_it_was_served() -> None:
    rig = make_engine(n_slots=1)
    rig.add(chat(50, max_tokens=40))
    rig.step()
    rig.add(line(0, max_tokens=4))
    rig.add(*(chat(51 + i) for i in range(5)))
    rig.run()
    firsts = [rig.collected[i].finishes[0].usage.queue_s for i in (51, 52, 53, 54, 55)]
    assert max(firsts) < rig.collected[0].finishes[0].usage.queue_s


def test_background_work_is_charged_to_nobody() -> None:
    rig = make_engine(n_slots=2)
    rig.add(line(0), line(1))
    rig.run()
    assert len(rig.queue.counters) == 0
    assert rig.queue.n_running(BACKGROUND) == 0


def test_lines_that_wait_are_none_of_those_that_wait() -> None:
    rig = make_engine(n_slots=1)
    rig.add(*(line(i) for i in range(6)))
    rig.step()
    rig.add(chat(50), chat(51))
    assert rig.engine.stats().waiting == 2
    rig.run()
    assert all(one.failure is None for one in rig.collected.values())


def test_a_line_waits_as_long_as_it_takes() -> None:
    rig = make_engine(n_slots=1, max_queue_wait_s=0.5)
    rig.add(chat(50, max_tokens=200))
    rig.step()
    rig.add(line(0, max_tokens=2))
    rig.run()
    assert rig.collected[0].failure is None
    assert rig.collected[0].finishes[0].usage.queue_s > 0.5


def test_a_request_with_a_timeout_is_not_refused_for_lines_in_the_slots() -> None:
    rig = make_engine(n_slots=1)
    rig.add(chat(1, max_tokens=100))
    rig.run()
    rig.add(line(0, max_tokens=1000))
    for _ in range(20):
        rig.step()
    rig.add(chat(50, timeout_s=1.0))
    assert admitted(rig, 50) == 1
    rig.run()
    assert rig.collected[50].failure is None


def test_nobody_waits_for_a_prefix_that_paused_work_computes() -> None:
    rig = make_engine(n_slots=2)
    prompt = bytes(range(33, 123)) * 2
    rig.add(make_request(0, prompt + b"a", principal=BEHIND), make_request(1, b"x" * 30, account="chat"))
    rig.step()
    rig.add(make_request(2, prompt + b"b", account="chat"))
    assert admitted(rig, 2) == 1
    rig.run()
    assert rig.collected[2].failure is None
    assert_as_alone(rig, make_request(2, prompt + b"b"))


def test_what_lines_leave_in_a_slot_goes_before_what_people_come_back_to() -> None:
    rig = make_engine(n_slots=2)
    rig.add(make_request(1, b"q" * 80, account="chat"))
    rig.run()
    rig.add(make_request(2, b"r" * 80, principal=BEHIND))
    rig.run()
    rig.add(make_request(3, b"s" * 80, account="other"))
    rig.run()
    rig.add(make_request(4, b"q" * 80 + b"more", account="chat"))
    rig.run()
    assert rig.collected[4].finishes[0].usage.cached_tokens >= 80


def test_a_vector_is_not_kept_waiting_by_lines() -> None:
    rig = make_engine(n_slots=2)
    rig.add(line(0), line(1))
    for _ in range(12):
        rig.step()
    rig.add(EmbedRequest(50, tuple((1, 2, 3) for _ in range(200)), principal=Principal(account="chat")))
    rig.step()
    n = sum(len(rig.collected[i].tokens.get(0, ())) for i in range(2))
    for _ in range(3):
        rig.step()
    if not rig.collected[50].is_done:
        assert sum(len(rig.collected[i].tokens.get(0, ())) for i in range(2)) == n
    rig.run()
    assert len(rig.collected[50].vectors) == 200


def test_lines_go_on_when_who_waits_for_a_vector_leaves() -> None:
    rig = make_engine(n_slots=2)
    rig.add(line(0))
    rig.step()
    rig.add(EmbedRequest(50, tuple((1, 2, 3) for _ in range(500)), principal=Principal(account="chat")))
    rig.step()
    assert not rig.collected[50].is_done
    rig.abort(50)
    for _ in range(200):
        rig.step()
    assert rig.collected[0].is_done


def test_vectors_of_lines_come_after_those_that_somebody_waits_for() -> None:
    rig = make_engine(n_slots=2)
    rig.add(*(EmbedRequest(i, tuple((7,) * 60 for _ in range(8)), principal=BEHIND) for i in range(8)))
    rig.step()
    rig.add(EmbedRequest(50, tuple((9,) * 60 for _ in range(8)), principal=Principal(account="chat")))
    done: list[int] = []
    for _ in range(500):
        rig.step()
        done += [i for i, one in rig.collected.items() if one.is_done and i not in done]
        if len(done) == 9:
            break
    assert 50 in done[:5], "at most those that had begun were before it"
    assert rig.engine.stats().waiting == 0


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_comes_and_goes_everybody_says_the_same(data: st.DataObject) -> None:
    """Text is that of a request alone, slots and accounts agree after every step (`Rig.step`), and all end."""
    n_slots = data.draw(st.integers(1, 3), "slots")
    rig = make_engine(n_slots=n_slots, preempts=data.draw(st.booleans(), "preempts"))
    requests: list[EngineRequest] = []
    for number in range(data.draw(st.integers(2, 10), "requests")):
        is_line = data.draw(st.booleans())
        n_tokens = data.draw(st.integers(1, 30))
        made = (
            line(number, max_tokens=n_tokens) if is_line else chat(number, max_tokens=n_tokens, account=str(number % 2))
        )
        requests.append(made)
        rig.add(made)
        for _ in range(data.draw(st.integers(0, 6))):
            rig.step()
        if data.draw(st.integers(0, 9)) == 0:
            rig.abort(number)
    rig.run()
    assert_as_alone(rig, *(one for one in requests if one.request_id not in rig.aborted))
