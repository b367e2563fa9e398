"""A full slot in mid-answer: the older half goes, the rest moves up, and the text goes on as if it had been read so."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufd.engine.messages.events import FinishReason
from ggufd.engine.messages.sampling import Grammar, GrammarKind
from ggufd.engine.sequence.sequence import OutputToken, SequenceState
from ggufd.engine.slots.context_shift import ContextShift, Gap
from ggufd.engine.slots.prefix_cache import PrefixCache
from ggufd.llama.calibration.attention_model import AttentionShape, write_attention_model
from ggufd.llama.context.context import Context
from ggufd.llama.model.model import Model
from ggufd.llama.params import ContextParams, ModelParams
from tests.support.examples import examples
from tests.support.fakes.fake_llama import EOS, EOT, SUPPRESSED, Rig, logits_after, make_engine, make_request

N_CTX = 64
REPEAT = np.float32(1.3)
ENDLESS: dict[str, Any] = {"ignore_eos": True}


class Expected:
    """What a server that computes every token anew would say, dropping as the engine does; greedy.

    Each of the last `repeat_last_n` tokens that were said, dropped or not, is the less likely.
    """

    def __init__(self, prompt: bytes, n_keep: int, max_tokens: int, repeat_last_n: int) -> None:
        self.tokens, self.said, self.n_dropped = list(prompt), list[int](), 0
        while len(self.said) < max_tokens:
            if len(self.tokens) == N_CTX:
                start = min(1 + n_keep, N_CTX - 4)
                gap = (N_CTX - 1 - start) // 2
                del self.tokens[start : start + gap]
                self.n_dropped += gap
            row = logits_after(self.tokens)
            all_said = [*prompt, *self.said]
            recent = all_said[-(N_CTX if repeat_last_n < 0 else repeat_last_n) :] if repeat_last_n else []
            for token in set(recent):
                row[token] = row[token] * REPEAT if row[token] <= 0 else row[token] / REPEAT
            row[[EOS, EOT, SUPPRESSED]] = -np.inf
            self.tokens.append(int(row.argmax()))
            self.said.append(self.tokens[-1])


@settings(max_examples=examples(60), deadline=None)
@given(
    prompts=st.lists(st.binary(min_size=1, max_size=N_CTX - 1), min_size=1, max_size=4),
    n_keep=st.integers(0, 2 * N_CTX),
    max_tokens=st.integers(1, 4 * N_CTX),
    max_draft=st.sampled_from([0, 7]),
    repeat_last_n=st.sampled_from([0, 16, -1]),
)
def test_the_text_is_that_of_a_server_which_reads_what_is_left_anew(
    prompts: list[bytes], n_keep: int, max_tokens: int, max_draft: int, repeat_last_n: int
) -> None:
    """Slots that hold other tokens than the books say, or at other places, fail in the fake decoder and the rig."""
    penalties: dict[str, Any] = {"repeat_last_n": repeat_last_n, "repeat_penalty": float(REPEAT)}
    rig = make_engine(n_slots=2, n_ctx=N_CTX, shifts_context=True, max_draft=max_draft, preempts=True)
    for number, prompt in enumerate(prompts):
        sampling = {**ENDLESS, **penalties}
        rig.add(make_request(number, prompt, n_keep=n_keep, max_tokens=max_tokens, account=str(number), **sampling))
    rig.run()
    for number, prompt in enumerate(prompts):
        collected, expected = rig.collected[number], Expected(prompt, n_keep, max_tokens, repeat_last_n)
        said, unsaid = expected.said[: len(collected.tokens[0])], expected.said[len(collected.tokens[0]) :]
        assert collected.tokens[0] == said
        # Half a character at the end is no text, and is not sent.
        assert all(token >= 128 for token in unsaid)
        usage = collected.finishes[0].usage
        assert collected.finishes[0].reason is FinishReason.LENGTH
        assert (usage.completion_tokens, usage.dropped_tokens) == (max_tokens, expected.n_dropped)
        assert usage.prompt_tokens == len(prompt)


def run_one(*, rules: dict[str, Any] | None = None, **changes: Any) -> Rig:
    rig = make_engine(n_slots=1, n_ctx=N_CTX, shifts_context=True, **(rules or {}))
    rig.add(make_request(1, b"Once upon a time", **changes))
    rig.run()
    return rig


def test_a_full_slot_ends_the_answer_unless_it_may_be_shifted() -> None:
    rig = make_engine(n_slots=1, n_ctx=N_CTX)
    rig.add(make_request(1, b"Once upon a time", max_tokens=200, **ENDLESS))
    finish = rig.run()[1].finishes[0]
    assert finish.reason is FinishReason.LENGTH
    assert (finish.usage.completion_tokens, finish.usage.dropped_tokens) == (N_CTX - len(b"Once upon a time"), 0)


def test_a_model_that_cannot_move_tokens_goes_without() -> None:
    rig = make_engine(n_slots=1, n_ctx=N_CTX, shifts_context=True, can_trim=False)
    rig.add(make_request(1, b"Once upon a time", max_tokens=200, **ENDLESS))
    assert rig.run()[1].finishes[0].usage.completion_tokens < N_CTX


@pytest.mark.parametrize("prompt", [b"a", b"Once upon a time", b"x" * (N_CTX - 1)], ids=len)
@pytest.mark.parametrize("max_draft", [0, 31])
def test_an_answer_without_a_limit_has_as_many_tokens_as_a_slot(prompt: bytes, max_draft: int) -> None:
    rig = make_engine(n_slots=1, n_ctx=N_CTX, shifts_context=True, max_draft=max_draft)
    rig.add(make_request(1, prompt, max_tokens=None, **ENDLESS))
    finish = rig.run()[1].finishes[0]
    assert (finish.reason, finish.usage.completion_tokens) == (FinishReason.LENGTH, N_CTX)
    assert finish.usage.dropped_tokens > 0


def test_what_it_dropped_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run_one(max_tokens=100, n_keep=9, **ENDLESS)
    assert "request 1 goes on without 26 tokens behind its first 10" in caplog.text


PENALISED: dict[str, Any] = {"repeat_penalty": 1.3, "repeat_last_n": -1, **ENDLESS}


@pytest.mark.parametrize("phrase_length", [2, 3])
def test_no_banned_phrase_comes_through_a_shift(phrase_length: int) -> None:
    plain = run_one(max_tokens=150, **PENALISED).text(1)
    phrases = {plain[at : at + phrase_length] for at in range(30, 150 - phrase_length, 7)}
    rig = run_one(max_tokens=150, banned_strings=tuple(phrases), **PENALISED)
    usage = rig.collected[1].finishes[0].usage
    assert usage.completion_tokens == 150
    assert usage.rewinds > 0
    assert usage.dropped_tokens > 0
    assert not any(phrase.lower() in rig.text(1).lower() for phrase in phrases)


def test_rewinds_after_a_shift_equal_a_run_that_knew_the_bans() -> None:
    """Each rewind counts the penalties anew, over all that was said: also over what was dropped."""
    plain = run_one(max_tokens=150, **PENALISED).text(1)
    letters = [letter for letter in sorted(set(plain)) if letter.isalpha() and plain.rfind(letter) > 100][:3]
    bytes_of = [ord(form) for letter in letters for form in {letter.lower(), letter.upper()}]
    told = run_one(max_tokens=150, logit_bias=tuple((byte, -math.inf) for byte in bytes_of), **PENALISED)
    found = run_one(max_tokens=150, banned_strings=tuple(letters), **PENALISED)
    assert found.text(1) == told.text(1)
    assert found.collected[1].finishes[0].usage.rewinds > 3


def test_what_was_dropped_was_said_all_the_same() -> None:
    rig = make_engine(n_slots=1, n_ctx=N_CTX, shifts_context=True)
    rig.add(make_request(1, b"Once upon a time", max_tokens=None, **ENDLESS))
    sequence = step_until_dropped(rig)
    assert sequence.history.tolist() == [*b"Once upon a time", *rig.collected[1].tokens[0]]
    assert sequence.n_generated == len(sequence.history) - 16


def test_a_grammar_and_stop_strings_go_on_over_a_shift() -> None:
    grammar = "/".join(["abc"] * 60 + ["x", "y", "z"])
    rig = run_one(max_tokens=300, grammar=Grammar(GrammarKind.GBNF, grammar))
    assert rig.collected[1].finishes[0].reason is FinishReason.STOP
    assert rig.text(1).endswith("xyz")
    assert len(rig.text(1)) == 63
    stopped = run_one(max_tokens=300, stop=("xy",), grammar=Grammar(GrammarKind.GBNF, grammar))
    assert stopped.text(1) == rig.text(1)[:-3]
    assert stopped.collected[1].finishes[0].stop == "xy"


def test_the_next_prompt_reuses_what_is_left_and_nothing_else() -> None:
    rig = run_one(max_tokens=100, n_keep=15, **ENDLESS)
    left = rig.engine._cache.table.slots[0].tokens.tolist()
    assert left[:16] == list(b"Once upon a time")
    rig.add(make_request(2, [*left, 97, 98], max_tokens=3))
    usage = rig.run()[2].finishes[0].usage
    assert usage.cached_tokens == len(left)
    rig.add(make_request(3, b"Once upon a time there was", max_tokens=3))
    assert rig.run()[3].finishes[0].usage.cached_tokens == 16


def step_until_dropped(rig: Rig) -> SequenceState:
    """Step until the lone request has lost tokens."""
    while True:
        rig.step()
        (sequence,) = rig.engine._running
        if sequence.dropped:
            return sequence


def test_what_no_decode_has_rotated_is_not_copied() -> None:
    """The fake refuses such a copy: here the shift is followed by a decode that never comes about."""
    rig = make_engine(n_slots=1, n_ctx=256, shifts_context=True, cache_ram_bytes=1 << 20)
    rig.add(make_request(1, b"Once upon a time", max_tokens=500, **ENDLESS))

    def crash_amid() -> None:
        (sequence,) = rig.engine._running
        if sequence.dropped:
            raise InterruptedError

    rig.decoder.before_decode = crash_amid
    with pytest.raises(InterruptedError):
        rig.run()
    rig.decoder.before_decode = lambda: None
    rig.abort(1)
    rig.add(make_request(2, b"Another one", max_tokens=3))
    rig.run()
    assert rig.collected[2].finishes


def test_nobody_waits_for_a_prompt_that_was_read_and_dropped() -> None:
    rig = make_engine(n_slots=2, n_ctx=N_CTX, shifts_context=True)
    prompt = bytes(range(60))
    rig.add(make_request(1, prompt, max_tokens=500, **ENDLESS))
    step_until_dropped(rig)
    rig.add(make_request(2, prompt, max_tokens=2))
    rig.step()
    assert rig.engine.stats().running == 2


def test_log_probabilities_of_a_prompt_are_told_once() -> None:
    rig = make_engine(n_slots=1, n_ctx=N_CTX, shifts_context=True)
    rig.add(make_request(1, bytes(range(60)), max_tokens=100, prompt_logprobs=True, n_logprobs=0, **ENDLESS))
    sequence = step_until_dropped(rig)
    n_rows = len(sequence.prompt_logprobs)
    rig.step()
    assert (len(sequence.prompt_logprobs), n_rows) == (59, 59)


def test_a_grammar_may_force_more_than_a_slot_holds() -> None:
    places = [letter for letter in "abcd" for _ in range(N_CTX)]
    rig = run_one(max_tokens=1000, grammar=Grammar(GrammarKind.GBNF, "/".join(places)))
    assert rig.text(1) == "".join(places)


def test_what_a_client_is_foreseen_to_send_is_the_whole_chat() -> None:
    rig = run_one(max_tokens=100, rules={"pre_rolls": True}, **ENDLESS)
    assert rig.engine._lifecycle.pre_roll is not None
    (chat,) = rig.engine._lifecycle.pre_roll._chats
    assert chat.tokens.tolist() == [*b"Once upon a time", *rig.collected[1].tokens[0]]


def sequence_of(n_tokens: int, n_keep: int, **changes: Any) -> SequenceState:
    request = make_request(1, b"ab", n_keep=n_keep, max_tokens=1000, **changes)
    sequence = SequenceState.of(request, 0, 0.0)
    sequence.tokens.extend(range(n_tokens - 2))
    return sequence


def test_half_of_what_is_not_kept_goes() -> None:
    shift = ContextShift(64, is_on=True)
    assert shift.gap(sequence_of(64, n_keep=0)) == Gap(1, 31)
    assert shift.gap(sequence_of(64, n_keep=20)) == Gap(21, 21)
    assert shift.gap(sequence_of(64, n_keep=1000)) == Gap(60, 1)
    assert ContextShift(64, is_on=False).gap(sequence_of(64, n_keep=0)) is None


def test_what_may_yet_be_taken_back_stays() -> None:
    sequence = sequence_of(64, n_keep=0, banned_strings=("x" * 100,))
    for _ in range(50):
        sequence.detokenizer.feed(b"x", OutputToken(ord("x"), None))
    assert ContextShift(64, is_on=True).gap(sequence) == Gap(1, 13)
    for _ in range(13):
        sequence.detokenizer.feed(b"x", OutputToken(ord("x"), None))
    assert ContextShift(64, is_on=True).gap(sequence) is None


@pytest.fixture
def one_layer(tmp_path: Path) -> Model:
    """With one layer, keys and values depend on a token and its place alone, so a move must be exact."""
    path = tmp_path / "one-layer.gguf"
    write_attention_model(path, AttentionShape(4, 2, 64), 1)
    return Model(ModelParams(str(path)))


def test_llama_cpp_computes_on_as_if_it_had_read_what_is_left(one_layer: Model) -> None:
    """The engine's own cache over a real context: the logits after two shifts are those of a fresh read."""
    context = Context(one_layer, ContextParams(n_ctx=128, n_slots=2, n_threads=1, flash_attn="off", cache_type_k="f32"))
    cache, shift = PrefixCache(context), ContextShift(128, is_on=True)
    tokens = np.random.default_rng(1).integers(1, 60, 128).tolist()
    request = dataclasses.replace(make_request(1, tokens[:50]), n_keep=9, max_tokens=1000)
    sequence = SequenceState.of(request, 0, 0.0)
    assert cache.placement.lock(sequence)

    def compute(slot: int, new: list[int], start: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        context.batch.clear()
        context.batch.add(slot, new, start, 1)
        context.decode()
        cache.cells.note_decode()
        return context.logits()[0].copy()

    for round_of in range(2):
        sequence.tokens.extend(tokens[: 128 - len(sequence.tokens)])
        compute(sequence.slot or 0, sequence.tokens.tolist()[sequence.n_past : 127], sequence.n_past)
        sequence.n_past = 127
        gap = shift.gap(sequence)
        assert gap is not None
        cache.cells.shift(sequence, gap.start, gap.n)
        cache.check_integrity()
        assert sequence.n_past == 127 - gap.n == 69, round_of
        moved = compute(sequence.slot or 0, sequence.tokens.tolist()[69:70], 69)
        sequence.n_past = 70
    assert len(sequence.dropped) == 2 * 58
    fresh = compute(1 - (sequence.slot or 0), sequence.tokens.tolist(), 0)
    context.close()
    one_layer.close()
    assert np.abs(moved - fresh).max() < 2e-3 * np.abs(fresh).max()
