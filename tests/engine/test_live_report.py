"""Report for the live view: what each slot does or keeps, whose it is, and what was served to whom."""

from __future__ import annotations

import pickle

import pytest

from ggufd.engine.messages.events import CacheClass, Output
from ggufd.keys.ring import Limits
from tests.support.fakes.fake_llama import Rig, make_engine, make_request

LONG = b"The quick brown fox jumps over the lazy dog. " * 2


def steps(rig: Rig, n: int) -> None:
    for _ in range(n):
        rig.step()


def class_of(rig: Rig, request_id: int) -> CacheClass | None:
    (finish,) = [
        event.finish for event in rig.collected[request_id].events if isinstance(event, Output) and event.finish
    ]
    return finish.usage.cache_class


def test_a_running_slot_says_whose_it_is_and_how_far() -> None:
    rig = make_engine(n_slots=2)
    rig.add(make_request(7, LONG, person="alice", account="alice", max_tokens=50, ignore_eos=True))
    steps(rig, 4)
    busy, idle = rig.engine.live_state().slots
    assert (busy.owner, busy.request_id, busy.n_prompt, busy.n_cached) == ("alice", 7, len(LONG), 0)
    assert busy.n_past >= len(LONG)
    assert busy.n_generated > 0
    assert busy.phase_s > 0
    assert (idle.owner, idle.request_id, idle.n_past) == ("", None, 0)


def test_an_idle_slot_says_what_it_keeps_and_for_how_long() -> None:
    rig = make_engine(n_slots=2)
    rig.add(make_request(7, LONG, person="alice", max_tokens=3, ignore_eos=True))
    rig.run()
    rig.decoder.sleep(30.0)
    kept = rig.engine.live_state().slots[0]
    assert (kept.owner, kept.request_id) == ("alice", None)
    assert kept.n_past >= len(LONG)
    assert kept.phase_s == pytest.approx(30.0, abs=0.5)


def test_accounts_are_served_what_was_computed_and_generated_for_them() -> None:
    rig = make_engine(n_slots=2)
    rig.add(make_request(1, LONG, account="alice", limits=Limits(weight=2.0), max_tokens=8, ignore_eos=True))
    rig.add(make_request(2, b"ab", account="bob", max_tokens=5, ignore_eos=True))
    rig.run()
    live = rig.engine.live_state()
    assert dict(live.served) == {"alice": pytest.approx(8 + len(LONG) / 4), "bob": pytest.approx(5 + 2 / 4)}
    assert live.prefill_tokens == len(LONG) + 2


def test_it_is_small_at_sixteen_busy_slots() -> None:
    """One message a second: a few kilobytes through the pipe."""
    rig = make_engine(n_slots=16)
    for request_id in range(32):
        rig.add(make_request(request_id, b"ab" * request_id + b"c", person="alice", max_tokens=50, ignore_eos=True))
    steps(rig, 8)
    assert len(pickle.dumps(rig.engine.live_state(), pickle.HIGHEST_PROTOCOL)) < 10_000


def test_every_request_has_the_class_of_what_the_cache_had() -> None:
    rig = make_engine(n_slots=1)
    for request_id, prompt in enumerate((LONG, LONG + b"And more.", LONG[:60] + b"other", b"zzz" * 30)):
        rig.add(make_request(request_id, prompt, max_tokens=1, ignore_eos=True))
        rig.run()
    assert [class_of(rig, request_id) for request_id in range(4)] == [
        CacheClass.NEW,
        CacheClass.CONTINUED,
        CacheClass.PARTED,
        CacheClass.NEW,
    ]
