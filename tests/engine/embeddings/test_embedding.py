"""Vectors between the steps of those who write: right whatever runs beside, fair, bounded, and gone when aborted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.embeddings.embedding import MAX_OPEN, Embedder, EmbedderParams
from ggufd.engine.embeddings.pooling import scaled
from ggufd.engine.embeddings.vector_engine import VectorEngine
from ggufd.engine.messages.events import Admitted, Embedding, Failed, Output
from ggufd.engine.messages.reports import SlotState
from ggufd.engine.messages.requests import ActOnSlot, EmbedRequest, Scales, SlotAction
from ggufd.engine.queueing.waiting_list import WaitingList
from ggufd.errors import EngineFailure, InvalidRequest
from ggufd.keys.principal import Principal
from ggufd.keys.ring import Limits
from ggufd.llama.context.batch import NoRoomError, Vectors
from ggufd.llama.params import Pooling
from tests.support.fakes.fake_llama import (
    N_VOCAB,
    FakeDecoder,
    FakeVectorDecoder,
    Rig,
    make_engine,
    make_request,
    taken_of,
    vector_after,
)


def embed(request_id: int, *texts: bytes, **changes: Any) -> EmbedRequest:
    changes.setdefault("principal", Principal(**taken_of(Principal, changes)))
    return EmbedRequest(request_id, tuple(tuple(text) for text in texts), **changes)


def rows_of(text: bytes, adapters: Scales = ()) -> Vectors:
    return np.stack([vector_after(list(text[: n + 1]), adapters) for n in range(len(text))])


def mean_of(text: bytes, adapters: Scales = ()) -> Vectors:
    return scaled(rows_of(text, adapters).mean(axis=0)[None], 2)


@given(
    texts=st.lists(st.binary(min_size=1, max_size=64), min_size=1, max_size=12),
    n_requests=st.integers(1, 6),
    writing=st.booleans(),
)
def test_every_text_gets_its_own_vector(texts: list[bytes], n_requests: int, writing: bool) -> None:
    rig = make_engine(n_slots=2)
    if writing:
        rig.add(make_request(99, b"a long story" * 10, max_tokens=30, ignore_eos=True))
    requests = [embed(number, *texts) for number in range(n_requests)]
    rig.add(*requests)
    collected = rig.run()
    for request in requests:
        vectors = collected[request.request_id].vectors
        for index, text in enumerate(texts):
            assert vectors[index] == pytest.approx(mean_of(text), abs=1e-5)
    assert rig.vectors.n_held == 0


@pytest.mark.parametrize("pooling", ["none", "cls", "last", "rank"])
def test_other_poolings(pooling: Pooling) -> None:
    rig = make_engine(pooling=pooling)
    rig.add(embed(1, b"hello" * 10, norm=-1))
    (vector,) = rig.run()[1].vectors.values()
    rows = rows_of(b"hello" * 10)
    wanted = {"none": rows, "cls": rows[:1], "last": rows[-1:], "rank": rows[-1:, :1]}[pooling]
    assert vector == pytest.approx(wanted)


def test_a_vector_is_cut_before_it_is_scaled() -> None:
    rig = make_engine()
    rig.add(embed(1, b"hello", dimensions=3))
    cut = scaled(rows_of(b"hello").mean(axis=0)[None, :3], 2)
    assert rig.run()[1].vectors[0] == pytest.approx(cut, abs=1e-6)


def test_short_texts_are_computed_together() -> None:
    rig = make_engine()
    rig.add(embed(1, *[b"four"] * 8))
    rig.run()
    stats = rig.engine.stats()
    assert (stats.embedded_tokens, stats.computed_tokens) == (32, 0)
    # Four sequences there are, so two batches.
    assert [len(batch) for batch in rig.vectors.batches] == [16, 16]


def test_nobody_who_writes_waits_longer_than_the_gap() -> None:
    rig = make_engine(max_gap_ms=100.0, base_s=0.01)
    rig.add(make_request(1, b"hi", max_tokens=60, ignore_eos=True))
    rig.step()
    rig.add(embed(2, *[b"x" * 60] * 5))
    last_s, gaps = rig.decoder.clock(), []
    while rig.engine.has_work and not rig.collected[2].is_done:
        events = rig.step()
        if any(isinstance(event, Output) for event in events):
            gaps.append(rig.decoder.clock() - last_s)
            last_s = rig.decoder.clock()
    # 300 tokens of 2 ms each: without pieces the longest would be a batch of 48, beside a step of 10.
    assert rig.collected[2].is_done
    assert max(gaps) <= 0.1 + 1e-6
    assert any(len(batch) > 16 for batch in rig.vectors.batches), "the gap is there to be used"


def test_a_text_that_may_not_be_cut_is_in_one_batch() -> None:
    rig = make_engine()
    rig.vectors.can_split = False
    texts = [b"a" * 40, b"b" * 20, b"c" * 20, b"d" * 47]
    rig.add(embed(1, *texts))
    vectors = rig.run()[1].vectors
    assert [vectors[index] == pytest.approx(mean_of(text), abs=1e-5) for index, text in enumerate(texts)] == [True] * 4
    assert [len(batch) for batch in rig.vectors.batches] == [40, 40, 47]


def test_a_question_does_not_wait_for_a_long_list() -> None:
    rig = make_engine()
    rig.add(embed(1, *[b"x" * 16] * 100), embed(2, b"question"))
    for _ in range(3):
        rig.step()
    assert rig.collected[2].is_done
    assert not rig.collected[1].is_done


def test_more_requests_wait_and_are_told_when_they_begin() -> None:
    rig = make_engine()
    rig.add(*[embed(number, *[b"x" * 30] * 3) for number in range(MAX_OPEN + 2)])
    assert rig.engine.stats().waiting == 2
    admitted = [event.request_id for event in rig.step() if isinstance(event, Admitted)]
    assert admitted == list(range(MAX_OPEN))
    assert all(one.is_done for one in rig.run().values())


def test_who_has_fewest_under_way_begins_first() -> None:
    rig = make_engine()
    rig.add(*[embed(number, *[b"x" * 30] * 20, account="greedy") for number in range(MAX_OPEN + 3)])
    rig.step()
    rig.add(embed(50, b"a question", account="modest"))
    begun = [event.request_id for _ in range(200) for event in rig.step() if isinstance(event, Admitted)]
    assert begun[0] == 50


def test_the_first_list_of_an_account_does_not_wait_for_those_of_another() -> None:
    rig = make_engine()
    rig.add(*[embed(number, *[b"x" * 30] * 20, account="greedy") for number in range(MAX_OPEN)])
    rig.step()
    rig.add(embed(50, b"a question", account="modest"))
    assert [event.request_id for event in rig.step() if isinstance(event, Admitted)] == [50]


def test_accounts_share_by_tokens_and_weight() -> None:
    rig = make_engine()
    heavy = embed(1, *[b"x" * 16] * 90, account="heavy", limits=Limits(weight=2.0))
    rig.add(heavy, embed(2, *[b"y" * 16] * 90, account="light"))
    while len(rig.collected[1].vectors) < 60:
        rig.step()
    assert len(rig.collected[2].vectors) == pytest.approx(30, abs=4)


def test_what_becomes_vectors_is_charged_and_what_does_not_is_given_back() -> None:
    rig = make_engine()
    rig.add(embed(1, b"x" * 40, b"y" * 40, account="a"))
    rig.run()
    assert rig.queue.counters["a"] == 80 * 0.25
    rig.add(embed(2, *[b"x" * 60] * 9, account="a"))
    rig.step()
    n_computed = rig.engine.stats().embedded_tokens - 80
    assert 0 < n_computed < 540
    rig.abort(2)
    assert rig.queue.counters["a"] == (80 + n_computed) * 0.25


def test_an_open_list_still_waits_so_a_newcomer_has_saved_up_nothing() -> None:
    rig = make_engine()
    rig.add(embed(1, *[b"x" * 60] * 30, account="reader"))
    for _ in range(6):
        rig.step()
    assert rig.queue.counters["reader"] > 30
    rig.add(make_request(2, b"late", account="new", max_tokens=1))
    assert rig.queue.counters["new"] == rig.queue.counters["reader"]


def test_who_had_many_vectors_made_waits_for_a_slot_behind_who_had_none() -> None:
    rig = make_engine(n_slots=1)
    rig.add(make_request(1, b"first", account="other", max_tokens=5), embed(2, *[b"x" * 60] * 9, account="reader"))
    rig.step()
    late = make_request(4, b"late", account="other", max_tokens=1)
    rig.add(make_request(3, b"early", account="reader", max_tokens=1), late)
    begun = [event.request_id for _ in range(40) for event in rig.step() if isinstance(event, Admitted)]
    assert begun.index(4) < begun.index(3)


@pytest.mark.parametrize("writes_first", [True, False])
def test_a_limit_of_what_runs_counts_both(writes_first: bool) -> None:
    limits = Limits(max_running=1)
    writer = make_request(1, b"hi", max_tokens=9, ignore_eos=True, account="a", limits=limits)
    reader = embed(2, *[b"x" * 60] * 9, account="a", limits=limits)
    rig = make_engine()
    first, second = (1, 2) if writes_first else (2, 1)
    rig.add(writer if writes_first else reader)
    rig.step()
    rig.add(reader if writes_first else writer)
    while not rig.collected[first].is_done:
        assert not rig.collected[second].events
        rig.step()
    assert rig.run()[second].is_done


def test_what_an_account_holds_at_other_servers_counts_too() -> None:
    rig = make_engine(n_slots=2)
    rig.engine.hold_elsewhere([("a", 1)])
    rig.add(embed(1, b"x", account="a", limits=Limits(max_running=1)))
    for _ in range(3):
        assert rig.engine.is_preparing
        assert rig.engine.step() == []
    rig.engine.hold_elsewhere([])
    assert not rig.engine.is_preparing
    assert rig.run()[1].vectors


def test_who_waits_for_vectors_is_in_the_queue_too() -> None:
    rig = make_engine()
    rig.add(make_request(9, b"writes", max_tokens=50, ignore_eos=True))
    rig.add(*[embed(number, *[b"x" * 30] * 9, name="k", person="k") for number in range(MAX_OPEN + 2)])
    rig.step()
    rig.step()
    entries = rig.engine.queue_state().entries
    assert [(entry.request_id, entry.turn and entry.turn.position) for entry in entries[:1]] == [(9, None)]
    assert {entry.request_id for entry in entries[1:-2]} == set(range(MAX_OPEN))
    assert {(entry.prompt_tokens, entry.turn) for entry in entries[1:-2]} == {(270, None)}
    turns = [(entry.request_id, entry.turn.position) for entry in entries[-2:] if entry.turn is not None]
    assert turns == [(MAX_OPEN, 1), (MAX_OPEN + 1, 2)]
    waits = [entry.turn.wait_s for entry in entries[-2:] if entry.turn is not None]
    assert 0 < waits[0] < waits[1]


def test_it_waits_no_longer_than_it_may() -> None:
    rig = make_engine(max_queue_wait_s=5.0)
    rig.add(*[embed(number, *[b"x" * 60] * 60) for number in range(MAX_OPEN + 1)])
    rig.run()
    failure = rig.collected[MAX_OPEN].failure
    assert failure is not None
    assert (failure.code, "waited" in failure.message) == ("queue_timeout", True)


@given(st.data())
def test_an_abort_leaves_nothing_behind(data: st.DataObject) -> None:
    rig = make_engine()
    rig.add(*[embed(number, *[b"some text"] * 7) for number in range(6)])
    for _ in range(data.draw(st.integers(0, 4))):
        rig.step()
    for number in data.draw(st.sets(st.integers(0, 7))):
        rig.abort(number)
    rig.run()
    assert rig.vectors.n_held == 0
    assert all(one.is_done for number, one in rig.collected.items() if number not in rig.aborted)


@pytest.mark.parametrize("error", [NoRoomError(), EngineFailure("it broke")])
def test_a_batch_that_fails_fails_its_requests_alone(error: Exception) -> None:
    rig = make_engine()
    rig.vectors.failures = [error]
    writer = make_request(1, b"hi", max_tokens=9, ignore_eos=True)
    rig.add(writer, embed(2, b"x" * 48), embed(3, b"y" * 48))
    collected = rig.run()
    assert collected[2].failure is not None
    assert collected[2].failure.code == "engine_failure"
    assert len(collected[3].vectors) == 1
    assert collected[1].finishes[0].usage.completion_tokens == 9
    assert rig.vectors.n_held == 0


def test_numbers_that_are_none_fail_their_request(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_engine()
    rows = rig.vectors.rows

    def broken() -> Vectors:
        found = rows().copy()
        found[0] = np.nan
        return found

    monkeypatch.setattr(rig.vectors, "rows", broken)
    rig.add(embed(1, b"a", b"b"))
    rig.add(embed(2, b"c"))
    collected = rig.run()
    assert collected[1].failure is not None
    assert len(collected[2].vectors) == 1
    assert rig.vectors.n_held == 0


def test_alone_no_batch_takes_longer_than_a_newcomer_may_wait() -> None:
    rig = make_engine(pooling="mean")
    rig.vectors.row_s = 0.1
    rig.add(embed(1, *[b"x" * 60] * 3))
    rig.run()
    # 1.2 s; but never so few that it would not be worth it.
    assert {len(batch) for batch in rig.vectors.batches[1:]} <= {12, 16}


def test_a_context_that_cannot_be_made_fails_the_request_and_is_tried_again() -> None:
    decoder = FakeDecoder()
    vectors = FakeVectorDecoder(decoder)
    tries = [vectors]

    def make() -> FakeVectorDecoder:
        if len(tries) == 1:
            tries.append(vectors)
            raise EngineFailure("no memory")
        return tries[0]

    embedder = Embedder(EmbedderParams("mean", 64, N_VOCAB), make, WaitingList(600.0), decoder.clock)
    embedder.add(embed(1, b"a"))
    assert [type(event) for event in embedder.step()] == [Admitted, Failed]
    embedder.add(embed(2, b"a"))
    assert [type(event) for event in embedder.step()] == [Admitted, Embedding]


@pytest.mark.parametrize(
    ("request_", "words", "param"),
    [
        (embed(1, b"a", b""), "at least one token", "input[1]"),
        (embed(1, b"a" * 65), "at most 64", "input"),
        (EmbedRequest(1, ((N_VOCAB,),)), "vocabulary", "input"),
        (embed(1, b"a", adapters=(1.0,)), "0 adapters, got 1", "lora"),
    ],
)
def test_what_cannot_be_a_vector_is_refused(request_: EmbedRequest, words: str, param: str) -> None:
    rig = make_engine()
    rig.add(request_)
    failure = rig.run()[1].failure
    assert failure is not None
    assert words in failure.message
    assert failure.param == param


def test_no_text_at_all_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        make_engine().embedder.add(embed(1))


# --- adapters ---------------------------------------------------------------------------------------------------------

BASE, MUCH, LITTLE = (), (1.0, 0.0), (0.0, 0.5)


@given(
    asked=st.lists(
        st.tuples(
            st.sampled_from([BASE, MUCH, LITTLE]),
            st.lists(st.binary(min_size=1, max_size=48), min_size=1, max_size=5),
            st.sampled_from(["", "a", "b"]),
        ),
        min_size=1,
        max_size=8,
    ),
    can_split=st.booleans(),
)
def test_every_text_gets_its_vector_under_its_own_adapters(
    asked: list[tuple[Scales, list[bytes], str]], can_split: bool
) -> None:
    rig = make_engine(n_adapters=2)
    rig.vectors.can_split = can_split
    rig.add(*[embed(i, *texts, adapters=scales, account=account) for i, (scales, texts, account) in enumerate(asked)])
    collected = rig.run()
    for i, (scales, texts, _) in enumerate(asked):
        for index, text in enumerate(texts):
            assert collected[i].vectors[index] == pytest.approx(mean_of(text, scales), abs=1e-5)
    assert rig.vectors.n_held == 0


def test_a_score_is_given_under_its_adapters() -> None:
    rig = make_engine(pooling="rank", n_adapters=2)
    rig.add(embed(1, b"hello", adapters=MUCH), embed(2, b"hello"))
    collected = rig.run()
    for number, scales in ((1, MUCH), (2, BASE)):
        assert collected[number].vectors[0] == pytest.approx(rows_of(b"hello", scales)[-1:, :1])


def test_texts_under_the_same_adapters_share_a_batch_and_the_others_take_turns() -> None:
    rig = make_engine(n_adapters=2)
    for number, scales in enumerate([MUCH, BASE, MUCH, BASE]):
        rig.add(embed(number, *[b"four"] * 4, adapters=scales))
    rig.run()
    # Four sequences there are.
    assert [len(batch) for batch in rig.vectors.batches] == [16] * 4
    assert rig.vectors.sets == [MUCH, BASE, MUCH, BASE]


def test_a_question_under_other_adapters_does_not_wait_for_a_long_list() -> None:
    rig = make_engine(n_adapters=2)
    # The first batch ends within a text; the second does the rest of it, and no more under its adapters.
    rig.add(embed(1, *[b"x" * 20] * 100), embed(2, b"question", adapters=MUCH))
    for _ in range(3):
        rig.step()
    assert rig.collected[2].is_done
    assert not rig.collected[1].is_done


def test_without_adapters_none_are_put_over_the_context() -> None:
    rig = make_engine(n_adapters=2)
    rig.add(embed(1, b"a" * 60, b"b"), make_request(2, b"c", adapters=MUCH, max_tokens=4))
    assert rig.run()[1].is_done
    assert set(rig.vectors.sets) == {BASE}


def test_adapters_that_are_not_there_are_refused() -> None:
    rig = make_engine(n_adapters=1)
    rig.add(embed(1, b"a", adapters=MUCH))
    failure = rig.run()[1].failure
    assert failure is not None
    assert (failure.code, failure.param) == ("invalid_value", "lora")


class TestVectorsOnly:
    @pytest.fixture
    def rig(self) -> Rig:
        return make_engine()

    def test_it_says_so_to_who_wants_text(self, rig: Rig) -> None:
        engine = VectorEngine(rig.embedder)
        engine.add(make_request(1, b"Hello"))
        engine.add(embed(2, b"Hello"))
        assert engine.has_work
        failed, _, vector = engine.step()
        assert isinstance(failed, Failed)
        assert failed.code == "unsupported"
        assert isinstance(vector, Embedding)
        assert not engine.has_work

    def test_its_places_are_told(self, rig: Rig) -> None:
        engine = VectorEngine(rig.embedder)
        for number in range(MAX_OPEN + 1):
            engine.add(embed(number, *[b"x" * 60] * 9))
        engine.step()
        stats = engine.stats()
        assert (stats.running, stats.waiting) == (MAX_OPEN, 1)
        assert sorted(slot.request_id or 0 for slot in stats.slots) == [0, 1, 2, 3]
        for number in range(MAX_OPEN + 1):
            engine.abort(number)
        engine.check_integrity()
        assert engine.stats().slots == tuple(SlotState(place, None, 0, 0) for place in range(MAX_OPEN))
        assert not engine.has_work
        assert engine.act_on_slot(ActOnSlot(0, SlotAction.ERASE)).n_tokens == 0
