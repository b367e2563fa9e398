"""Deterministic requests over a fake context whose numbers depend on how each token was computed, as real kernels' do.

There a token is another one to the model by the rows of its batch, by its place among them, and by the threads. So a
text is the same only if all of it was computed the same way.
"""

from __future__ import annotations

import zlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggufd.engine.messages.config import EngineRules
from ggufd.engine.messages.events import Finish, FinishReason
from ggufd.engine.messages.requests import CacheScope, EngineRequest
from ggufd.engine.messages.sampling import Grammar, GrammarKind
from ggufd.errors import EngineFailure
from ggufd.keys.principal import Principal
from ggufd.llama.context.batch import NoRoomError
from tests.support.fakes.fake_llama import _ADAPTED, Collected, FakeDecoder, Rig, make_request

CHUNK = 16
STEM = bytes(range(97, 123)) * 4
"""104 tokens: six whole chunks and a rest."""


class ShapedDecoder(FakeDecoder):
    """Numbers by the shape of the batch. `shapes` are those of all decodes: tokens by slot, and threads."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"n_batch": CHUNK, "n_ctx": 256, "n_threads": 4} | options)
        self.shapes: list[tuple[dict[int, list[int]], int | None]] = []

    def decode(self) -> float:
        slots: dict[int, list[int]] = {}
        for row in range(self.batch.n_rows):
            slots.setdefault(int(self.batch.seq_id[row]), []).append(int(self.batch.pos[row]))
        self.shapes.append((slots, self.threads))
        return super().decode()

    def _compute(self, row: int) -> None:
        if self.batch.n_embedded:
            super()._compute(row)
            return
        slot = int(self.batch.seq_id[row])
        first_row = int((self.batch.seq_id[: self.batch.n_rows] < slot).sum())
        shape = zlib.crc32(repr((self.batch.n_rows, row - first_row, self.threads)).encode()) % 1000
        # Before the logits are made of it.
        token = int(self.batch.token[row])
        self._slots[slot].append(token + _ADAPTED * shape)
        if self.batch.output[row]:
            output = len(self._output_of_row)
            self._logits[output] = self.logits_after(self._slots[slot])
            self._output_of_row[row] = output


def rig_of(n_slots: int = 4, decoder: dict[str, Any] | None = None, **rules: Any) -> Rig:
    return Rig(ShapedDecoder(n_slots=n_slots, **(decoder or {})), rules=EngineRules(**rules))


def request(request_id: int, prompt: bytes, **changes: Any) -> EngineRequest:
    return make_request(
        request_id, prompt, **({"is_deterministic": True, "seed": 5, "max_tokens": 20, "ignore_eos": True} | changes)
    )


def alone(asked: EngineRequest) -> Collected:
    """What the request says in an engine that does nothing else."""
    rig = rig_of(n_slots=1)
    rig.add(asked)
    return rig.run()[asked.request_id]


def steps(rig: Rig, n: int) -> None:
    for _ in range(n):
        rig.step()


def test_other_requests_say_something_else_beside_others() -> None:
    """The fake shows what it is for."""
    asked = request(1, STEM, is_deterministic=False)
    rig = rig_of()
    rig.add(make_request(2, b"something else", max_tokens=60, ignore_eos=True))
    steps(rig, 4)
    rig.add(asked)
    assert rig.run()[1].texts != alone(asked).texts


@pytest.mark.parametrize("n_streams", [1, 4, 16])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_the_text_is_the_same_beside_any_number_of_streams(n_streams: int, temperature: float) -> None:
    asked = request(99, STEM, temperature=temperature)
    rig = rig_of(n_slots=n_streams + 1)
    rig.add(*(make_request(i, bytes([65 + i]) * (9 + 7 * i), max_tokens=70, ignore_eos=True) for i in range(n_streams)))
    steps(rig, 5)
    rig.add(asked)
    assert rig.run()[99].texts == alone(asked).texts


def test_each_of_its_decodes_is_its_own_with_fixed_chunks_and_threads() -> None:
    rig = rig_of()
    rig.add(*(make_request(i, STEM[i:], max_tokens=70, ignore_eos=True) for i in range(3)))
    steps(rig, 20)
    rig.add(request(9, STEM, max_tokens=4))
    decoder = rig.decoder
    assert isinstance(decoder, ShapedDecoder)
    n_before = len(decoder.shapes)
    rig.step()
    slot = next(one.slot for one in rig.engine.stats().slots if one.request_id == 9)
    rig.run()
    own = [(slots, threads) for slots, threads in decoder.shapes[n_before:] if slot in slots][:10]
    chunks = [list(range(start, min(start + CHUNK, len(STEM)))) for start in range(0, len(STEM), CHUNK)]
    tokens = [[len(STEM) + i] for i in range(3)]
    assert [slots for slots, _ in own] == [{slot: rows} for rows in chunks + tokens]
    assert {threads for _, threads in own} == {None}


def test_a_prefix_is_reused_in_whole_chunks() -> None:
    rig = rig_of()
    rig.add(request(1, STEM))
    rig.run()
    again, longer, other = request(2, STEM), request(3, STEM + b"and more"), request(4, STEM[:40] + b"but other")
    for asked, n_cached in ((again, 96), (longer, 96), (other, 32)):
        rig.add(asked)
        collected = rig.run()[asked.request_id]
        assert collected.finishes[0].usage.cached_tokens == n_cached
        assert collected.texts == alone(asked).texts


def test_an_answer_is_read_anew_in_the_next_turn() -> None:
    """It was computed token by token, and a prompt is read in chunks."""
    rig = rig_of()
    rig.add(request(1, STEM, max_tokens=60))
    answer = bytes(token for token in rig.run()[1].tokens[0] if token < 128)
    asked = request(2, STEM + answer + b" go on")
    rig.add(asked)
    collected = rig.run()[2]
    assert collected.finishes[0].usage.cached_tokens == 96
    assert collected.texts == alone(asked).texts


@pytest.mark.parametrize("n_extra", [0, 1])
def test_nothing_is_reused_of_other_requests_nor_by_them(n_extra: int) -> None:
    rig = rig_of()
    rig.add(make_request(1, STEM))
    rig.run()
    asked = request(2, STEM + b"x" * n_extra)
    rig.add(asked)
    collected = rig.run()[2]
    assert collected.finishes[0].usage.cached_tokens == 0
    assert collected.texts == alone(asked).texts
    rig.add(make_request(3, STEM + b"yz"))
    assert rig.run()[3].finishes[0].usage.cached_tokens == len(STEM)


def test_choices_share_their_prompt_in_whole_chunks() -> None:
    asked = request(1, STEM, n=3, temperature=1.5)
    rig = rig_of()
    rig.add(asked)
    collected = rig.run()[1]
    assert collected.texts == alone(asked).texts
    assert len(set(collected.texts.values())) == 3
    assert [collected.finishes[index].usage.cached_tokens for index in range(3)] == [0, 80, 80]


def test_it_says_the_same_after_it_was_preempted() -> None:
    asked = request(1, STEM, priority=5, max_tokens=60)
    rig = rig_of(n_slots=1, preempts=True, cache_ram_bytes=1 << 20)
    rig.add(asked)
    steps(rig, 12)
    rig.add(make_request(2, b"urgent" * 9, priority=0, max_tokens=5, account="b"))
    collected = rig.run()
    assert rig.engine.stats().preemptions == 1
    assert collected[1].texts == alone(asked).texts


def test_it_says_the_same_from_host_ram() -> None:
    rig = rig_of(n_slots=1, cache_ram_bytes=1 << 20)
    rig.add(request(1, STEM))
    rig.run()
    rig.add(make_request(2, b"Q" * 100))
    rig.run()
    asked = request(3, STEM + b"then")
    rig.add(asked)
    collected = rig.run()[3]
    assert rig.engine.stats().restores == 1
    assert collected.finishes[0].usage.cached_tokens == 96
    assert collected.texts == alone(asked).texts


def test_it_drafts_nothing_moves_nothing_and_shifts_nothing() -> None:
    rig = rig_of(n_slots=1, max_draft=8, n_cache_reuse=8, shifts_context=True, pre_rolls=True)
    trimmed = STEM[:20] + STEM[60:]
    rig.add(request(1, STEM))
    rig.run()
    asked = request(2, trimmed, max_tokens=None)
    rig.add(asked)
    finish = rig.run()[2].finishes[0]
    assert (finish.reason, finish.usage.prompt_tokens + finish.usage.completion_tokens) == (FinishReason.LENGTH, 256)
    assert (finish.usage.moved_tokens, finish.usage.dropped_tokens, finish.usage.drafted_tokens) == (0, 0, 0)
    assert rig.text(2) == alone(asked).texts[0]
    assert not rig.engine.run_idle_maintenance()


@pytest.mark.parametrize("error", [NoRoomError(), EngineFailure("failed")])
def test_what_cannot_be_computed_fails_and_is_not_computed_otherwise(error: Exception) -> None:
    rig = rig_of()
    asked, other = request(1, STEM), make_request(2, b"other", max_tokens=30, ignore_eos=True)
    rig.add(other)
    steps(rig, 3)
    rig.add(asked)
    steps(rig, 2)
    # The first decode of a step is of the others.
    rig.decoder.before_decode = fail_when_alone(rig, error)
    rig.run()
    failure = rig.collected[1].failure
    assert failure is not None
    assert failure.code == "engine_failure"
    assert rig.collected[2].finishes[0].usage.completion_tokens == 30
    rig.decoder.before_decode = lambda: None
    rig.add(request(3, STEM))
    assert rig.run()[3].texts == alone(asked).texts


def fail_when_alone(rig: Rig, error: Exception) -> Any:
    """Let the next decode of a deterministic request fail, and no other."""
    failures = [error]

    def before() -> None:
        slot = int(rig.decoder.batch.seq_id[0])
        running = rig.engine._cache.table.slots[slot].sequence
        if failures and running is not None and running.is_deterministic:
            rig.decoder.failures.append(failures.pop())

    return before


def test_a_state_that_is_lost_fails_it() -> None:
    rig = rig_of(n_slots=1, preempts=True, cache_ram_bytes=1 << 20)
    rig.add(request(1, STEM, priority=5, max_tokens=60))
    steps(rig, 12)
    rig.decoder.bad_restores = {0: "refused"}
    rig.add(make_request(2, b"urgent" * 9, priority=0, max_tokens=5, account="b"))
    failure = rig.run()[1].failure
    assert failure is not None
    assert failure.code == "engine_failure"


def test_its_timeout_fails_it_since_the_time_depends_on_others() -> None:
    rig = rig_of(n_slots=1)
    rig.add(request(1, STEM, timeout_s=0.5, max_tokens=None))
    failure = rig.run()[1].failure
    assert failure is not None
    assert failure.param == "timeout"
    assert "whole or none" in failure.message


def test_forced_tokens_are_computed_one_by_one() -> None:
    text = "ab/c/d/e/f/g/h/ij/k/l/mn"
    asked = request(1, STEM, grammar=Grammar(GrammarKind.GBNF, text), ignore_eos=False)
    rig = rig_of()
    rig.add(*(make_request(i, bytes([65 + i]) * 30, max_tokens=60, ignore_eos=True) for i in range(2, 5)))
    steps(rig, 3)
    rig.add(asked)
    assert rig.run()[1].texts == alone(asked).texts
    decoder = rig.decoder
    assert isinstance(decoder, ShapedDecoder)
    slots = [slots for slots, _ in decoder.shapes if len(slots) == 1 and min(map(min, slots.values())) >= len(STEM)]
    assert all(len(rows) == 1 for one in slots for rows in one.values())


def test_what_it_leaves_in_a_slot_is_whole_chunks_of_its_prompt() -> None:
    rig = rig_of(n_slots=1)
    rig.add(request(1, STEM[:96], max_tokens=40))
    rig.run()
    slot = rig.engine._cache.table.slots[0]
    # Not the last one: where the first token of the answer was taken back, its last token was computed again.
    assert (slot.n_computed, slot.cache_scope) == (80, CacheScope(is_deterministic=True))


@pytest.mark.parametrize("kind", [{"can_trim": False}, {"copies_all": False}])
def test_a_cache_that_cannot_be_cut_reuses_nothing(kind: dict[str, Any]) -> None:
    rig = rig_of(n_slots=2, decoder=kind, cache_ram_bytes=1 << 20)
    for number in (1, 2):
        asked = request(number, STEM)
        rig.add(asked)
        collected = rig.run()[number]
        assert collected.finishes[0].usage.cached_tokens == 0
        assert collected.texts == alone(asked).texts


loads = st.lists(
    st.tuples(
        st.sampled_from([b"", STEM[:30], STEM, STEM + b"more", b"Zebra" * 20]),
        st.booleans(),
        st.fixed_dictionaries(
            {"max_tokens": st.integers(1, 40), "priority": st.integers(0, 2)},
            optional={
                "n": st.integers(1, 2),
                "temperature": st.just(1.5),
                "banned_strings": st.sampled_from([("e",), ("ab", "th")]),
                "prompt_logprobs": st.just(True),
                "n_logprobs": st.just(1),
            },
        ),
        st.integers(0, 9),
        st.booleans(),
    ),
    min_size=2,
    max_size=10,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(loads, st.integers(1, 4), st.booleans())
def test_whatever_else_runs_a_deterministic_text_is_the_one_it_has_alone(
    load: list[Any], n_slots: int, keeps: bool
) -> None:
    rig = rig_of(n_slots=n_slots, preempts=True, cache_ram_bytes=keeps << 20, max_draft=4, n_cache_reuse=8)
    asked: list[EngineRequest] = []
    aborted = set()
    for number, (stem, is_deterministic, changes, n_steps, is_aborted) in enumerate(load):
        principal = Principal(account=f"account {number % 3}")
        options = {"is_deterministic": is_deterministic, "principal": principal, **changes}
        one = request(number, stem + bytes([65 + number % 2]), **options)
        rig.add(one)
        steps(rig, n_steps)
        if is_aborted and not rig.collected[number].is_done:
            rig.abort(number)
            aborted.add(number)
        asked.append(one)
    rig.run()
    for one in asked:
        collected = rig.collected[one.request_id]
        if one.is_deterministic and one.request_id not in aborted:
            assert collected.failure is None
            assert collected.texts == alone(one).texts
            assert all(isinstance(finish, Finish) for finish in collected.finishes.values())
