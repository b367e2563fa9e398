"""Banned phrases: found, taken back, never sent, and what a rewind leaves is what a fresh run would have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.messages.sampling import Grammar, GrammarKind
from ggufd.engine.sampling.banned import NOTHING_SENT, REGEX_WINDOW, Bans, PhraseAutomaton, check_bans, fold
from ggufd.errors import InvalidRequest
from tests.support.fakes.fake_llama import N_VOCAB, FakeVocabulary, logits_after, make_engine, make_request

LETTERS = st.text(alphabet="abc", max_size=40)
PHRASES = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), min_size=1, max_size=6)


@given(LETTERS, PHRASES)
def test_automaton_finds_a_phrase_exactly_when_one_is_there(text: str, phrases: list[str]) -> None:
    found = PhraseAutomaton(tuple(phrases)).scan(text).found
    assert (found is not None) == any(phrase in text for phrase in phrases)
    if found is not None:
        assert any(text.startswith(phrase, found) for phrase in phrases)


@given(LETTERS, PHRASES)
def test_automaton_holds_the_longest_end_that_begins_a_phrase(text: str, phrases: list[str]) -> None:
    scan = PhraseAutomaton(tuple(phrases)).scan(text)
    ends = [n for n in range(len(text) + 1) if any(phrase.startswith(text[len(text) - n :]) for phrase in phrases)]
    if scan.found is None:
        assert scan.n_held == max(ends)


@given(st.text())
def test_fold_keeps_positions(text: str) -> None:
    assert len(fold(text)) == len(text)


def test_case_matters_only_when_asked() -> None:
    assert Bans(("Shivers",), (), case_sensitive=False).scan("SHIVERS down").found == 0
    assert Bans(("Shivers",), (), case_sensitive=True).scan("shivers down").found is None


def test_a_greek_letter_is_the_same_wherever_in_the_word_it_is() -> None:
    assert Bans(("\u03a3\u039f\u03a3",), (), case_sensitive=False).scan("\u03a3\u039f\u03a3\u0391").found == 0
    assert fold("\u03a3\u039f\u03a3") == "\u03c3\u03bf\u03c3"


def test_regexes_are_found_and_hold_a_window() -> None:
    bans = Bans((), (r"a whis+per of \w+",), case_sensitive=False)
    assert bans.scan("It was A Whissper of silk").found == 7
    assert bans.scan("x" * 200) == (None, REGEX_WINDOW)


@pytest.mark.parametrize(
    ("regex", "sent", "held", "found"),
    [
        ("^the", "", "the end", 0),
        ("^the", "At ", "the end", None),
        (r"\bcat", "s", "cat", None),
        (r"\bcat", "a ", "cat", 0),
        ("shiv(er)+s", "she shiv", "ers", -4),
        ("a*", "b", "baa", 1),
        ("a*", "a", "b", None),
    ],
)
def test_a_regex_sees_what_was_sent_before_it(regex: str, sent: str, held: str, found: int | None) -> None:
    bans = Bans((), (regex,), case_sensitive=False)
    assert bans.scan(held, bans.after(sent, NOTHING_SENT)).found == found


@given(LETTERS, LETTERS, PHRASES)
def test_a_phrase_that_began_in_text_that_was_sent_is_found(sent: str, held: str, phrases: list[str]) -> None:
    """It was sent since what followed it was no phrase; but that may have been taken back."""
    bans = Bans(tuple(phrases), (), case_sensitive=True)
    if bans.scan(sent).found is None:
        found = bans.scan(held, bans.after(sent[3:], bans.after(sent[:3], NOTHING_SENT))).found
        whole = bans.scan(sent + held).found
        assert found == (None if whole is None else whole - len(sent))


@pytest.mark.parametrize(
    ("phrases", "regexes", "param"),
    [
        (("",), (), "banned_strings"),
        ((), ("(a",), "banned_regex"),
        ((), ("a" * 2000,), "banned_regex"),
        ((), ("a" * 900,) * 5, "banned_regex"),
    ],
)
def test_what_cannot_be_banned_is_refused(phrases: tuple[str, ...], regexes: tuple[str, ...], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_bans(phrases, regexes)
    assert refused.value.param == param


# --- in the engine ----------------------------------------------------------------------------------------------------

PROMPT = b"Once upon a time"
LENGTH = 40


def reference(prompt: bytes, phrases: tuple[str, ...], n: int) -> str:
    """Greedy text by brute force: whenever a phrase appears, ban the token that began it at its place and go on."""
    vocabulary = FakeVocabulary()
    tokens: list[int] = []
    banned: dict[int, set[int]] = {}
    while len(tokens) < n:
        row = logits_after([*prompt, *tokens])
        row[:32] = row[127:] = -np.inf
        row[list(banned.get(len(tokens), ()))] = -np.inf
        tokens.append(int(row.argmax()))
        text = "".join(vocabulary.piece(token, special=False).decode("latin-1") for token in tokens)
        starts = [at for phrase in phrases if (at := fold(text).find(fold(phrase))) >= 0]
        if starts:
            start = min(starts)
            banned = {at: those for at, those in banned.items() if at <= start}
            banned.setdefault(start, set()).add(tokens[start])
            del tokens[start:]
    return "".join(map(chr, tokens))


def ascii_only() -> tuple[tuple[int, float], ...]:
    """Bans all tokens that are no single ASCII character, so that positions in text and tokens agree."""
    return tuple((token, -float("inf")) for token in range(N_VOCAB) if not 32 <= token < 127)


def generate(phrases: tuple[str, ...], **changes: object) -> tuple[str, int, list[str]]:
    rig = make_engine()
    rig.add(
        make_request(
            1, PROMPT, banned_strings=phrases, max_tokens=LENGTH, logit_bias=ascii_only(), ignore_eos=True, **changes
        )
    )
    collected = rig.run()[1]
    pieces = [event.text for event in collected.events if hasattr(event, "text")]
    return collected.texts[0], collected.finishes[0].usage.rewinds, pieces


def test_without_a_match_the_text_is_the_same() -> None:
    plain, _, _ = generate(())
    guarded, rewinds, _ = generate(("no such thing", "nor this"))
    assert (guarded, rewinds) == (plain, 0)


@pytest.mark.parametrize("start", [0, 1, 7, 20, LENGTH - 5])
def test_a_banned_phrase_is_taken_back_and_only_it(start: int) -> None:
    plain, _, _ = generate(())
    phrase = plain[start : start + 4].upper()
    text, rewinds, pieces = generate((phrase,))
    assert phrase.lower() not in text.lower()
    assert text[:start] == plain[:start]
    assert len(text) == LENGTH
    assert rewinds >= 1
    assert "".join(pieces) == text


@pytest.mark.parametrize("length", [1, 2, 3])
def test_rewinds_equal_a_run_that_knew_the_bans(length: int) -> None:
    plain, _, _ = generate(())
    phrases = tuple(plain[at : at + length] for at in range(0, 30, 7))
    text, rewinds, _ = generate(phrases)
    assert rewinds >= 1
    assert text == reference(PROMPT, phrases, LENGTH)


def test_penalties_and_chains_survive_a_rewind() -> None:
    plain, _, _ = generate((), repeat_penalty=1.3, repeat_last_n=-1)
    phrase = plain[5:8]
    text, rewinds, _ = generate((phrase,), repeat_penalty=1.3, repeat_last_n=-1)
    assert rewinds >= 1
    assert phrase not in text
    assert text[:5] == plain[:5]
    # XTC goes through the chain, whose choices must have been kept to be taken back (the fake asserts that).
    chained, _, _ = generate((phrase,), xtc_probability=0.5, repeat_last_n=0)
    assert phrase not in chained


def test_a_dead_end_widens_the_rewind_and_ends_at_last() -> None:
    """Every letter is banned after the first: the sequence ends instead of looping."""
    rig = make_engine()
    everything = tuple(chr(code) for code in range(32, 127))
    rig.add(make_request(1, PROMPT, banned_strings=everything, logit_bias=ascii_only(), ignore_eos=True))
    collected = rig.run()[1]
    assert collected.texts[0] == ""
    assert collected.finishes[0].usage.rewinds >= len(everything)


def test_what_has_no_way_on_ends_however_many_ways_there_are_back() -> None:
    """Held back characters can be written otherwise in more ways than anybody could try."""
    rig = make_engine()
    ways = Grammar(GrammarKind.GBNF, "/".join(["abcdefgh"] * 60 + ["xy"]))
    rig.add(make_request(1, PROMPT, grammar=ways, banned_regexes=("[xy]",), max_tokens=100))
    failure = rig.run()[1].failure
    assert failure is not None
    assert "no token is left" in failure.message


def test_a_grammar_goes_back_too() -> None:
    rig = make_engine()
    plain = make_request(1, PROMPT, grammar=Grammar(GrammarKind.GBNF, "ab/ab/ab/ab"))
    rig.add(plain)
    free = rig.run()[1].texts[0]
    rig = make_engine()
    rig.add(make_request(1, PROMPT, grammar=Grammar(GrammarKind.GBNF, "ab/ab/ab/ab"), banned_strings=(free[1:3],)))
    text = rig.run()[1].texts[0]
    assert free[1:3] not in text
    assert set(text) <= set("ab")
    assert len(text) == 4


def test_a_model_that_cannot_trim_computes_again() -> None:
    plain, _, _ = generate(())
    rig = make_engine(can_trim=False)
    rig.add(
        make_request(
            1, PROMPT, banned_strings=(plain[3:6],), max_tokens=LENGTH, logit_bias=ascii_only(), ignore_eos=True
        )
    )
    assert rig.run()[1].texts[0] == reference(PROMPT, (plain[3:6],), LENGTH)


def test_a_long_list_is_built_in_pieces_and_finds_the_same() -> None:
    phrases = tuple(f"{number:04} {word}" for number in range(300) for word in ("bottles of beer", "on the wall"))
    bans = Bans(phrases, (), case_sensitive=False)
    n_pieces = 0
    while not bans.is_ready:
        bans.build()
        n_pieces += 1
    assert n_pieces > 10
    whole = Bans(phrases, (), case_sensitive=False)
    for held in ("0123 on the wall", "x 0299 bottles of", "0299 on the floor", ""):
        assert bans.scan(held) == whole.scan(held)
