"""A draft model: what is guessed with it and when, what it reads and when, and that no text changes by it."""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufd.engine.messages.config import EngineRules
from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.speculation.acceptance import AcceptanceEstimator, confidence_class
from ggufd.engine.speculation.draft_budget import DraftBudget
from ggufd.engine.speculation.draft_model import DraftModel, likeliest
from ggufd.engine.speculation.drafted_step import Candidate, DraftedStep
from ggufd.engine.speculation.prompt_lookup import PromptLookup
from ggufd.errors import EngineFailure
from ggufd.llama.context.batch import Logits, NoRoomError
from tests.engine.speculation.test_prompt_lookup import REQUESTS
from tests.support.examples import examples
from tests.support.fakes.fake_llama import EOT, N_VOCAB, Collected, FakeDecoder, FakeDraft, Rig, make_request

ENDLESS = ((EOT, -50.0), (257, -50.0))
PROMPT = b"A text of its own, which says nothing twice: jackdaws love my big sphinx of quartz."


def rig_of(*, error: float = 0.0, max_draft: int = 15, p_min: float = 0.0, **options: Any) -> tuple[Rig, FakeDraft]:
    """A rig with a draft model; options that begin with `draft_` are the draft's own."""
    own = {key.removeprefix("draft_"): options.pop(key) for key in list(options) if key.startswith("draft_")}
    decoder = FakeDecoder(**{"n_slots": 2, "n_ctx": 512, **options})
    draft = FakeDraft(decoder, error=error, **own)
    return Rig(decoder, rules=EngineRules(max_draft=max_draft), draft=draft, p_min=p_min), draft


def run(request: EngineRequest, **options: Any) -> tuple[Collected, Rig, FakeDraft]:
    rig, draft = rig_of(**options)
    rig.add(request)
    return rig.run()[request.request_id], rig, draft


def run_without(request: EngineRequest, **options: Any) -> tuple[Collected, Rig]:
    rig = Rig(FakeDecoder(**{"n_slots": 2, "n_ctx": 512, **options}), rules=EngineRules(max_draft=0))
    rig.add(request)
    return rig.run()[request.request_id], rig


def endless(n: int, prompt: bytes = PROMPT, request_id: int = 1, **changes: Any) -> EngineRequest:
    return make_request(request_id, prompt, max_tokens=n, logit_bias=ENDLESS, **changes)


# --- the text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("changes", REQUESTS.values(), ids=REQUESTS)
def test_the_text_is_the_same_with_and_without(changes: dict[str, Any], error: float) -> None:
    request = make_request(1, PROMPT, **{"max_tokens": 120, "logit_bias": ENDLESS, **changes})
    with_guesses, rig, _ = run(request, error=error)
    without, _ = run_without(request)
    assert with_guesses.tokens == without.tokens
    assert (with_guesses.texts, with_guesses.pieces) == (without.texts, without.pieces)
    assert with_guesses.finishes[0].reason == without.finishes[0].reason
    again = make_request(2, [*request.prompt, *with_guesses.tokens[0]][:500], max_tokens=1)
    rig.add(again)
    assert rig.run()[2].finishes[0].usage.cached_tokens >= len(again.prompt) - 2


@settings(deadline=None, max_examples=examples(60))
@given(
    prompt=st.binary(min_size=1, max_size=150),
    error=st.floats(0, 1),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    max_draft=st.integers(1, 40),
    draft_base_s=st.sampled_from([0.0001, 0.002, 0.02]),
    draft_n_ctx=st.sampled_from([40, 130, 512]),
    p_min=st.sampled_from([0.0, 0.5]),
)
def test_whatever_the_draft_model_is_like_the_text_is_the_same(
    prompt: bytes, error: float, temperature: float, **options: Any
) -> None:
    request = make_request(1, prompt, max_tokens=60, temperature=temperature, seed=11, logit_bias=ENDLESS)
    with_guesses, _, _ = run(request, error=error, **options)
    assert with_guesses.tokens == run_without(request)[0].tokens


class DiceDecoder(FakeDecoder):
    """Throws a die of four uneven sides, whatever was thrown before."""

    WEIGHTS = (0.55, 0.25, 0.15, 0.05)

    def logits_after(self, tokens: list[int]) -> Logits:
        row = np.full(N_VOCAB, -1e9, np.float32)
        row[97:101] = np.log(self.WEIGHTS)
        return row


def test_sampled_tokens_keep_their_distribution() -> None:
    """Chi-square of single tokens and of pairs: a guess that was favoured, or cost the next token its luck, shows."""
    counts: Counter[tuple[int, int]] = Counter()
    for seed in range(12):
        decoder = DiceDecoder(n_slots=1, n_ctx=600)
        rig = Rig(decoder, rules=EngineRules(max_draft=15), draft=FakeDraft(decoder))
        rig.add(make_request(1, PROMPT, max_tokens=500, temperature=1.0, seed=seed))
        collected = rig.run()[1]
        assert collected.finishes[0].usage.accepted_tokens > 50
        sides = [token - 97 for token in collected.tokens[0]]
        counts.update(zip(sides[::2], sides[1::2], strict=True))
    n = sum(counts.values())
    expected = {(a, b): n * p * q for a, p in enumerate(DiceDecoder.WEIGHTS) for b, q in enumerate(DiceDecoder.WEIGHTS)}
    chi_square = sum((counts[pair] - mean) ** 2 / mean for pair, mean in expected.items())
    # 15 degrees of freedom: one in a thousand is above 37.7.
    assert set(counts) <= set(expected)
    assert chi_square < 37.7


def drafted(drafter: DraftModel, text: bytes, limit: int, n_left: int) -> tuple[int, ...]:
    """Draft of a sequence that runs alone, whose rows cost nothing."""
    tokens = array("i", list(text))
    candidate = Candidate(PromptLookup(len(tokens)), tokens, limit, n_left, AcceptanceEstimator())
    (draft,) = drafter.draft([candidate], DraftedStep(lambda _: 1.0, 1, 1, DraftBudget()))
    return draft


# --- what pays --------------------------------------------------------------------------------------------------------


def test_a_good_draft_model_spares_steps_and_time() -> None:
    request = endless(200)
    collected, rig, _ = run(request)
    _, without = run_without(request)
    usage, stats = collected.finishes[0].usage, rig.engine.stats()
    assert usage.accepted_tokens > 150
    assert stats.steps < 80
    assert rig.decoder.clock() - 100 < 0.6 * (without.decoder.clock() - 100)
    assert (stats.model_drafted_tokens, stats.model_accepted_tokens) == (usage.drafted_tokens, usage.accepted_tokens)


@pytest.mark.parametrize(
    "options",
    [{"error": 1.0}, {"draft_base_s": 0.02}, {"error": 1.0, "draft_base_s": 0.005}],
    ids=["always wrong", "slower than the model", "wrong and slow"],
)
def test_one_that_does_not_pay_costs_next_to_nothing(options: dict[str, Any]) -> None:
    request = endless(400)
    _, rig, draft = run(request, **options)
    _, without = run_without(request)
    assert rig.decoder.clock() - 100 < 1.1 * (without.decoder.clock() - 100)
    assert 0 < len(draft.computed) < 100


def test_a_pause_becomes_longer_until_it_pays() -> None:
    trust = AcceptanceEstimator()

    def pause() -> int:
        trust.rest()
        return sum(1 for _ in iter(trust.is_resting, False))

    assert [pause() for _ in range(6)] == [16, 32, 64, 128, 256, 256]
    trust.resume()
    assert pause() == 16


def test_what_came_true_is_learned_up_to_where_they_part() -> None:
    collected, rig, _ = run(endless(150), error=0.25)
    usage, stats = collected.finishes[0].usage, rig.engine.stats()
    assert 0 < stats.model_accepted_tokens < stats.model_drafted_tokens
    assert stats.model_accepted_tokens == usage.accepted_tokens


def test_a_text_that_repeats_itself_is_guessed_from_itself_first() -> None:
    class Parrot(FakeDecoder):
        def logits_after(self, tokens: list[int]) -> Logits:
            row = super().logits_after(tokens)
            row[tokens[-20] if len(tokens) >= 20 else 97] += 50
            return row

    decoder = Parrot(n_slots=1, n_ctx=512, row_s=0.0)
    draft = FakeDraft(decoder)
    rig = Rig(decoder, rules=EngineRules(max_draft=15), draft=draft)
    rig.add(make_request(1, bytes(range(97, 117)) * 3, max_tokens=200))
    usage, stats = rig.run()[1].finishes[0].usage, rig.engine.stats()
    assert usage.accepted_tokens > 150
    assert stats.model_drafted_tokens < 20


def test_no_more_is_guessed_than_may_come_and_nothing_beyond_an_end() -> None:
    for n in (1, 2, 5):
        collected, rig, _ = run(endless(n))
        assert len(collected.tokens[0]) == n
        assert rig.n_computed <= len(PROMPT) + n
    ends = frozenset(range(N_VOCAB))
    drafter = DraftModel(FakeDraft(FakeDecoder(n_slots=1)), n_vocab=N_VOCAB, eog=ends, p_min=0.0)
    assert drafted(drafter, PROMPT[:20], 10, 10) == ()


def test_a_guess_ends_before_what_is_too_unlikely() -> None:
    collected, _, draft = run(endless(100), p_min=1.0)
    assert collected.finishes[0].usage.drafted_tokens == 0
    assert draft.computed


def test_tokens_that_the_model_does_not_have_are_not_guessed() -> None:
    decoder = FakeDecoder(n_slots=1)
    drafter = DraftModel(FakeDraft(decoder), n_vocab=50, eog=(), p_min=0.0)
    guess = drafted(drafter, b"!!!", 3, 100)
    assert guess
    assert all(token < 50 for token in guess)


@pytest.mark.parametrize(("probability", "kind"), [(0.0, 0), (0.29, 0), (0.3, 1), (0.79, 2), (0.8, 3), (1.0, 4)])
def test_confidence_has_classes(probability: float, kind: int) -> None:
    assert confidence_class(probability) == kind


def test_the_likeliest_token_comes_with_its_probability() -> None:
    assert likeliest(np.log(np.array([1, 2, 5], np.float32))) == (2, pytest.approx(0.625))


# --- what is read -----------------------------------------------------------------------------------------------------


def long_rig(**options: Any) -> tuple[Rig, FakeDraft]:
    return rig_of(**{"n_ctx": 4096, "n_batch": 512, "draft_n_batch": 512, "draft_row_s": 0.0001, **options})


LONG = bytes(97 + (7 * i * i + i // 26) % 26 for i in range(2000))


@pytest.mark.timed
def test_a_long_prompt_is_read_a_little_at_a_time() -> None:
    rig, draft = long_rig()
    rig.add(endless(600, LONG))
    rig.run()
    records = [record for record in rig.engine.steps().records if not record.n_prefill]
    reading = [record for record in records if record.draft_s and not record.n_draft]
    assert sum(n for _, n in draft.computed) > len(LONG)
    assert max(record.draft_s for record in reading) < 0.01
    before = records[: 1 + next(i for i, record in enumerate(records) if record.n_draft)]
    assert sum(record.draft_s for record in before) < 0.35 * sum(record.decode_s for record in before)


def test_what_cannot_pay_any_more_is_not_read() -> None:
    rig, draft = long_rig()
    rig.add(endless(20, LONG))
    rig.run()
    assert sum(n for _, n in draft.computed) < 64


def test_the_next_turn_reads_what_is_new() -> None:
    rig, draft = rig_of()
    rig.add(endless(60))
    answer = rig.run()[1].tokens[0]
    n_before = sum(n for _, n in draft.computed)
    prompt = [*PROMPT, *answer, *b" And then?"]
    rig.add(make_request(2, prompt, max_tokens=20, logit_bias=ENDLESS))
    usage = rig.run()[2].finishes[0].usage
    assert usage.accepted_tokens > 5
    assert sum(n for _, n in draft.computed) - n_before < len(b" And then?") + 20 + usage.drafted_tokens


def test_another_chat_takes_the_stream_over() -> None:
    rig, draft = rig_of()
    rig.add(endless(40))
    rig.run()
    rig.add(endless(40, b"Something else", request_id=2))
    assert rig.run()[2].finishes[0].usage.accepted_tokens > 20
    assert list(b"Something else") in [draft.tokens(stream)[: len(b"Something else")] for stream in range(2)]


def test_a_draft_model_of_a_shorter_context_stops_where_it_is_full() -> None:
    collected, _, draft = run(endless(200), draft_n_ctx=len(PROMPT) + 50)
    assert 0 < collected.finishes[0].usage.accepted_tokens <= 50
    assert draft.n_past(0) <= draft.n_ctx


def test_a_text_with_tokens_that_it_does_not_have_is_left_alone() -> None:
    rig, draft = rig_of()
    draft.n_vocab = 259
    rig.add(make_request(1, [*PROMPT, 260, 261], max_tokens=50, logit_bias=ENDLESS))
    assert rig.run()[1].finishes[0].usage.drafted_tokens == 0
    assert not draft.computed


# --- several sequences ------------------------------------------------------------------------------------------------

OTHERS = (PROMPT, b"The other one", b"A third one, which is longer", b"And the last of them")


def crowd(n: int, n_tokens: int, **options: Any) -> tuple[dict[int, Collected], Rig, FakeDraft]:
    rig, draft = rig_of(**{"n_slots": 4, **options})
    rig.add(*(endless(n_tokens, OTHERS[i], request_id=i) for i in range(n)))
    return rig.run(), rig, draft


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_few_sequences_have_drafts_together_and_say_what_they_would_without(n: int) -> None:
    collected, rig, draft = crowd(n, 120)
    for i in range(n):
        assert collected[i].tokens == run_without(endless(120, OTHERS[i]))[0].tokens
        assert collected[i].finishes[0].usage.accepted_tokens > 60
        assert any(bytes(OTHERS[i]) == bytes(draft.tokens(stream)[: len(OTHERS[i])]) for stream in range(n))
    assert rig.engine.stats().steps < 80
    # A token of each in one decode.
    assert draft.most_streams == n


def test_more_sequences_than_that_have_none_until_one_is_left() -> None:
    rig, draft = rig_of(n_slots=5)
    rig.add(*(endless(40, bytes([97 + i]) * 5, request_id=i) for i in range(4)))
    rig.add(endless(200, b"The other one", request_id=9))
    while not rig.collected[0].is_done:
        rig.step()
    assert not draft.computed
    assert rig.run()[9].finishes[0].usage.accepted_tokens > 50


def test_one_that_is_guessed_at_badly_does_not_keep_the_others_from_it() -> None:
    class Fickle(FakeDraft):
        """Wrong about texts that begin with a T."""

        def logits_after(self, tokens: list[int]) -> Logits:
            row = super().logits_after(tokens)
            return np.roll(row, 7) if tokens[0] == ord("T") else row

    decoder = FakeDecoder(n_slots=4, n_ctx=512)
    rig = Rig(decoder, rules=EngineRules(max_draft=15), draft=Fickle(decoder))
    rig.add(*(endless(200, OTHERS[i], request_id=i) for i in range(2)))
    usages = [rig.run()[i].finishes[0].usage for i in range(2)]
    assert usages[0].accepted_tokens > 100
    assert usages[1].accepted_tokens == 0
    # Its rows share the passes of the other's, and its steps become no more than a quarter longer by them.
    plain = Rig(FakeDecoder(n_slots=4, n_ctx=512), rules=EngineRules(max_draft=0))
    plain.add(*(endless(200, OTHERS[i], request_id=i) for i in range(2)))
    plain.run()
    assert rig.decoder.clock() - 100 < 1.25 * (plain.decoder.clock() - 100)
    assert rig.collected[1].tokens == run_without(endless(200, OTHERS[1]))[0].tokens


@settings(deadline=None, max_examples=examples(40))
@given(
    prompts=st.lists(st.binary(min_size=1, max_size=90), min_size=1, max_size=5),
    lengths=st.lists(st.integers(1, 70), min_size=5, max_size=5),
    error=st.floats(0, 1),
    max_draft=st.integers(1, 40),
    draft_base_s=st.sampled_from([0.0001, 0.002, 0.02]),
    draft_row_s=st.sampled_from([0.0, 0.001]),
    draft_n_ctx=st.sampled_from([40, 130, 512]),
)
def test_however_many_and_whatever_the_draft_model_is_like_texts_are_the_same(
    prompts: list[bytes], lengths: list[int], error: float, **options: Any
) -> None:
    requests = [endless(n, prompt, request_id=i) for i, (prompt, n) in enumerate(zip(prompts, lengths, strict=False))]
    rig, _ = rig_of(error=error, n_slots=5, **options)
    rig.add(*requests)
    collected = rig.run()
    for request in requests:
        assert collected[request.request_id].tokens == run_without(request)[0].tokens


def test_a_next_turn_finds_its_stream_among_several() -> None:
    collected, rig, draft = crowd(3, 40)
    n_before = sum(n for _, n in draft.computed)
    prompt = [*OTHERS[1], *collected[1].tokens[0], *b" And then?"]
    rig.add(make_request(9, prompt, max_tokens=20, logit_bias=ENDLESS))
    usage = rig.run()[9].finishes[0].usage
    assert usage.accepted_tokens > 5
    assert sum(n for _, n in draft.computed) - n_before < len(b" And then?") + 20 + usage.drafted_tokens


def test_rejected_drafts_of_a_model_that_is_always_wrong_take_a_hundredth_of_all_steps() -> None:
    for n in (1, 2, 4):
        _, rig, _ = crowd(n, 400, error=1.0)
        stats = rig.engine.stats()
        assert stats.model_drafted_tokens > 0
        assert 0 < stats.rejected_draft_s < 0.015 * stats.step_seconds.total
        assert sum(one.rejected_s for one in rig.engine.steps().records) == pytest.approx(stats.rejected_draft_s)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize(
    "options",
    [{"error": 1.0}, {"error": 1.0, "draft_base_s": 0.005}, {"draft_base_s": 0.02}],
    ids=["always wrong", "wrong and slow", "slower than the model"],
)
def test_one_that_does_not_pay_costs_several_streams_little_too(n: int, options: dict[str, Any]) -> None:
    """Nor does it chase texts that grow as fast as it can compute them."""
    _, rig, _ = crowd(n, 400, **options)
    plain = Rig(FakeDecoder(n_slots=4, n_ctx=512), rules=EngineRules(max_draft=0))
    plain.add(*(endless(400, OTHERS[i], request_id=i) for i in range(n)))
    plain.run()
    assert rig.decoder.clock() - 100 < 1.08 * (plain.decoder.clock() - 100)


# --- when it is not asked ---------------------------------------------------------------------------------------------


def test_a_text_held_by_a_grammar_is_not_guessed_at() -> None:
    from ggufd.engine.messages.sampling import Grammar

    rig, draft = rig_of()
    grammar = Grammar("gbnf", "/".join(["ab"] * 30))
    rig.add(make_request(1, PROMPT, max_tokens=30, grammar=grammar))
    assert len(rig.run()[1].tokens[0]) == 30
    assert not draft.computed


# --- when it fails ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [NoRoomError(), EngineFailure("a row failed")])
def test_a_draft_model_that_fails_is_given_up_and_the_answer_goes_on(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    request = endless(100)
    rig, draft = rig_of()
    rig.add(request)
    while not rig.engine.stats().generated_tokens > 30:
        rig.step()
    draft.failures.append(error)
    n_before = len(draft.computed)
    with caplog.at_level(logging.WARNING):
        collected = rig.run()[1]
    assert collected.tokens == run_without(request)[0].tokens
    assert len(draft.computed) == n_before
    assert caplog.text.count("the draft model is given up") == 1


def test_an_abort_amid_guesses_leaves_a_clean_slot() -> None:
    rig, _ = rig_of()
    rig.add(endless(300))
    for _ in range(15):
        rig.step()
    rig.abort(1)
    rig.add(endless(20, request_id=2))
    assert rig.run()[2].finishes[0].usage.cached_tokens == len(PROMPT) - 1


def test_one_that_is_preempted_amid_guesses_says_the_same() -> None:
    request = endless(200, priority=1)
    decoder = FakeDecoder(n_slots=1, n_ctx=512)
    rig = Rig(decoder, rules=EngineRules(max_draft=15, preempts=True), draft=FakeDraft(decoder, error=0.1))
    rig.add(request)
    for i in (10, 11, 12):
        rig.step()
        rig.step()
        rig.add(make_request(i, b"urgent", max_tokens=2))
        while not rig.collected[i].is_done:
            rig.step()
    collected = rig.run()[1]
    assert rig.engine.stats().preemptions == 3
    assert collected.finishes[0].usage.accepted_tokens > 20
    assert collected.tokens == run_without(request)[0].tokens


def test_a_context_that_is_shifted_amid_guesses_says_the_same() -> None:
    request = endless(300)
    texts = []
    for draft_s in (0.001, None):
        decoder = FakeDecoder(n_slots=1, n_ctx=128)
        draft = None if draft_s is None else FakeDraft(decoder, base_s=draft_s)
        rig = Rig(decoder, rules=EngineRules(max_draft=15 if draft else 0, shifts_context=True), draft=draft)
        rig.add(request)
        collected = rig.run()[1]
        assert collected.finishes[0].usage.dropped_tokens > 100
        texts.append(collected.texts)
    assert rig.engine.stats().drafted_tokens == 0
    assert texts[0] == texts[1]
