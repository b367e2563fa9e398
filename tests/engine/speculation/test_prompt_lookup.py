"""Guessing ahead: what is guessed, when it is worth it, and that no text changes by it."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.messages.config import EngineRules
from ggufd.engine.messages.images import row_tokens
from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.messages.sampling import Grammar, GrammarKind
from ggufd.engine.speculation.acceptance import AcceptanceEstimator
from ggufd.engine.speculation.drafted_step import Candidate, DraftedStepSeconds
from ggufd.engine.speculation.prompt_lookup import PromptLookup, run_class
from ggufd.engine.speculation.speculator import Speculator
from ggufd.errors import EngineFailure
from ggufd.llama.context.batch import Logits, NoRoomError
from tests.support.fakes.fake_llama import EOT, Collected, FakeDecoder, Rig, logits_after, make_request

TEXT = b"The quick brown fox jumps over the lazy dog. "


class EchoDecoder(FakeDecoder):
    """Says again what stood `len(TEXT)` tokens before, but for every `slip`-th token."""

    def __init__(self, slip: int = 1000, **options: Any) -> None:
        super().__init__(**options)
        self._slip = slip

    def logits_after(self, tokens: list[int]) -> Logits:
        row = logits_after(tokens)
        if len(tokens) % self._slip and len(tokens) >= len(TEXT):
            row[tokens[-len(TEXT)]] += 50
        return row


def run(request: EngineRequest, *, max_draft: int, slip: int = 1000, **options: Any) -> tuple[Collected, Rig]:
    rig = Rig(EchoDecoder(slip, n_slots=2, n_ctx=512, **options), rules=EngineRules(max_draft=max_draft))
    rig.add(request)
    return rig.run()[request.request_id], rig


def lookup_over(tokens: bytes, n_prompt: int) -> PromptLookup:
    lookup = PromptLookup(n_prompt)
    for end in range(n_prompt, len(tokens) + 1):
        lookup.follow(array("i", list(tokens[:end])))
    return lookup


# --- the lookup -------------------------------------------------------------------------------------------------------


def test_the_text_goes_on_as_it_did_before() -> None:
    tokens = b"one two three. one tw"
    assert bytes(lookup_over(tokens, 16).draft(array("i", list(tokens)), 6)) == b"o thre"


def test_a_draft_ends_before_an_image_and_none_begins_there() -> None:
    rows = row_tokens("ab" * 32, 4)
    for repeated, following in ((b"abcd", (ord("d"),)), (b"abc", ())):
        prompt = [*repeated, *rows, *b"xyz"]
        lookup = PromptLookup(len(prompt))
        text = array("i", prompt)
        for token in b"abc":
            lookup.follow(text)
            text.append(token)
        lookup.follow(text)
        assert lookup.is_running
        assert lookup.draft(text, 8) == following
        if following:
            text.append(following[0])
            lookup.follow(text)
            assert lookup.draft(text, 8) == ()
        text.append(ord("q"))
        lookup.follow(text)
        assert not lookup.is_running


def test_an_end_that_is_an_image_is_not_looked_up() -> None:
    prompt = array("i", [*row_tokens("ab" * 32, 8), *b"text", *row_tokens("ab" * 32, 8)])
    lookup = PromptLookup(len(prompt))
    lookup.follow(prompt)
    assert not lookup.is_running


def test_of_two_earlier_places_the_later_one_is_followed() -> None:
    tokens = b"abcX abcY abc"
    assert bytes(lookup_over(tokens, 1).draft(array("i", list(tokens)), 1)) == b"Y"


def test_a_period_goes_on_beyond_its_end() -> None:
    tokens = b"xyzxyzxy"
    assert bytes(lookup_over(tokens, 3).draft(array("i", list(tokens)), 7)) == b"zxyzxyz"


def test_a_text_that_never_repeats_gives_no_guess() -> None:
    assert not lookup_over(bytes(range(200)), 50).is_running


def test_a_run_that_ends_is_given_up_and_lowers_the_odds() -> None:
    lookup = lookup_over(b"abcdef abcX", 7)
    assert not lookup.is_running
    assert lookup.odds[0] < PromptLookup(0).odds[0]


def test_runs_that_come_true_raise_the_odds() -> None:
    lookup = lookup_over(TEXT * 4, len(TEXT))
    assert all(now > first for now, first in zip(lookup.odds, PromptLookup(0).odds, strict=True))


def test_a_long_prompt_is_indexed_in_parts() -> None:
    tokens = array("i", [*range(20_000), 5, 6, 7])
    lookup = PromptLookup(len(tokens))
    lookup.follow(tokens)
    assert not lookup.is_running
    for _ in range(3):
        lookup.follow(tokens)
    assert lookup.draft(tokens, 2) == (8, 9)


@given(st.lists(st.integers(0, 3), min_size=8, max_size=120), st.integers(0, 8), st.data())
def test_a_guess_always_follows_an_equal_place(values: list[int], n_prompt: int, data: st.DataObject) -> None:
    tokens, lookup = array("i", values), PromptLookup(n_prompt)
    seen, n_kept = tokens[:n_prompt], n_prompt
    for token in tokens[n_prompt:]:
        what = data.draw(st.integers(0, 19))
        if len(seen) > n_kept and what < 2:
            del seen[-data.draw(st.integers(1, len(seen) - n_kept)) :]
            lookup.rewind(len(seen))
        elif len(seen) > 10 and what == 2:
            # The context was shifted: even what is said to be the prompt now may be taken back.
            del seen[1 : data.draw(st.integers(2, len(seen)))]
            lookup.restart(len(seen))
            n_kept = 0
        seen.append(token)
        lookup.follow(seen)
        if lookup.is_running:
            (guessed,) = lookup.draft(seen, 1)
            places = range(3, len(seen))
            assert any(seen[at - 3 : at] == seen[-3:] and seen[at] == guessed for at in places)


def test_what_stood_before_a_context_shift_may_be_taken_back() -> None:
    tokens, lookup = array("i", list(b"abcdefgh" * 3)), PromptLookup(0)
    lookup.follow(tokens)
    lookup.restart(len(tokens))
    lookup.follow(tokens)
    lookup.rewind(20)
    tokens = tokens[:20]
    for token in b"xyzabcdefghabcd":
        tokens.append(token)
        lookup.follow(tokens)
    assert lookup.draft(tokens, 2) == tuple(b"xy")


@pytest.mark.parametrize(("run_length", "kind"), [(3, 0), (4, 0), (5, 1), (9, 2), (17, 3), (500, 3)])
def test_runs_have_classes(run_length: int, kind: int) -> None:
    assert run_class(run_length) == kind


# --- what pays --------------------------------------------------------------------------------------------------------


def steps_of(row_cost: float) -> DraftedStepSeconds:
    """Seconds of steps of which the first row takes one, and each draft token so much."""
    return lambda lengths: 1 + row_cost * sum(lengths)


def drafted(
    made: Speculator, lookup: PromptLookup, tokens: array[int], limit: int, step_s: DraftedStepSeconds
) -> tuple[int, ...]:
    """Draft of a sequence that runs alone."""
    (draft,) = made.draft([Candidate(lookup, tokens, limit, limit + 1, AcceptanceEstimator())], step_s, n_running=1)
    return draft


def test_rows_that_cost_little_are_used_and_dear_ones_are_not() -> None:
    tokens = array("i", list(TEXT * 3))
    lookup = lookup_over(TEXT * 3, len(TEXT))
    lookup.longest = 31
    assert len(drafted(Speculator(31), lookup, tokens, 100, steps_of(0.05))) == 31
    assert drafted(Speculator(31), lookup, tokens, 100, steps_of(1.0)) == ()
    assert drafted(Speculator(31), lookup, tokens, 100, lambda _: 0.0) == ()


def drafts(n_true: list[int | None], row_cost: float = 0.0, max_draft: int = 31) -> list[int]:
    """How long guess after guess is when so many tokens of each come true; None is all of them."""
    made, tokens = Speculator(max_draft), array("i", list(TEXT * 4))
    lookup, lengths = PromptLookup(len(tokens)), []
    for n in n_true:
        guess = drafted(made, lookup, tokens, 100, steps_of(row_cost))
        lengths.append(len(guess))
        tokens.extend(guess if n is None else guess[:n])
        if n is not None:
            # A token that stands nowhere else, and then the text anew, until its place is found again.
            tokens.append(1000 + len(lengths))
            tokens.extend(TEXT)
    return lengths


def test_guesses_begin_short_and_double_as_long_as_they_come_true() -> None:
    assert drafts([None] * 6) == [3, 7, 15, 31, 31, 31]
    assert drafts([None] * 6, max_draft=63) == [3, 7, 15, 31, 63, 63]
    assert drafts([None] * 4, max_draft=9) == [3, 7, 9, 9]
    assert drafts([None] * 3, max_draft=2) == [2, 2, 2]


@pytest.mark.parametrize("n_true", [0, 1, 2])
def test_a_first_guess_that_fails_leaves_the_next_as_short(n_true: int) -> None:
    assert drafts([n_true] * 4) == [3, 3, 3, 3]


def test_a_guess_that_fails_shortens_the_next_by_a_quarter() -> None:
    assert drafts([None, None, None, 30, 14, 0, 0, 0, 0, 0, 0]) == [3, 7, 15, 31, 23, 17, 12, 9, 6, 4, 3]
    assert drafts([None, None, 0, None, None]) == [3, 7, 15, 11, 23]


def test_what_was_not_checked_changes_nothing() -> None:
    """The step had no room for the guess, or the text was cut back."""
    made, tokens, lookup = Speculator(31), array("i", list(TEXT * 3)), PromptLookup(len(TEXT) * 3)
    guess = drafted(made, lookup, tokens, 100, steps_of(0.0))
    tokens.append(guess[0])
    assert len(drafted(made, lookup, tokens, 100, steps_of(0.0))) == 3
    lookup.rewind(len(tokens))
    tokens.append(255)
    lookup.follow(tokens)
    assert lookup.longest == 3


@given(st.lists(st.none() | st.integers(0, 40), max_size=12))
def test_no_guess_is_much_longer_than_what_has_come_true(n_true: list[int | None]) -> None:
    lengths, most = drafts(n_true), 3
    for n, length, following in zip(n_true, lengths, lengths[1:], strict=False):
        came_true = n is None or n >= length
        most = max(most, 2 * length + 1) if came_true else max(3, most * 3 // 4)
        assert following <= most
    assert all(length == 3 for length in lengths[:1])


def test_never_more_is_guessed_than_may_come() -> None:
    lookup = lookup_over(TEXT * 3, len(TEXT))
    lookup.longest = 31
    tokens = array("i", list(TEXT * 3))
    assert len(drafted(Speculator(31), lookup, tokens, 5, steps_of(0.0))) == 5
    assert drafted(Speculator(31), lookup, tokens, 0, steps_of(0.0)) == ()


# --- in the engine ----------------------------------------------------------------------------------------------------

_CHARACTERS = "".join(sorted(set(TEXT.decode())))
FREE = Grammar(GrammarKind.REGEX, "*<")
HELD = Grammar(GrammarKind.REGEX, "/".join([_CHARACTERS] * 100))
FORCING = Grammar(GrammarKind.REGEX, "/".join(c if c in "wxyz" else _CHARACTERS for c in TEXT.decode() * 2))

REQUESTS = {
    "greedy": {},
    "drawn": {"temperature": 1.0, "seed": 7},
    "chain": {"xtc_probability": 0.0, "dry_multiplier": 0.01, "seed": 7},
    "penalties": {"temperature": 0.8, "repeat_penalty": 1.1, "seed": 3},
    "stop": {"stop": ("lazy",)},
    "ban": {"banned_strings": ("brown f",)},
    "log-probabilities": {"n_logprobs": 2},
    "free text": {"grammar": FREE},
    "free text, drawn": {"grammar": FREE, "temperature": 1.0, "seed": 7},
    "free text with a chain": {"grammar": FREE, "temperature": 1.0, "seed": 7, "xtc_probability": 0.1},
    "a grammar": {"grammar": HELD, "temperature": 1.0, "seed": 7},
    "a grammar that forces": {"grammar": FORCING},
    "one more token": {"max_tokens": 1},
    "up to the context limit": {"max_tokens": None},
}


@pytest.mark.parametrize("slip", [5, 17, 1000])
@pytest.mark.parametrize("changes", REQUESTS.values(), ids=REQUESTS)
def test_the_text_is_the_same_with_and_without(changes: dict[str, Any], slip: int) -> None:
    request = make_request(1, TEXT * 2, **{"max_tokens": 150, **changes})
    with_guesses, rig = run(request, max_draft=15, slip=slip)
    without, _ = run(request, max_draft=0, slip=slip)
    assert with_guesses.texts == without.texts
    assert with_guesses.tokens == without.tokens
    assert with_guesses.finishes[0].reason == without.finishes[0].reason
    # What stays as cache is the text alone, without what was guessed beyond it.
    again = make_request(2, [*request.prompt, *with_guesses.tokens[0]][:500], max_tokens=1)
    rig.add(again)
    rig.run()


def test_a_text_that_repeats_takes_far_fewer_steps() -> None:
    request = make_request(1, TEXT * 2, max_tokens=200)
    collected, rig = run(request, max_draft=31, row_s=0.0)
    usage = collected.finishes[0].usage
    assert usage.accepted_tokens > 150
    assert usage.drafted_tokens >= usage.accepted_tokens
    assert rig.engine.stats().steps < 60
    guesses = [record.n_draft for record in rig.engine.steps().records if record.n_draft]
    assert guesses[:4] == [3, 7, 15, 31]


@pytest.mark.parametrize(("grammar", "is_guessed"), [(FREE, True), (HELD, False)], ids=["free", "held"])
def test_a_text_that_repeats_is_guessed_where_its_grammar_leaves_it_free(grammar: Grammar, *, is_guessed: bool) -> None:
    collected, _ = run(make_request(1, TEXT * 2, max_tokens=100, grammar=grammar), max_draft=31, row_s=0.0)
    assert (collected.finishes[0].usage.accepted_tokens > 70) == is_guessed


def test_guesses_go_on_after_a_context_shift() -> None:
    request = make_request(1, TEXT, max_tokens=900, ignore_eos=True)
    one, many = (
        Rig(EchoDecoder(n_slots=1, n_ctx=256), rules=EngineRules(max_draft=max_draft, shifts_context=True))
        for max_draft in (0, 31)
    )
    for rig in (one, many):
        rig.add(request)
        rig.run()
    assert many.text(1) == one.text(1)
    usage = many.collected[1].finishes[0].usage
    assert usage.dropped_tokens > 500
    assert usage.accepted_tokens > 0.7 * usage.completion_tokens


def test_a_text_that_does_not_repeat_is_hardly_guessed_at() -> None:
    collected, rig = run(make_request(1, b"Hello", max_tokens=200, logit_bias=((EOT, -50.0),)), max_draft=31, slip=1)
    n_tokens, n_drafted = len(collected.tokens[0]), collected.finishes[0].usage.drafted_tokens
    # The fake takes 10 ms a pass and half a millisecond a row.
    assert n_drafted * 0.5 < 0.005 * n_tokens * 10.5
    assert rig.n_computed == len(b"Hello") + n_tokens - 1 + n_drafted


def several(n: int, *, n_repeating: int, max_draft: int, row_s: float = 0.0) -> Rig:
    """Sequences side by side, of which some repeat their prompt."""
    rig = Rig(EchoDecoder(n_slots=n, n_ctx=512, row_s=row_s), rules=EngineRules(max_draft=max_draft))
    for number in range(n):
        prompt = TEXT * 2 if number < n_repeating else bytes(range(number, number + 40))
        rig.add(make_request(number, prompt, max_tokens=100, logit_bias=((EOT, -50.0),)))
    rig.run()
    return rig


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_few_sequences_that_repeat_their_texts_take_far_fewer_steps(n: int) -> None:
    began_s = EchoDecoder(n_slots=1).clock()
    with_drafts, without = (several(n, n_repeating=n, max_draft=most) for most in (31, 0))
    for number in range(n):
        assert with_drafts.text(number) == without.text(number)
        assert with_drafts.collected[number].finishes[0].usage.accepted_tokens > 60
    assert with_drafts.decoder.clock() - began_s < 0.3 * (without.decoder.clock() - began_s)


@pytest.mark.parametrize(("n", "n_repeating"), [(3, 2), (4, 1)])
def test_who_repeats_nothing_is_not_slowed_by_the_drafts_of_others(n: int, n_repeating: int) -> None:
    """Rows of unequal number take another pass, which would double the time of each step."""
    with_drafts, without = (several(n, n_repeating=n_repeating, max_draft=most) for most in (31, 0))
    for number in range(n):
        assert with_drafts.text(number) == without.text(number)
    for number in range(n_repeating, n):
        took_s = [rig.collected[number].finishes[0].usage.decode_s for rig in (with_drafts, without)]
        assert took_s[0] < 1.05 * took_s[1]


def test_rows_that_cost_as_much_as_a_step_are_not_drafted_for_several() -> None:
    rig = several(2, n_repeating=2, max_draft=31, row_s=0.02)
    n_drafted = sum(collected.finishes[0].usage.drafted_tokens for collected in rig.collected.values())
    n_accepted = sum(collected.finishes[0].usage.accepted_tokens for collected in rig.collected.values())
    assert n_drafted - n_accepted <= 3


def test_many_sequences_are_not_guessed_at() -> None:
    rig = several(5, n_repeating=5, max_draft=31)
    # The last of them may run alone in the end.
    many = [record.n_draft for record in rig.engine.steps().records if record.n_sequences > 4]
    assert len(many) > 10
    assert not any(many)


def test_drafts_of_several_leave_room_for_every_row_with_logits() -> None:
    """A batch of the fake has 64 of them at most: it refuses more."""
    rig = several(4, n_repeating=4, max_draft=63)
    assert 16 < max(record.n_decode for record in rig.engine.steps().records) <= rig.decoder.n_outputs_max


def test_an_abort_amid_guesses_leaves_a_clean_slot() -> None:
    rig = Rig(EchoDecoder(n_slots=1, n_ctx=512, row_s=0.0), rules=EngineRules(max_draft=31))
    rig.add(make_request(1, TEXT * 2, max_tokens=300))
    for _ in range(12):
        rig.step()
    rig.abort(1)
    rig.add(make_request(2, TEXT * 2, max_tokens=20))
    assert rig.run()[2].finishes[0].usage.cached_tokens == len(TEXT) * 2 - 1


@pytest.mark.parametrize("error", [NoRoomError(), EngineFailure("a row failed")])
def test_a_guess_that_cannot_be_computed_costs_nothing_but_itself(error: Exception) -> None:
    request = make_request(1, TEXT * 2, max_tokens=100)
    rig = Rig(EchoDecoder(n_slots=1, n_ctx=512, row_s=0.0), rules=EngineRules(max_draft=31))
    rig.add(request)
    while not rig.engine.stats().generated_tokens > 40:
        rig.step()
    rig.decoder.failures.append(error)
    assert rig.run()[1].texts == run(request, max_draft=0)[0].texts
    assert not rig.decoder.failures


def test_one_that_is_preempted_amid_guesses_says_the_same() -> None:
    request = make_request(1, TEXT * 2, max_tokens=300, priority=1)
    rig = Rig(EchoDecoder(n_slots=1, n_ctx=512, row_s=0.0), rules=EngineRules(max_draft=31, preempts=True))
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
    assert collected.texts == run(request, max_draft=0)[0].texts


def test_a_context_that_cannot_take_back_is_not_guessed_for() -> None:
    collected, _ = run(make_request(1, TEXT * 2, max_tokens=100), max_draft=31, row_s=0.0, can_trim=False)
    assert collected.finishes[0].usage.drafted_tokens == 0


def test_logits_of_a_guess_are_those_of_its_place() -> None:
    decoder = EchoDecoder(n_slots=1, n_ctx=512)
    assert np.array_equal(decoder.logits_after([1, 2]), logits_after([1, 2]))
