"""Chats that lost their slot come back from host RAM, token for token, within a byte budget."""

from __future__ import annotations

from array import array

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.kv_store.host_cache import HostCache
from ggufd.engine.kv_store.state_file import KeptState
from ggufd.engine.messages.events import CacheSource
from ggufd.engine.messages.requests import CacheScope
from ggufd.errors import EngineFailure
from tests.support.fakes.fake_llama import make_engine, make_request, run_alone


def tokens(text: str) -> array[int]:
    return array("i", list(text.encode()))


def state(n: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.zeros(n, np.uint8)


NOBODY: CacheScope = CacheScope()


def test_the_longest_beginning_is_found() -> None:
    cache = HostCache(1000)
    for text in ("abc", "abd", "x"):
        cache.insert(KeptState(tokens(text), state(10)))
    found = cache.match(tokens("abdx"), NOBODY)
    assert found is not None
    assert (found[0].tokens, found[1]) == (tokens("abd"), 3)
    assert cache.match(tokens("zzz"), NOBODY) is None


def test_another_namespaces_entries_are_not_found() -> None:
    cache = HostCache(1000)
    cache.insert(KeptState(tokens("abc"), state(10), CacheScope("them")))
    assert cache.match(tokens("abcd"), CacheScope("me")) is None
    assert not cache.holds(tokens("abc"), CacheScope("me"))
    cache.insert(KeptState(tokens("abcd"), state(10), CacheScope("me")))
    assert cache.holds(tokens("abc"), CacheScope("them"))
    assert len(cache) == 2


def test_a_cache_that_cannot_be_trimmed_needs_all_of_an_entry() -> None:
    cache = HostCache(1000, only_whole=True)
    cache.insert(KeptState(tokens("abcd"), state(10)))
    assert cache.match(tokens("abcx"), NOBODY) is None
    assert cache.match(tokens("abcd"), NOBODY) is None
    assert cache.match(tokens("abcdx"), NOBODY) is not None


def test_a_cache_that_cannot_be_trimmed_keeps_beginnings_beside_what_goes_on() -> None:
    cache = HostCache(1000, only_whole=True)
    for text in ("ab", "abcd", "abcd"):
        cache.insert(KeptState(tokens(text), state(10)))
    assert len(cache) == 2
    found = cache.match(tokens("abcx"), NOBODY)
    assert found is not None
    assert found[0].tokens == tokens("ab")
    assert cache.holds(tokens("ab"), NOBODY)
    assert not cache.holds(tokens("abc"), NOBODY)
    assert cache.longest_common(tokens("abcx"), NOBODY) == 3


def test_what_goes_on_replaces_its_beginning() -> None:
    cache = HostCache(1000)
    cache.insert(KeptState(tokens("ab"), state(10)))
    cache.insert(KeptState(tokens("abc"), state(10)))
    assert len(cache) == 1
    assert cache.holds(tokens("ab"), NOBODY)
    assert not cache.holds(tokens("abcd"), NOBODY)


@given(st.lists(st.tuples(st.text("ab", min_size=1, max_size=6), st.integers(1, 60)), max_size=30))
def test_the_budget_holds_and_the_latest_survives(entries: list[tuple[str, int]]) -> None:
    cache = HostCache(100)
    for text, n_bytes in entries:
        cache.insert(KeptState(tokens(text), state(n_bytes)))
        assert cache.n_bytes <= 100
        assert cache.holds(tokens(text), NOBODY)


def test_the_least_recently_used_goes_first() -> None:
    cache = HostCache(20)
    cache.insert(KeptState(tokens("a"), state(10)))
    cache.insert(KeptState(tokens("b"), state(10)))
    found = cache.match(tokens("a"), NOBODY)
    assert found is not None
    cache.touch(found[0])
    cache.insert(KeptState(tokens("c"), state(10)))
    assert cache.holds(tokens("a"), NOBODY)
    assert not cache.holds(tokens("b"), NOBODY)


def test_nothing_is_kept_without_a_budget() -> None:
    cache = HostCache(0)
    cache.insert(KeptState(tokens("a"), state(1)))
    assert len(cache) == 0


CHATS = [
    bytes([65 + i]) * 3 + b" is how this one of many long conversations begins, and so it goes on and on. "
    for i in range(6)
]


def test_more_chats_than_slots_take_turns_without_computing_again() -> None:
    rig = make_engine(n_slots=2, cache_ram_bytes=1 << 20)
    for turn in range(3):
        for chat, text in enumerate(CHATS):
            prompt = text + b"More. " * turn
            request = make_request(100 * turn + chat, prompt, max_tokens=4, explain_cache=True)
            rig.add(request)
            collected = rig.run()[request.request_id]
            usage = collected.finishes[0].usage
            assert collected.texts[0] == run_alone(request).texts[0]
            if turn:
                assert usage.cached_tokens >= len(text) + 6 * (turn - 1) - 1
                assert usage.cache is not None
                assert usage.cache.source is CacheSource.RESTORED


def test_a_restored_chat_is_still_its_persons() -> None:
    """Whoever ran in the slot before is not told what stands in it now."""
    rig = make_engine(n_slots=1, cache_ram_bytes=1 << 20)
    for i, person in enumerate(("them", "me")):
        rig.add(make_request(i, CHATS[i], max_tokens=4, person=person))
        rig.run()
    rig.add(make_request(2, CHATS[0] + b"x", max_tokens=4, person="me", explain_cache=True))
    report = rig.run()[2].finishes[0].usage.cache
    assert report is not None
    assert report.source is CacheSource.RESTORED
    assert report.difference is not None
    assert report.difference.held is None


shared_texts = st.sampled_from([CHATS[0], CHATS[0][:40] + CHATS[1], CHATS[1], CHATS[0] + CHATS[1]])
visits = st.lists(st.tuples(st.sampled_from(["", "alice", "bob"]), shared_texts), min_size=2, max_size=14)


@given(visits, st.booleans())
def test_no_namespace_is_quicker_for_what_another_asked(asked: list[tuple[str, bytes]], together: bool) -> None:
    """The tokens that are reused are at most those that the same namespace had sent and been told before."""
    rig = make_engine(n_slots=2, cache_ram_bytes=1 << 20)
    known: dict[str, list[bytes]] = {}
    for request_id, (namespace, text) in enumerate(asked):
        rig.add(make_request(request_id, text, max_tokens=3, cache_namespace=namespace))
        if together:
            known.setdefault(namespace, []).append(text)
            continue
        usage = rig.run()[request_id].finishes[0].usage
        most = max((_n_common(text, other) for other in known.get(namespace, [])), default=0)
        assert usage.cached_tokens <= most
        known.setdefault(namespace, []).append(text)
    if together:
        others = [namespace for namespace, _ in asked]
        for request_id, collected in rig.run().items():
            alone = others.count(others[request_id]) == 1
            assert not (alone and collected.finishes[0].usage.cached_tokens)


def _n_common(text: bytes, other: bytes) -> int:
    return next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))


def test_without_a_budget_they_are_computed_again() -> None:
    rig = make_engine(n_slots=2)
    for _ in range(2):
        for chat, text in enumerate(CHATS):
            rig.add(make_request(chat, text, max_tokens=4))
            usage = rig.run()[chat].finishes[0].usage
            assert usage.cached_tokens < 32


def test_a_swipe_and_a_turn_save_nothing() -> None:
    rig = make_engine(n_slots=2, cache_ram_bytes=1 << 20)
    for i, text in enumerate((CHATS[0], CHATS[0], CHATS[0] + b" And a new message.")):
        rig.add(make_request(i, text, max_tokens=4))
        rig.run()
    assert len(rig.engine._cache.host) == 0


def test_the_next_to_go_is_saved_while_nobody_waits() -> None:
    rig = make_engine(n_slots=2, cache_ram_bytes=1 << 20, copy_s_per_token=1e-4)
    for i in (0, 1):
        rig.engine.run_idle_maintenance()
        assert len(rig.engine._cache.host) == 0
        rig.add(make_request(i, CHATS[i], max_tokens=4))
        rig.run()
    rig.engine.run_idle_maintenance()
    assert len(rig.engine._cache.host) == 1
    reads = 0
    original = rig.decoder.get_state

    def counted(slot: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        nonlocal reads
        reads += 1
        return original(slot)

    rig.decoder.get_state = counted  # type: ignore[method-assign]
    rig.add(make_request(2, b"Short", max_tokens=4))
    rig.run()
    assert reads == 0


def test_the_next_to_go_is_saved_beside_a_long_prompt_and_not_beside_a_short_one() -> None:
    rig = make_engine(n_slots=2, cache_ram_bytes=1 << 20, copy_s_per_token=1e-5)
    for i in (0, 1):
        rig.add(make_request(i, CHATS[i], max_tokens=4))
        rig.run()
    host = rig.engine._cache.host
    assert len(host) == 0
    rig.add(make_request(2, b"Short", max_tokens=4))
    rig.run()
    assert len(host) == 1
    rig.add(make_request(3, CHATS[2], max_tokens=4))
    rig.run()
    assert len(host) == 2
    rig.add(make_request(4, b"Short again", max_tokens=4))
    rig.run()
    assert len(host) == 2


def test_a_chat_that_cannot_be_restored_is_computed_anew_and_kept_again() -> None:
    rig = make_engine(n_slots=1, cache_ram_bytes=1 << 20)
    for i in (0, 1):
        rig.add(make_request(i, CHATS[i], max_tokens=4))
        rig.run()
    original = rig.decoder.set_state

    def broken(slot: int, state: object) -> None:
        rig.decoder.trim(slot, 0)
        raise EngineFailure("the state could not be restored")

    rig.decoder.set_state = broken  # type: ignore[method-assign]
    request = make_request(2, CHATS[0], max_tokens=4)
    rig.add(request)
    assert rig.run()[2].texts[0] == run_alone(request).texts[0]
    rig.decoder.set_state = original  # type: ignore[method-assign]
    for request_id, text in ((3, CHATS[1]), (4, CHATS[0])):
        request = make_request(request_id, text, max_tokens=4)
        rig.add(request)
        collected = rig.run()[request_id]
        assert collected.texts[0] == run_alone(request).texts[0]
        assert collected.finishes[0].usage.cached_tokens == len(text) - 1
    assert rig.engine.stats().failed_restores == 1
