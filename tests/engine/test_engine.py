"""The engine over a fake context that enforces the rules of the real one; integrity is checked after every step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggufd.engine.costs.cost_model import Weights
from ggufd.engine.messages.events import (
    Admitted,
    CacheDifference,
    CacheReport,
    CacheSource,
    FinishReason,
    Output,
    Progress,
    PromptLogprobs,
)
from ggufd.engine.messages.requests import ActOnSlot, EngineRequest, SlotAction
from ggufd.engine.messages.sampling import Grammar, GrammarKind, ReasoningBudget, SamplingParams
from ggufd.engine.sampling.sampling import NO_NUMBERS, VectorSampler
from ggufd.errors import EngineFailure, Unavailable
from ggufd.llama.context.batch import NoRoomError
from tests.support.examples import examples
from tests.support.fakes.fake_llama import (
    BOS,
    EMOJI_HEAD,
    EMOJI_TAIL,
    EOS,
    EOT,
    N_VOCAB,
    SUPPRESSED,
    THE,
    Collected,
    FakeVocabulary,
    InprocSpawn,
    Rig,
    inproc_client,
    logits_after,
    make_engine,
    make_request,
    run_alone,
)

LONG = bytes(range(97, 123)) * 3
"""A prompt long enough to be worth sharing: 78 tokens."""


def greedy(prompt: bytes, n: int) -> list[int]:
    """The fake model's first `n` greedy tokens; tokens that may not be generated left out."""
    tokens = list(prompt)
    for _ in range(n):
        row = logits_after(tokens)
        row[SUPPRESSED] = -math.inf
        tokens.append(int(row.argmax()))
    return tokens[len(prompt) :]


def text_of(tokens: list[int]) -> str:
    """What those tokens say, whole characters only."""
    pieces = b"".join(FakeVocabulary().piece(token, special=False) for token in tokens)
    return pieces.decode("utf-8", "replace")


class ScriptedRig(Rig):
    """Says given tokens: the logits of a slot with n generated tokens favour the n-th."""

    def __init__(self, prompt: bytes, script: list[int], **decoder: Any) -> None:
        base = make_engine(**decoder)
        super().__init__(base.decoder, max_gap_ms=100.0, max_queue_wait_s=600.0)
        compute = self.decoder._compute

        def scripted(row: int) -> None:
            compute(row)
            if self.decoder.batch.output[row]:
                n = len(self.decoder.tokens(int(self.decoder.batch.seq_id[row]))) - len(prompt)
                self.decoder.row(row)[script[n] if n < len(script) else EOS] += 1000

        self.decoder._compute = scripted  # type: ignore[method-assign]


def say(script: list[int], **changes: Any) -> tuple[Rig, list[Any]]:
    """Run one request whose model says `script` and then ends; the rig, and its outputs step by step."""
    rig = ScriptedRig(b"prompt", script)
    rig.add(make_request(1, b"prompt", **({"max_tokens": 50} | changes)))
    outputs: list[Any] = []
    while rig.engine.has_work:
        outputs += [event for event in rig.step() if isinstance(event, Output)]
    return rig, outputs


# --- together as alone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 1.0, "seed": 7},
        {"temperature": 0.8, "seed": 7, "top_k": 20, "top_p": 0.9, "repeat_penalty": 1.2},
        {"temperature": 0.8, "seed": 7, "xtc_probability": 0.5},
    ],
    ids=["greedy", "seeded", "samplers", "chain"],
)
def test_sequences_together_say_what_each_says_alone(changes: dict[str, Any]) -> None:
    requests = [make_request(i, bytes([65 + i]) * (1 + 17 * i), max_tokens=20 + i, **changes) for i in range(7)]
    rig = make_engine(n_slots=4, n_batch=48)
    rig.add(*requests)
    rig.run()
    for request in requests:
        assert rig.text(request.request_id) == run_alone(request).texts[0]
        assert len(rig.text(request.request_id)) > 5


def test_greedy_follows_the_model() -> None:
    rig = make_engine()
    rig.add(make_request(1, b"abc", max_tokens=10, ignore_eos=True))
    assert rig.run()[1].tokens[0] == greedy(b"abc", 10)


def test_a_newcomer_starts_while_others_run_and_leaves_before_them() -> None:
    rig = make_engine(n_slots=2)
    rig.add(make_request(1, b"first", max_tokens=40, ignore_eos=True))
    for _ in range(5):
        rig.step()
    rig.add(make_request(2, b"second", max_tokens=3, ignore_eos=True))
    rig.step()
    assert rig.engine.stats().running == 2
    while not rig.collected[2].is_done:
        rig.step()
    assert not rig.collected[1].is_done
    rig.run()
    assert rig.text(1) == run_alone(make_request(1, b"first", max_tokens=40, ignore_eos=True)).texts[0]


def test_who_waits_gets_the_slot_in_the_step_after_it_is_free() -> None:
    rig = make_engine(n_slots=1)
    rig.add(make_request(1, b"first", max_tokens=3, ignore_eos=True), make_request(2, b"second", max_tokens=3))
    while not rig.collected[1].is_done:
        assert not rig.collected[2].events
        rig.step()
    assert any(isinstance(event, Admitted) and event.request_id == 2 for event in rig.step())


def test_more_requests_than_slots_are_served_in_order() -> None:
    rig = make_engine(n_slots=2)
    rig.add(*(make_request(i, bytes([65 + i]) * 9, max_tokens=5, ignore_eos=True) for i in range(9)))
    admitted = []
    while rig.engine.has_work:
        admitted += [event.request_id for event in rig.step() if isinstance(event, Admitted)]
    assert admitted == list(range(9))


# --- abort ------------------------------------------------------------------------------------------------------------


def test_an_abort_in_the_queue_costs_nothing() -> None:
    rig = make_engine(n_slots=1)
    rig.add(make_request(1, b"one", max_tokens=8), make_request(2, b"two"), make_request(3, b"three"))
    rig.step()
    rig.abort(2)
    rig.run()
    assert not rig.collected[2].events
    assert rig.text(1) == run_alone(make_request(1, b"one", max_tokens=8)).texts[0]
    assert rig.text(3) == run_alone(make_request(3, b"three")).texts[0]


def test_an_abort_in_prefill_frees_the_slot_for_the_next_step() -> None:
    rig = make_engine(n_slots=1, n_batch=16)
    rig.add(make_request(1, LONG), make_request(2, b"next", max_tokens=4))
    rig.step()
    assert 0 < rig.decoder.n_past(0) < len(LONG)
    rig.abort(1)
    assert rig.engine.stats().running == 0
    assert any(isinstance(event, Admitted) and event.request_id == 2 for event in rig.step())
    rig.run()
    assert rig.text(2) == run_alone(make_request(2, b"next", max_tokens=4)).texts[0]


def test_an_abort_in_decode_leaves_the_others_alone() -> None:
    rig = make_engine(n_slots=3)
    requests = [make_request(i, bytes([70 + i]) * 5, max_tokens=30, ignore_eos=True) for i in range(3)]
    rig.add(*requests)
    for _ in range(6):
        rig.step()
    rig.abort(1)
    assert rig.engine.stats().running == 2
    rig.run()
    for i in (0, 2):
        assert rig.text(i) == run_alone(requests[i]).texts[0]


def test_an_abort_ends_all_choices_waiting_and_running() -> None:
    rig = make_engine(n_slots=2)
    rig.add(make_request(1, b"many", n=5, max_tokens=50, ignore_eos=True))
    rig.step()
    rig.step()
    rig.abort(1)
    assert not rig.engine.has_work
    assert rig.engine.stats().waiting == 0


def test_what_an_aborted_request_computed_is_reused() -> None:
    rig = make_engine(n_slots=1)
    rig.add(make_request(1, LONG, max_tokens=50, ignore_eos=True))
    for _ in range(5):
        rig.step()
    rig.abort(1)
    rig.add(make_request(2, LONG + b"!"))
    rig.run()
    assert rig.collected[2].finishes[0].usage.cached_tokens == len(LONG)
    assert rig.text(2) == run_alone(make_request(2, LONG + b"!")).texts[0]


def test_nothing_is_told_of_a_request_that_was_finished_and_aborted_between_two_steps() -> None:
    rig = make_engine(n_slots=2)
    rig.add(make_request(1, b"one", max_tokens=9), make_request(2, b"two", max_tokens=3, ignore_eos=True))
    rig.step()
    rig.finish(1)
    rig.abort(1)
    assert {event.request_id for event in rig.step() if isinstance(event, Output)} == {2}
    rig.run()
    assert rig.collected[2].is_done


def test_an_unknown_abort_is_fine() -> None:
    rig = make_engine()
    rig.abort(77)
    assert not rig.engine.has_work


# --- a sequence that is told to finish --------------------------------------------------------------------------------


def test_a_sequence_that_is_told_to_finish_ends_with_its_text_and_frees_its_slot() -> None:
    rig = make_engine(n_slots=2)
    request = make_request(1, b"several", n=2, max_tokens=30, ignore_eos=True)
    rig.add(request, make_request(2, b"next"))
    for _ in range(6):
        rig.step()
    n_said = len(rig.collected[1].tokens[1])
    rig.finish(1, 1)
    rig.finish(1, 7)
    rig.finish(77)
    assert rig.engine.stats().running == 1
    assert any(isinstance(event, Admitted) and event.request_id == 2 for event in rig.step())
    finish = rig.collected[1].finishes[1]
    assert (finish.reason, finish.stop) == (FinishReason.STOP, None)
    assert finish.usage.completion_tokens == len(rig.collected[1].tokens[1]) == n_said > 0
    rig.finish(1, 1)
    rig.run()
    alone = run_alone(request)
    assert rig.text(1, 0) == alone.texts[0]
    assert alone.texts[1].startswith(rig.text(1, 1))
    assert rig.text(2) == run_alone(make_request(2, b"next")).texts[0]


# --- prefix reuse -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("can_trim", [True, False], ids=["any", "whole"])
def test_a_turn_of_a_chat_computes_only_what_is_new(can_trim: bool) -> None:
    rig = make_engine(n_slots=2, can_trim=can_trim)
    history = list(LONG)
    for turn in range(4):
        before = rig.n_computed
        rig.add(make_request(turn, history, max_tokens=6, ignore_eos=True))
        collected = rig.run()[turn]
        n_cached = collected.finishes[0].usage.cached_tokens
        # The last token of an answer is not computed by the turn that said it.
        expected = 0 if turn == 0 else len(history) - 7
        assert n_cached == expected
        assert rig.n_computed - before == len(history) - n_cached + 5
        assert collected.texts == run_alone(make_request(turn, history, max_tokens=6, ignore_eos=True)).texts
        history += [*collected.tokens[0], *b"next t"]


def test_an_edit_reuses_what_stands_before_it() -> None:
    rig = make_engine(n_slots=1)
    rig.add(make_request(1, LONG + b"a question", max_tokens=4))
    rig.run()
    rig.add(make_request(2, LONG + b"another question", max_tokens=4))
    rig.run()
    assert rig.collected[2].finishes[0].usage.cached_tokens == len(LONG) + 1
    assert rig.text(2) == run_alone(make_request(2, LONG + b"another question", max_tokens=4)).texts[0]


def test_a_model_that_cannot_trim_starts_an_edit_afresh() -> None:
    rig = make_engine(n_slots=1, can_trim=False)
    rig.add(make_request(1, LONG + b"a question", max_tokens=4))
    rig.run()
    rig.add(make_request(2, LONG + b"another", max_tokens=4))
    rig.run()
    assert rig.collected[2].finishes[0].usage.cached_tokens == 0
    assert rig.text(2) == run_alone(make_request(2, LONG + b"another", max_tokens=4)).texts[0]


def test_the_same_prompt_again_computes_its_last_token_only() -> None:
    rig = make_engine(n_slots=1)
    for i in range(2):
        rig.add(make_request(i, LONG, max_tokens=3, ignore_eos=True))
        rig.run()
    assert rig.collected[1].finishes[0].usage.cached_tokens == len(LONG) - 1
    assert rig.text(1) == rig.text(0)


def test_an_unseen_prefix_of_two_at_once_is_computed_once() -> None:
    rig = make_engine(n_slots=4, n_batch=128)
    # A step before this one, so that the prompt is read at once.
    rig.scheduler.costs.model.weights = Weights(0, 1e-5, 0, 0)
    rig.add(make_request(1, LONG + b"one", max_tokens=5), make_request(2, LONG + b"two", max_tokens=5))
    rig.run()
    assert rig.collected[2].finishes[0].usage.cached_tokens == len(LONG)
    assert rig.n_computed <= len(LONG) + 3 + 3 + 2 * 4
    for i, end in ((1, b"one"), (2, b"two")):
        assert rig.text(i) == run_alone(make_request(i, LONG + end, max_tokens=5)).texts[0]


def test_a_stranger_passes_one_that_waits_for_its_prefix() -> None:
    rig = make_engine(n_slots=4, n_batch=16)
    rig.add(make_request(1, LONG), make_request(2, LONG + b"x"), make_request(3, b"stranger"))
    admitted = [event.request_id for event in rig.step() if isinstance(event, Admitted)]
    assert admitted == [1, 3]
    rig.run()


def test_who_waits_for_a_prefix_starts_when_its_leader_is_aborted() -> None:
    rig = make_engine(n_slots=4, n_batch=16)
    rig.add(make_request(1, LONG), make_request(2, LONG + b"x", max_tokens=4))
    rig.step()
    rig.abort(1)
    rig.run()
    assert rig.collected[2].finishes[0].usage.cached_tokens == 16
    assert rig.text(2) == run_alone(make_request(2, LONG + b"x", max_tokens=4)).texts[0]


def test_several_choices_compute_the_prompt_once() -> None:
    request = make_request(1, LONG, n=3, max_tokens=6, temperature=1.0, seed=3, ignore_eos=True)
    rig = make_engine(n_slots=4, n_batch=128)
    # A step before this one, so that the prompt is read at once.
    rig.scheduler.costs.model.weights = Weights(0, 1e-5, 0, 0)
    rig.add(request)
    collected = rig.run()[1]
    assert rig.n_computed == len(LONG) + 2 + 3 * 5
    assert [collected.finishes[i].usage.cached_tokens for i in range(3)] == [0, len(LONG) - 1, len(LONG) - 1]
    assert len(set(collected.texts.values())) == 3
    assert collected.texts == run_alone(request).texts


def test_an_erased_slot_keeps_nothing_and_a_running_one_everything() -> None:
    rig = make_engine()
    rig.add(make_request(1, b"once upon a time", max_tokens=3))
    rig.run()
    (kept,) = [slot for slot in rig.engine.stats().slots if slot.n_past]
    assert rig.engine.act_on_slot(ActOnSlot(kept.slot, SlotAction.ERASE)).n_tokens == kept.n_past
    assert not any(slot.n_past for slot in rig.engine.stats().slots)
    rig.add(make_request(2, b"once upon a time", max_tokens=3))
    rig.step()
    (running,) = [slot for slot in rig.engine.stats().slots if slot.request_id == 2]
    assert rig.engine.act_on_slot(ActOnSlot(running.slot, SlotAction.ERASE)).n_tokens is None
    rig.engine.check_integrity()


def test_a_short_common_beginning_does_not_take_a_long_chat_away() -> None:
    rig = make_engine(n_slots=2)
    rig.add(make_request(1, LONG, max_tokens=2, ignore_eos=True))
    rig.run()
    rig.add(make_request(2, LONG[:5] + b"else", max_tokens=2))
    rig.run()
    rig.add(make_request(3, LONG + b"more", max_tokens=2))
    rig.run()
    assert rig.collected[3].finishes[0].usage.cached_tokens == len(LONG)


# --- ends -------------------------------------------------------------------------------------------------------------


def test_the_end_token_ends_and_is_not_said() -> None:
    for end in (EOS, EOT):
        rig, _ = say([*b"hey", end])
        finish = rig.collected[1].finishes[0]
        assert (rig.text(1), finish.reason, finish.stop) == ("hey", FinishReason.STOP, None)
        assert rig.collected[1].tokens[0] == list(b"hey")
        assert finish.usage.completion_tokens == 3


def test_a_stop_string_across_tokens_never_leaks() -> None:
    rig, outputs = say(list(b"some STOP more"), stop=("STOP",))
    assert rig.text(1) == "some "
    assert all("S" not in output.text for output in outputs)
    finish = rig.collected[1].finishes[0]
    assert (finish.reason, finish.stop) == (FinishReason.STOP, "STOP")
    assert finish.usage.completion_tokens == len("some STOP")
    assert rig.collected[1].tokens[0] == list(b"some ")


def test_half_a_stop_string_is_released_at_the_end() -> None:
    rig, _ = say(list(b"a STO"), stop=("STOP",))
    assert rig.text(1) == "a STO"
    assert rig.collected[1].tokens[0] == list(b"a STO")


def test_half_a_stop_string_is_released_when_it_goes_on_otherwise() -> None:
    rig, outputs = say(list(b"a STORM"), stop=("STOP",))
    assert [output.text for output in outputs] == ["a", " ", "STOR", "M", ""]
    assert rig.text(1) == "a STORM"


def test_an_emoji_of_two_tokens_comes_whole() -> None:
    rig, outputs = say([EMOJI_HEAD, EMOJI_TAIL, ord("!")])
    assert [(output.text, output.tokens) for output in outputs[:2]] == [
        ("😀", (EMOJI_HEAD, EMOJI_TAIL)),
        ("!", (ord("!"),)),
    ]
    assert rig.text(1) == "😀!"


def test_half_an_emoji_at_the_end_is_dropped() -> None:
    rig, _ = say([ord("a"), EMOJI_HEAD])
    assert (rig.text(1), rig.collected[1].tokens[0]) == ("a", [ord("a")])


@pytest.mark.parametrize(("skip", "text"), [(True, "a the"), (False, "a<s> the")])
def test_control_tokens_are_left_out_unless_asked_for(skip: bool, text: str) -> None:
    rig, _ = say([ord("a"), BOS, THE], skip_special_tokens=skip)
    assert rig.text(1) == text
    assert rig.collected[1].tokens[0] == [ord("a"), BOS, THE]


def test_ignore_eos_goes_on_to_the_limit() -> None:
    rig, _ = say([*b"ab", EOS], ignore_eos=True, max_tokens=20)
    finish = rig.collected[1].finishes[0]
    assert (finish.reason, finish.usage.completion_tokens) == (FinishReason.LENGTH, 20)


def test_min_tokens_keeps_the_end_away_until_then() -> None:
    rig, _ = say([*b"ab", EOS, EOT, EOS, EOS], min_tokens=5)
    finish = rig.collected[1].finishes[0]
    assert (finish.reason, finish.usage.completion_tokens) == (FinishReason.STOP, 5)


def test_suppressed_tokens_are_never_said() -> None:
    rig, _ = say([SUPPRESSED] * 3, max_tokens=3)
    assert SUPPRESSED not in rig.collected[1].tokens[0]


def test_max_tokens_one() -> None:
    rig = make_engine()
    rig.add(make_request(1, b"abc", max_tokens=1, ignore_eos=True))
    collected = rig.run()[1]
    assert collected.tokens[0] == greedy(b"abc", 1)
    assert collected.finishes[0].reason is FinishReason.LENGTH


def test_no_max_tokens_goes_to_the_context_limit() -> None:
    rig = make_engine(n_ctx=40)
    rig.add(make_request(1, b"abc", max_tokens=None, ignore_eos=True))
    finish = rig.run()[1].finishes[0]
    assert (finish.reason, finish.usage.completion_tokens) == (FinishReason.LENGTH, 37)


def test_a_prompt_that_leaves_room_for_one_token() -> None:
    rig = make_engine(n_ctx=40)
    rig.add(make_request(1, b"x" * 39, max_tokens=None, ignore_eos=True), make_request(2, b"x" * 40))
    collected = rig.run()
    assert collected[1].finishes[0].usage.completion_tokens == 1
    failure = collected[2].failure
    assert failure is not None
    assert failure.code == "context_length_exceeded"


def test_a_prompt_of_one_token() -> None:
    rig = make_engine()
    rig.add(make_request(1, b"x", max_tokens=5, ignore_eos=True))
    assert rig.run()[1].tokens[0] == greedy(b"x", 5)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"n": 0}, "n"),
        ({"prompt": ()}, "prompt"),
        ({"prompt": (N_VOCAB,)}, "prompt"),
        ({"prompt": (-1,)}, "prompt"),
        ({"adapters": (1.0,)}, "lora"),
        ({"banned_strings": ("",)}, "banned_strings"),
        ({"sampling": SamplingParams(logit_bias=((N_VOCAB, 1.0),))}, "logit_bias"),
        ({"sampling": SamplingParams(logit_bias=((-1, 1.0),))}, "logit_bias"),
    ],
)
def test_what_cannot_be_served_fails(changes: dict[str, Any], param: str) -> None:
    rig = make_engine()
    rig.collected[1] = Collected(1)
    rig.engine.add(EngineRequest(**({"request_id": 1, "prompt": (65,)} | changes)))
    failure = rig.run()[1].failure
    assert failure is not None
    assert (failure.code, failure.param) == ("invalid_value", param)


def test_usage_tells_where_the_time_went() -> None:
    rig = make_engine(n_slots=1, n_batch=32)
    rig.add(make_request(1, b"first", max_tokens=5, ignore_eos=True))
    rig.add(make_request(2, LONG, max_tokens=5, ignore_eos=True))
    usage = rig.run()[2].finishes[0].usage
    first = rig.collected[1].finishes[0].usage
    assert usage.prompt_tokens == len(LONG)
    assert usage.queue_s == pytest.approx(first.queue_s + first.prefill_s + first.decode_s)
    assert usage.prefill_s == pytest.approx(3 * 0.01 + len(LONG) * 0.0005)
    assert usage.decode_s == pytest.approx(4 * 0.0105)


# --- log-probabilities and progress -----------------------------------------------------------------------------------


def log_softmax(row: np.ndarray) -> np.ndarray:
    row = row.astype(np.float64)
    return row - row.max() - math.log(np.exp(row - row.max()).sum())


@pytest.mark.parametrize("n_top", [0, 3])
def test_logprobs_stand_beside_their_tokens(n_top: int) -> None:
    rig = make_engine()
    rig.add(make_request(1, b"abc", max_tokens=9, n_logprobs=n_top, ignore_eos=True, stop=("zzz",)))
    rig.run()
    outputs = [event for event in rig.collected[1].events if isinstance(event, Output)]
    tokens = [token for output in outputs for token in output.tokens]
    entries = [entry for output in outputs for entry in output.logprobs]
    assert [entry.token for entry in entries] == tokens == greedy(b"abc", 9)
    for i, entry in enumerate(entries):
        expected = log_softmax(logits_after([*b"abc", *tokens[:i]]))
        assert entry.logprob == pytest.approx(expected[entry.token], abs=1e-4)
        assert [token for token, _, _ in entry.top] == list(np.argsort(-expected)[:n_top])
        assert entry.piece == FakeVocabulary().piece(entry.token, special=True)


def test_logprobs_are_of_the_model_not_of_the_samplers() -> None:
    rig = make_engine()
    rig.add(make_request(1, b"abc", max_tokens=1, n_logprobs=0, logit_bias=((ord("q"), 100.0),)))
    rig.run()
    output = next(event for event in rig.collected[1].events if isinstance(event, Output))
    assert output.logprobs[0].logprob == pytest.approx(log_softmax(logits_after(b"abc"))[ord("q")], abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"top_k": 3, "temperature": 0.7},
        {"top_k": 3, "temperature": 0.7, "logit_bias": ((ord("q"), 8.0), (ord("r"), 7.0))},
        {"temperature": 0.0},
    ],
    ids=str,
)
def test_final_logprobs_are_of_what_was_left_to_draw_from(changes: dict[str, Any]) -> None:
    rig = make_engine()
    options = {"n_logprobs": 5, "are_logprobs_final": True, "ignore_eos": True, "seed": 3}
    rig.add(make_request(1, b"abc", max_tokens=6, **options, **changes))
    rig.run()
    outputs = [event for event in rig.collected[1].events if isinstance(event, Output)]
    entries = [entry for output in outputs for entry in output.logprobs]
    tokens = [token for output in outputs for token in output.tokens]
    assert [entry.token for entry in entries] == tokens
    assert len(tokens) == 6
    n_left = 1 if changes["temperature"] == 0 else 3
    for i, entry in enumerate(entries):
        logits = logits_after([*b"abc", *tokens[:i]]).astype(np.float64)
        logits[list(FakeVocabulary().eog_tokens)] = -np.inf
        for token, bias in changes.get("logit_bias", ()):
            logits[token] += bias
        best = np.argsort(-logits)[:n_left]
        expected = log_softmax(logits[best] / (changes["temperature"] or 1))
        assert [token for token, _, _ in entry.top] == list(best)
        assert [logprob for _, _, logprob in entry.top] == pytest.approx(list(expected), abs=1e-4)
        assert entry.logprob == next(logprob for token, _, logprob in entry.top if token == entry.token)


def test_asking_for_final_logprobs_leaves_the_text_as_it_is() -> None:
    texts = []
    for are_final in (False, True):
        rig = make_engine()
        options = {"temperature": 1.2, "top_p": 0.9, "seed": 5, "ignore_eos": True, "banned_strings": ("a",)}
        rig.add(make_request(1, b"abc", max_tokens=30, n_logprobs=2, are_logprobs_final=are_final, **options))
        rig.run()
        texts.append([event.text for event in rig.collected[1].events if isinstance(event, Output)])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("n_outputs_max", [64, 5])
def test_prompt_logprobs_are_those_of_every_token_after_the_first(n_outputs_max: int) -> None:
    rig = make_engine(n_batch=32, n_outputs_max=n_outputs_max)
    rig.add(make_request(1, LONG, max_tokens=2, ignore_eos=True))
    rig.run()
    rig.add(make_request(2, LONG, max_tokens=2, prompt_logprobs=True, n_logprobs=2, ignore_eos=True))
    rig.run()
    noted = [event for event in rig.collected[2].events if isinstance(event, PromptLogprobs)]
    assert len(noted) == 1
    assert [entry.token for entry in noted[0].entries] == list(LONG[1:])
    for i, entry in enumerate(noted[0].entries):
        expected = log_softmax(logits_after(LONG[: i + 1]))
        assert entry.logprob == pytest.approx(expected[entry.token], abs=1e-4)
        assert len(entry.top) == 2
    assert rig.text(2) == rig.text(1)


def test_the_next_text_is_foreseen_where_all_write() -> None:
    rig = make_engine(n_slots=1)
    assert rig.engine.next_text_s is None
    rig.add(make_request(1, b"abc", max_tokens=5, ignore_eos=True))
    rig.step()
    rig.step()
    assert rig.engine.next_text_s == pytest.approx(0.0105, rel=0.05)
    rig.add(make_request(2, b"def"))
    assert rig.engine.next_text_s is None
    rig.run()
    assert rig.engine.next_text_s is None


def test_progress_goes_up_to_the_whole_prompt() -> None:
    rig = make_engine(n_batch=32)
    rig.add(make_request(1, LONG, max_tokens=2, return_progress=True, ignore_eos=True))
    rig.run()
    progress = [event for event in rig.collected[1].events if isinstance(event, Progress)]
    assert [event.processed for event in progress] == [0, 32, 64, len(LONG)]
    assert progress[0].time_s == 0
    assert {(event.total, event.cached) for event in progress} == {(len(LONG), 0)}
    assert [event.time_s for event in progress] == sorted(event.time_s for event in progress)


def test_no_progress_unless_asked_for() -> None:
    rig = make_engine(n_batch=32)
    rig.add(make_request(1, LONG))
    rig.run()
    assert not [event for event in rig.collected[1].events if isinstance(event, Progress)]


# --- the queue --------------------------------------------------------------------------------------------------------


def test_who_waits_too_long_is_told() -> None:
    rig = make_engine(n_slots=1, max_queue_wait_s=0.1)
    rig.add(make_request(1, b"first", max_tokens=100, ignore_eos=True), make_request(2, b"second"))
    collected = rig.run()
    assert collected[1].finishes[0].usage.completion_tokens == 100
    failure = collected[2].failure
    assert failure is not None
    assert failure.code == "queue_timeout"
    # The first one's last 90 tokens, a step each.
    assert failure.retry_after_s == pytest.approx(90 * 0.0105, rel=0.05)


def test_a_choice_that_waits_for_its_siblings_does_not_time_out() -> None:
    rig = make_engine(n_slots=1, max_queue_wait_s=0.1)
    rig.add(make_request(1, b"many", n=3, max_tokens=50, ignore_eos=True))
    assert len(rig.run()[1].finishes) == 3


# --- the cache explained ----------------------------------------------------------------------------------------------


def test_the_usage_says_what_the_cache_had_when_that_is_asked() -> None:
    rig = make_engine()
    rig.add(make_request(1, LONG, max_tokens=2))
    rig.run()
    rig.add(make_request(2, LONG[:60] + b"other", explain_cache=True, n=2), make_request(3, LONG[:60]))
    collected = rig.run()
    usages = [collected[2].finishes[index].usage for index in (0, 1)]
    assert usages[0].cached_tokens == 60
    assert usages[0].cache == CacheReport(CacheSource.SAME_SLOT, CacheDifference(60, tuple(LONG[60:76])))
    assert usages[1].cache == CacheReport(CacheSource.COPIED, None)
    assert collected[3].finishes[0].usage.cache is None


# --- failures ---------------------------------------------------------------------------------------------------------


FAILURES = pytest.mark.parametrize(
    "error", [NoRoomError(), EngineFailure("llama_decode failed with status -3")], ids=["room", "c"]
)


def four() -> list[EngineRequest]:
    return [make_request(i, bytes([65 + i]) * 9, max_tokens=9, ignore_eos=True) for i in range(4)]


@FAILURES
@pytest.mark.parametrize("can_trim", [True, False])
@pytest.mark.parametrize("n_steps", [0, 1, 4])
def test_a_decode_that_fails_once_ends_nobody(error: Exception, can_trim: bool, n_steps: int) -> None:
    rig = make_engine(n_slots=4, can_trim=can_trim)
    rig.add(*four())
    for _ in range(n_steps):
        rig.step()
    rig.decoder.failures += [error, error]
    collected = rig.run()
    for request in four():
        assert collected[request.request_id].texts == run_alone(request).texts


@pytest.mark.parametrize("n_batch", [24, 64])
def test_a_batch_without_room_is_computed_in_parts(n_batch: int) -> None:
    rig = make_engine(n_slots=4, n_batch=n_batch)
    rig.decoder.max_rows = 3
    rig.add(*four(), make_request(5, LONG, prompt_logprobs=True, n_logprobs=1))
    collected = rig.run()
    for request in four():
        assert collected[request.request_id].texts == run_alone(request).texts
    (logprobs,) = [event for event in collected[5].events if isinstance(event, PromptLogprobs)]
    alone = run_alone(make_request(5, LONG, prompt_logprobs=True, n_logprobs=1))
    assert [logprobs] == [event for event in alone.events if isinstance(event, PromptLogprobs)]


@pytest.mark.parametrize("kind", ["full_slots", "bad_slots"])
@pytest.mark.parametrize("slot", range(4))
def test_only_the_request_that_cannot_be_computed_ends(kind: str, slot: int) -> None:
    rig = make_engine(n_slots=4)
    rig.add(*four())
    rig.step()
    request_id = next(state.request_id for state in rig.engine.stats().slots if state.slot == slot)
    getattr(rig.decoder, kind).add(slot)
    rig.step()
    getattr(rig.decoder, kind).clear()
    collected = rig.run()
    assert [i for i in range(4) if collected[i].failure is not None] == [request_id]
    failure = collected[request_id].failure  # type: ignore[index]
    assert failure is not None
    assert failure.code == "engine_failure"
    for request in four():
        if request.request_id != request_id:
            assert collected[request.request_id].texts == run_alone(request).texts


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), IndexError("out of bounds")])
def test_a_request_that_stumbles_over_its_numbers_ends_alone(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make_engine(n_slots=2)
    good = make_request(1, b"good", max_tokens=9, ignore_eos=True)
    rig.add(good, make_request(2, b"bad", temperature=0.5, seed=1))
    sample = VectorSampler.sample

    def stumble(sampler: VectorSampler, row: Any, batch_row: int) -> int:
        if sampler._temperature:
            raise error
        return sample(sampler, row, batch_row)

    monkeypatch.setattr(VectorSampler, "sample", stumble)
    collected = rig.run()
    assert collected[1].texts == run_alone(good).texts
    assert collected[2].failure is not None
    assert collected[2].failure.code == "engine_failure"
    assert str(error) in collected[2].failure.message
    assert "a request failed" in caplog.text


@pytest.mark.parametrize("temperature", [0, 0.5])
def test_logits_that_are_no_numbers_fail_their_request_in_plain_words(temperature: float) -> None:
    rig = make_engine(n_slots=2)
    broken = np.full(N_VOCAB, np.nan, np.float32)
    rig.decoder.logits_after = lambda tokens: broken  # type: ignore[method-assign]
    rig.add(make_request(1, b"hello", temperature=temperature))
    failure = rig.run()[1].failure
    assert failure is not None
    assert failure.message == NO_NUMBERS


def test_nothing_of_a_failed_request_is_reused() -> None:
    rig = make_engine(n_slots=2, n_batch=32)
    rig.add(make_request(1, LONG))
    rig.step()
    rig.decoder.bad_slots = {0, 1}
    rig.step()
    rig.decoder.bad_slots = set()
    rig.run()
    assert rig.collected[1].failure is not None
    rig.add(make_request(2, LONG))
    rig.run()
    assert rig.collected[2].finishes[0].usage.cached_tokens == 0
    assert rig.text(2) == run_alone(make_request(2, LONG)).texts[0]


def test_a_failure_fails_all_choices_once() -> None:
    rig = make_engine(n_slots=2)
    rig.add(make_request(1, b"many", n=4))
    rig.step()
    rig.decoder.full_slots = {0, 1}
    rig.step()
    rig.decoder.full_slots = set()
    assert rig.run()[1].failure is not None
    assert rig.engine.stats().waiting == 0


def test_an_engine_that_computes_nothing_any_more_leaves() -> None:
    rig = make_engine(n_slots=1)
    rig.decoder.bad_slots = {0}
    rig.add(*four())
    rig.step()
    rig.step()
    with pytest.raises(EngineFailure, match="3 steps"):
        rig.step()


def grammar(text: str) -> Grammar:
    return Grammar(GrammarKind.REGEX, text)


def test_a_grammar_is_kept_and_ends_the_text() -> None:
    rig = make_engine()
    rig.add(make_request(1, b"abc", grammar=grammar("XY/Z/12/34"), temperature=2.0, seed=1))
    finish = rig.run()[1].finishes[0]
    first, second, third, fourth = rig.text(1)
    assert first in "XY"
    assert second == "Z"
    assert third in "12"
    assert fourth in "34"
    assert finish.reason is FinishReason.STOP


@pytest.mark.parametrize("n", [1, 3])
def test_a_grammar_that_is_refused_fails_its_request_only(n: int) -> None:
    rig = make_engine(n_slots=2)
    rig.add(make_request(1, b"abc", n=n, grammar=grammar("!"), xtc_probability=0.5), make_request(2, b"fine"))
    collected = rig.run()
    assert collected[1].failure is not None
    assert collected[1].failure.code == "invalid_value"
    assert collected[2].texts == run_alone(make_request(2, b"fine")).texts
    assert all(chain.is_closed for chain in rig.decoder.chains)


def test_who_waits_for_a_grammar_lets_others_pass() -> None:
    rig = make_engine(n_slots=1)
    rig.add(make_request(1, b"abc", grammar=grammar("?XY/Z")), make_request(2, b"fine", max_tokens=1))
    assert not rig.engine.is_preparing
    rig.step()
    assert rig.collected[2].is_done
    assert not rig.collected[1].events
    assert rig.engine.is_preparing
    rig.run()
    assert rig.text(1)[1] == "Z"
    assert not rig.engine.is_preparing


@pytest.mark.parametrize("n", [1, 3])
def test_a_grammar_that_cannot_go_on_fails_its_request_only(n: int) -> None:
    rig = make_engine(n_slots=4)
    rig.add(make_request(1, b"abc", n=n, grammar=grammar("ab/cd/!")), make_request(2, b"fine"))
    collected = rig.run()
    assert collected[1].failure is not None
    assert collected[1].failure.code == "engine_failure"
    assert collected[2].texts == run_alone(make_request(2, b"fine")).texts


def test_a_request_that_fails_in_a_step_leaves_true_caches_behind() -> None:
    rig = make_engine(n_slots=4)
    rig.add(make_request(1, LONG, n=3, grammar=grammar("ab/cd/!")))
    rig.run()
    rig.add(make_request(2, LONG + b"x"))
    rig.run()
    assert rig.text(2) == run_alone(make_request(2, LONG + b"x")).texts[0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("text", ["b/a/c", "bc/a/c", "bc/ad/c"])
def test_biases_that_leave_a_grammar_nothing_are_an_error(temperature: float, text: str) -> None:
    """Half of what was asked for must not look like the whole."""
    rig = make_engine()
    ban = ((ord("a"), -math.inf), (ord("d"), -math.inf))
    rig.add(make_request(1, b"x", grammar=grammar(text), logit_bias=ban, temperature=temperature, seed=1))
    failure = rig.run()[1].failure
    assert failure is not None
    assert (failure.code, "no token is left" in failure.message) == ("invalid_value", True)


LONG_WORD = "ab/" + "/".join("forced") + "/cd/" + "/".join("more")


def test_what_a_grammar_forces_is_taken_at_once() -> None:
    rig = make_engine()
    rig.add(make_request(1, b"x", grammar=grammar(LONG_WORD), max_tokens=None))
    outputs = [event for _ in range(3) for event in rig.step() if isinstance(event, Output)]
    assert [len(output.tokens) for output in outputs] == [7, 5]
    assert outputs[-1].finish is not None
    assert outputs[-1].finish.usage.completion_tokens == 12
    assert not rig.engine.has_work


@pytest.mark.parametrize("option", [{"n_logprobs": 0}, {"banned_strings": ("zzz",)}])
@pytest.mark.parametrize(
    "changes",
    [{}, {"temperature": 1.5, "seed": 4}, {"repeat_penalty": 1.9}, {"max_tokens": 4}, {"stop": ("rce",)}, {"n": 3}],
    ids=str,
)
def test_forced_tokens_are_what_would_have_been_sampled(option: dict[str, Any], changes: dict[str, Any]) -> None:
    """Where every token's own row is needed nothing is taken at once, and the text is the same."""
    changes = {"max_tokens": None, "grammar": grammar(LONG_WORD), **changes}
    forced = run_alone(make_request(1, b"x", **changes))
    sampled = run_alone(make_request(1, b"x", **changes, **option))
    assert (forced.texts, forced.tokens) == (sampled.texts, sampled.tokens)
    if "banned_strings" not in option:
        assert forced.pieces == sampled.pieces
    reasons = [[finish.reason for finish in one.finishes.values()] for one in (forced, sampled)]
    assert reasons[0] == reasons[1]


FREE = "*</ab/c/d"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 1.5, "seed": 4},
        {"temperature": 1.5, "seed": 4, "xtc_probability": 0.1},
        {"temperature": 1.5, "seed": 5, "banned_strings": ("a", "<")},
        {"temperature": 1.5, "seed": 6, "repeat_penalty": 1.9, "n": 3},
        {"temperature": 1.5, "seed": 7, "n_logprobs": 1},
    ],
    ids=str,
)
def test_free_text_is_drawn_without_a_mask_until_a_call_is_opened(changes: dict[str, Any]) -> None:
    """The fake's constraint allows a mask in free text only after it refused a token, and none is begun for it."""
    request = make_request(1, b"x", grammar=grammar(FREE), logit_bias=((ord("<"), 6.0),), max_tokens=60, **changes)
    collected = run_alone(request)
    for index in range(request.n):
        free, opening, call = collected.texts[index].partition("<")
        assert call in ("acd", "bcd") if opening else collected.finishes[index].usage.completion_tokens > 0
        assert b" the" not in free.encode()
    if "banned_strings" not in changes:
        assert any("<" in text for text in collected.texts.values())


def test_a_token_that_free_text_may_not_have_is_drawn_again() -> None:
    """The fake's free text is of single bytes: " the" is wanted most, and refused."""
    bias = ((THE, 100.0), (ord("z"), 90.0))
    for changes in ({}, {"temperature": 1.0, "seed": 3}, {"temperature": 1.0, "seed": 3, "typ_p": 0.9}):
        rig = make_engine()
        rig.add(make_request(1, b"x", grammar=grammar(FREE), logit_bias=bias, max_tokens=5, **changes))
        rig.step()
        constraint = rig.engine._running[0].constraint
        rig.run()
        assert rig.text(1) == "zzzzz"
        assert constraint.n_masks == 5  # type: ignore[union-attr]


def test_free_text_may_end() -> None:
    rig = make_engine()
    rig.add(make_request(1, b"x", grammar=grammar(FREE), logit_bias=((EOT, 100.0),), max_tokens=5))
    assert rig.run()[1].finishes[0].reason is FinishReason.STOP


def test_few_forced_tokens_beside_many_others_cost_no_pass_of_their_own() -> None:
    rig = make_engine(n_slots=9)
    for request_id in range(8):
        rig.add(make_request(request_id, b"others", ignore_eos=True, max_tokens=40))
    for _ in range(4):
        rig.step()
    rig.add(make_request(9, b"x", grammar=grammar("ab/c/d/ef/g"), max_tokens=None))
    before = rig.decoder.n_ubatches
    n_steps = 0
    while not rig.collected[9].is_done:
        rig.step()
        n_steps += 1
    # One pass more, for its prompt.
    assert rig.decoder.n_ubatches - before <= n_steps + 1


def test_a_copy_that_fails_is_computed_anew_and_leaks_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_engine(n_slots=3)
    rig.add(make_request(1, LONG, max_tokens=100, ignore_eos=True))
    rig.step()
    rig.step()

    def set_state(slot: int, state: object) -> None:
        rig.decoder.trim(slot, 0)
        raise EngineFailure("the state could not be restored")

    with monkeypatch.context() as patch:
        patch.setattr(rig.decoder, "set_state", set_state)
        rig.add(make_request(2, LONG + b"x", xtc_probability=0.5))
        rig.step()
    rig.run()
    assert rig.text(2) == run_alone(make_request(2, LONG + b"x", xtc_probability=0.5)).texts[0]
    assert rig.collected[2].finishes[0].usage.cached_tokens == 0
    assert all(chain.is_closed for chain in rig.decoder.chains)
    rig.add(make_request(3, LONG + b"y"), make_request(4, b"other"))
    collected = rig.run()
    assert collected[3].texts == run_alone(make_request(3, LONG + b"y")).texts
    assert collected[4].texts == run_alone(make_request(4, b"other")).texts


# --- fairness of a step -----------------------------------------------------------------------------------------------


def test_a_long_prompt_holds_running_streams_up_no_longer_than_the_gap() -> None:
    rig = make_engine(n_slots=2, n_ctx=4096, n_batch=512, max_gap_ms=50.0)
    rig.add(make_request(1, LONG * 4, max_tokens=3, ignore_eos=True))
    rig.run()
    rig.add(make_request(2, b"stream", max_tokens=300, ignore_eos=True))
    for _ in range(10):
        rig.step()
    rig.add(make_request(3, bytes(range(97, 123)) * 100, max_tokens=2))
    gaps = []
    while not rig.collected[3].is_done:
        before_s = rig.decoder.clock()
        events = rig.step()
        assert any(isinstance(event, Output) and event.request_id == 2 for event in events)
        gaps.append(rig.decoder.clock() - before_s)
    assert max(gaps[1:]) < 0.065
    assert len(gaps) < 2600 / 30


def test_copies_for_many_newcomers_do_not_hold_running_streams_up() -> None:
    """Each takes 25 ms to read and 25 to write."""
    prompt = bytes(range(97, 123)) * 10
    rig = make_engine(n_slots=8, n_ctx=512, copy_s_per_token=0.025 / len(prompt), max_gap_ms=60.0)
    rig.add(make_request(1, prompt, max_tokens=200, ignore_eos=True))
    for _ in range(20):
        rig.step()
    newcomers = range(2, 9)
    rig.add(*(make_request(number, prompt + bytes([number]) * 8, ignore_eos=True) for number in newcomers))
    gaps = []
    while not all(rig.collected[number].texts for number in newcomers):
        before_s = rig.decoder.clock()
        rig.step()
        gaps.append(rig.decoder.clock() - before_s)
    # One copy may begin at the end of the time, and a few tokens are read in any case.
    assert max(gaps) < 0.06 + 0.05 + 0.05
    admitted = [event for number in newcomers for event in rig.collected[number].events if isinstance(event, Admitted)]
    assert [event.cached_tokens for event in admitted] == [len(prompt)] * 7


def test_holes_are_closed_when_they_have_cost_as_much_as_a_move() -> None:
    rig = make_engine(n_slots=8)
    requests = [make_request(i, bytes([65 + i]) * 40, max_tokens=100, ignore_eos=True) for i in range(8)]
    rig.add(*requests)
    for _ in range(12):
        rig.step()
    for i in (1, 2, 4, 5, 6):
        rig.abort(i)
    for _ in range(20):
        rig.step()
    slots = [state.slot for state in rig.engine.stats().slots if state.request_id is not None]
    assert slots[-1] - slots[0] == 2
    rig.run()
    for i in (0, 3, 7):
        assert rig.text(i) == run_alone(requests[i]).texts[0]


def test_stats_count_what_was_done() -> None:
    rig = make_engine(n_slots=2)
    rig.add(make_request(1, LONG, max_tokens=4, ignore_eos=True))
    rig.run()
    stats = rig.engine.stats()
    assert (stats.waiting, stats.running) == (0, 0)
    assert stats.computed_tokens == rig.n_computed
    assert stats.generated_tokens == 4
    assert sum(slot.n_past for slot in stats.slots) == len(LONG) + 3
    rig.add(make_request(2, LONG + b"x", max_tokens=4, ignore_eos=True))
    rig.run()
    assert rig.engine.stats().cached_tokens == len(LONG)


# --- anything at any time ---------------------------------------------------------------------------------------------

prompts = st.builds(
    lambda stem, tail: (b"abcdefgh" * 6)[:stem] + bytes(tail),
    st.sampled_from([0, 3, 33, 40, 48]),
    st.lists(st.sampled_from(b"ab"), min_size=1, max_size=4),
)

options: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "n": st.integers(1, 3),
        "max_tokens": st.sampled_from([1, 2, 7, None]),
        "temperature": st.sampled_from([0.0, 1.5]),
        "stop": st.sampled_from([("e",), ("ab", "q"), ("xyz",)]),
        "xtc_probability": st.just(0.5),
        "grammar": st.sampled_from(
            [grammar("ab/cd/ef"), grammar("ab/!"), grammar("!"), grammar("?ab/cd"), grammar("ab/c/d/ef/g")]
        ),
        "prompt_logprobs": st.just(True),
        "return_progress": st.just(True),
        "banned_strings": st.sampled_from([("e",), ("ab", "th")]),
    },
)


@st.composite
def scripts(draw: st.DrawFn) -> list[tuple[str, Any]]:
    """What callers do: add a request, abort one, end a sequence, let some steps pass, let a decode fail."""
    actions = st.one_of(
        st.tuples(st.just("add"), st.tuples(prompts, options)),
        st.tuples(st.just("add"), st.tuples(prompts, options)),
        st.tuples(st.just("abort"), st.integers(0, 20)),
        st.tuples(st.just("finish"), st.tuples(st.integers(0, 20), st.integers(0, 2))),
        st.tuples(st.just("steps"), st.integers(1, 6)),
        st.tuples(st.just("fail"), st.sampled_from(["room", "failure"])),
        st.tuples(st.just("shrink"), st.integers(1, 24)),
    )
    return draw(st.lists(actions, min_size=3, max_size=24))


def play(rig: Rig, script: list[tuple[str, Any]]) -> Iterator[EngineRequest]:
    n_requests = 0
    for action, argument in script:
        match action:
            case "add":
                prompt, changes = argument
                request = make_request(n_requests, prompt, **({"max_tokens": 9, "seed": 5} | changes))
                rig.add(request)
                n_requests += 1
                yield request
            case "abort":
                if argument < n_requests and not rig.collected[argument].is_done:
                    rig.abort(argument)
            case "finish":
                if argument[0] < n_requests:
                    rig.finish(*argument)
            case "steps":
                for _ in range(argument):
                    rig.step()
            case "fail":
                rig.decoder.failures.append(NoRoomError() if argument == "room" else EngineFailure("failed"))
            case "shrink":
                rig.decoder.max_rows = argument
    rig.run()


@settings(max_examples=examples(120), suppress_health_check=[HealthCheck.too_slow])
@given(scripts(), st.booleans(), st.integers(1, 4))
def test_whatever_callers_do_every_text_is_the_one_it_has_alone(
    script: list[tuple[str, Any]], can_trim: bool, n_slots: int
) -> None:
    rig = make_engine(n_slots=n_slots, n_ctx=64, n_batch=24, n_outputs_max=8, can_trim=can_trim)
    n_failures = sum(action == "fail" for action, _ in script)
    may_fail = n_failures > 0
    try:
        requests = list(play(rig, script))
    except EngineFailure as error:
        # So it ends where a device does nothing any more.
        if n_failures < 3 or "nothing could be computed in 3 steps" not in error.message:
            raise
        return
    assert all(chain.is_closed for chain in rig.decoder.chains)
    for request in requests:
        collected = rig.collected[request.request_id]
        if request.request_id in rig.aborted:
            continue
        assert collected.is_done
        alone = run_alone(request, n_ctx=64)
        if collected.failure is not None:
            assert alone.failure is not None or may_fail
            continue
        for index in range(request.n):
            if (request.request_id, index) in rig.finished:
                # Finished while it waited, its grammar may never have been looked at.
                assert (alone.texts[index] if alone.failure is None else "").startswith(collected.texts[index])
            else:
                assert collected.texts[index] == alone.texts[index]
                assert collected.finishes[index].reason == alone.finishes[index].reason


def test_a_long_list_of_banned_phrases_is_built_beside_the_steps_of_others() -> None:
    phrases = tuple(f"phrase number {number}" for number in range(500))
    rig = make_engine()
    rig.add(make_request(1, b"others", max_tokens=60, ignore_eos=True))
    rig.step()
    rig.add(make_request(2, b"banned", banned_strings=phrases), make_request(3, b"banned", banned_strings=phrases))
    n_steps = 0
    while not any(isinstance(event, Admitted) for event in rig.collected[2].events):
        rig.step()
        n_steps += 1
    assert n_steps > 5
    collected = rig.run()
    assert collected[2].texts == collected[3].texts == run_alone(make_request(2, b"banned")).texts
    assert collected[1].texts == run_alone(make_request(1, b"others", max_tokens=60, ignore_eos=True)).texts


def test_alone_it_is_built_at_once() -> None:
    phrases = tuple(f"words of another kind {number}" for number in range(500))
    rig = make_engine()
    rig.add(make_request(1, b"banned", banned_strings=phrases))
    rig.step()
    assert rig.engine.is_preparing
    assert rig.run()[1].finishes


async def test_the_client_erases_a_slot_and_says_when_it_is_in_use() -> None:
    client = inproc_client(InprocSpawn(step_s=0.002))
    client.start()
    await client.wait_ready()
    try:
        assert (await client.reports.act_on_slot(ActOnSlot(0, SlotAction.ERASE))).n_tokens == 0
        request = make_request(client.new_request_id(), b"once upon a time", max_tokens=200, ignore_eos=True)
        async with client.submit(request) as stream:
            await anext(stream)
            busy = next(slot.slot for slot in (await client.reports.stats()).slots if slot.request_id is not None)
            with pytest.raises(Unavailable):
                await client.reports.act_on_slot(ActOnSlot(busy, SlotAction.ERASE))
    finally:
        await client.stop()


@pytest.mark.parametrize("nth", [1, 2])
def test_a_move_that_fails_ends_nobody(nth: int) -> None:
    rig = make_engine(n_slots=4)
    requests = [make_request(i, bytes([65 + i]) * 20, max_tokens=30 if i in (1, 3) else 1) for i in (1, 2, 3)]
    rig.add(*requests)
    original = rig.decoder.set_state
    calls = 0

    def broken(slot: int, state: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % nth == 0:
            raise EngineFailure("the state could not be restored")
        original(slot, state)

    rig.decoder.set_state = broken  # type: ignore[method-assign]
    rig.run()
    assert calls >= nth
    for request in requests:
        assert rig.collected[request.request_id].texts == run_alone(request).texts
    rig.decoder.set_state = original  # type: ignore[method-assign]
    rig.add(make_request(9, b"after"))
    assert rig.run()[9].finishes


# --- a part of the text that may only become so long ------------------------------------------------------------------


def limited(max_tokens: int | None, **changes: Any) -> Collected:
    limit = ReasoningBudget("", "</t>", tuple(b"</t>"), max_tokens)
    request = make_request(1, b"hello", max_tokens=12, **changes)
    return run_alone(dataclasses.replace(request, reasoning_budget=limit))


@pytest.mark.parametrize("changes", [{}, {"n_logprobs": 1}, {"banned_strings": ("zzzz",)}])
def test_a_limited_part_is_ended_and_the_text_goes_on(changes: dict[str, Any]) -> None:
    free = limited(None, **changes)
    ended = limited(3, **changes)
    assert len(free.tokens[0]) == len(ended.tokens[0]) == 12
    assert ended.tokens[0][:3] == free.tokens[0][:3]
    assert bytes(ended.tokens[0][3:7]) == b"</t>"


def test_an_ending_that_is_banned_is_not_said() -> None:
    ended = limited(3, banned_strings=("</t>",))
    assert len(ended.tokens[0]) == 12
    assert "</t>" not in "".join(ended.texts[0])


def test_the_token_that_ends_an_answer_is_told_when_logprobs_are_wanted() -> None:
    for n_logprobs, is_told in ((None, False), (2, True)):
        rig = make_engine()
        rig.add(make_request(1, b"Hello", n_logprobs=n_logprobs, logit_bias=((EOS, 100.0),)))
        finish = rig.run()[1].finishes[0]
        assert (finish.reason, finish.usage.completion_tokens) == (FinishReason.STOP, 0)
        assert (finish.end is not None) is is_told
        if finish.end is not None:
            assert (finish.end.token, len(finish.end.top)) == (EOS, 2)
            assert finish.end.logprob < 0, "before the bias"
