"""Banned phrases that begin and end inside tokens: text and tokens agree at every moment, and no way out is missed."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufd.engine.messages.config import EngineRules
from ggufd.engine.messages.events import FinishReason, Output
from ggufd.engine.messages.sampling import Grammar, GrammarKind, ReasoningBudget
from ggufd.engine.sampling.banned import fold
from ggufd.llama.context.batch import Logits
from tests.support.examples import examples
from tests.support.fakes.fake_llama import Collected, FakeDecoder, FakeDraft, FakeVocabulary, Rig, make_request

PROMPT = b"Once upon a time"
PIECES = tuple(
    piece.encode() if isinstance(piece, str) else piece
    for piece in (
        *("ab", "ba", "abc", "cab", " a", " b", "b a", "c c", "AB", "aBc", "é", "éa", "bé", "a "),
        *(b"a\xc3", b"\xa9b", b"\xc3", b"\xa9", b"\xf0\x9f", b"c\xf0\x9f"),
        *(b"\x98\x80", b"\x98\x80a", b"\x98\x80\xf0\x9f"),
    )
)
LETTERS = frozenset(b"abc ")
WORDS = range(128, 128 + len(PIECES))


class WordVocabulary(FakeVocabulary):
    """Single letters, and pieces of several that begin and end anywhere, also inside a character."""

    def piece(self, token: int, *, special: bool) -> bytes:
        return PIECES[token - 128] if token in WORDS else super().piece(token, special=special)


BIASES = tuple((token, 5.0 if token in WORDS else 0.0 if token in LETTERS else -float("inf")) for token in range(256))
"""The likeliest are the pieces of several letters; no other bytes than them and the letters are ever said."""


class ChoiceGrammars:
    """A grammar is the texts that may be said, one a line."""

    def prepare(self) -> None: ...

    def compile(self, grammar: Grammar) -> ChoiceGrammar:
        return ChoiceGrammar([choice.encode() for choice in grammar.text.split("\n")])

    def begin_masks(self, constraints: Sequence[Any]) -> None: ...


class ChoiceGrammar:
    is_ready = True

    def __init__(self, choices: list[bytes]) -> None:
        self._choices = choices

    def constraint(self) -> ChoiceConstraint:
        return ChoiceConstraint(self._choices)


class ChoiceConstraint:
    is_free = False

    def __init__(self, choices: list[bytes]) -> None:
        self._choices = choices
        self._said: list[bytes] = []

    @property
    def is_stopped(self) -> bool:
        return self._left() == [b""]

    @property
    def is_accepting(self) -> bool:
        return b"" in self._left()

    def forced(self) -> list[int]:
        return []

    def take(self, token: int) -> bool:
        raise AssertionError("it is never free")

    def mask(self, row: Logits) -> None:
        left = self._left()
        pieces = [WordVocabulary().piece(token, special=False) for token in range(len(row))]
        fits = [bool(piece) and any(rest.startswith(piece) for rest in left) for piece in pieces]
        for token in FakeVocabulary.eog_tokens:
            fits[token] = self.is_accepting
        row[~np.array(fits)] = -np.inf

    def accept(self, token: int) -> None:
        piece = WordVocabulary().piece(token, special=False)
        self._said.append(piece)
        assert piece
        assert self._left()

    def rewind(self, n: int) -> None:
        assert 0 < n <= len(self._said)
        del self._said[-n:]

    def _left(self) -> list[bytes]:
        """What may still be said, one of these."""
        said = b"".join(self._said)
        return [choice.removeprefix(said) for choice in self._choices if choice.startswith(said)]


def rig_of(*, max_draft: int = 0, preempts: bool = False, **decoder: Any) -> Rig:
    rules = EngineRules(max_draft=max_draft, preempts=preempts)
    made = FakeDecoder(**{"n_slots": 2, **decoder})
    draft = FakeDraft(made, error=0.3) if max_draft else None
    return Rig(made, rules=rules, draft=draft, vocabulary=WordVocabulary(), grammars=ChoiceGrammars())


def said(tokens: Sequence[int]) -> str:
    """The text of tokens, as far as it is whole characters."""
    pieces = b"".join(WordVocabulary().piece(token, special=False) for token in tokens)
    return codecs.getincrementaldecoder("utf-8")("replace").decode(pieces)


def check_events(collected: Collected, bans: Sequence[str], *, case_sensitive: bool = False) -> None:
    """At every moment the text is the text of the tokens, and no phrase is in it; log-probabilities go with tokens.

    At the end a token may be cut, by a stop string or inside a character; where nothing is banned, anywhere.
    """
    texts: dict[int, str] = {}
    tokens: dict[int, list[int]] = {}
    for event in collected.events:
        if not isinstance(event, Output):
            continue
        text = texts[event.index] = texts.get(event.index, "") + event.text
        told = tokens.setdefault(event.index, [])
        told += event.tokens
        if event.logprobs:
            assert [one.token for one in event.logprobs] == list(event.tokens)
        if event.finish is None and bans:
            assert text == said(told)
        elif event.finish is not None:
            assert text.startswith(said(told))
            assert len(text) - len(said(told)) <= max(map(len, PIECES))
            assert event.finish.usage.completion_tokens >= len(told)
        same = (lambda text: text) if case_sensitive else fold
        assert not any(same(ban) in same(text) for ban in bans)


def check_slots(rig: Rig, collected: Collected) -> None:
    """What stays for the next turn is what was said."""
    kept = [slot.computed.tolist() for slot in rig.engine._cache.table.slots]
    for tokens in collected.tokens.values():
        whole = [*PROMPT, *tokens]
        assert any(one == whole[: len(one)] or one[: len(whole)] == whole for one in kept if len(one) >= len(PROMPT))


cuts = st.tuples(st.integers(0, 30), st.integers(1, 9))
"""Where a phrase begins, and how long it is."""

ways = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.just(1.5),
        "stop": st.sampled_from([("c ",), ("ab a", "bb"), ("éa",)]),
        "xtc_probability": st.just(0.5),
        "repeat_penalty": st.just(1.3),
        "n_logprobs": st.just(1),
        "min_tokens": st.just(5),
        "bans_case_sensitive": st.just(True),
    },
)
rigs = st.fixed_dictionaries({}, optional={"max_draft": st.just(7), "can_trim": st.just(False)})


def grown_bans(said_with: Any, where: Sequence[tuple[int, int]]) -> Iterator[tuple[str, ...]]:
    """More and more phrases, each cut out of what was said under the ones before."""
    bans: tuple[str, ...] = ()
    for start, length in where:
        text = said_with(bans)
        phrase = text[start % max(1, len(text)) :][:length]
        if phrase:
            bans = (*bans, phrase)
            yield bans


@settings(max_examples=examples(40))
@given(st.lists(cuts, min_size=1, max_size=4), ways, rigs, st.integers(0, 1000))
def test_no_phrase_appears_and_the_text_is_the_tokens_at_every_moment(
    where: list[tuple[int, int]], changes: dict[str, Any], options: dict[str, Any], seed: int
) -> None:
    stops = changes.get("stop", ())

    def run(bans: tuple[str, ...]) -> str:
        rig = rig_of(seed=seed, **options)
        request = make_request(
            1, PROMPT, banned_strings=bans, max_tokens=20, logit_bias=BIASES, ignore_eos=True, seed=7, **changes
        )
        rig.add(request)
        collected = rig.run()[1]
        check_events(collected, bans, case_sensitive="bans_case_sensitive" in changes)
        check_slots(rig, collected)
        assert not any(stop in collected.texts[0] for stop in stops)
        finish = collected.finishes[0]
        assert finish.reason is (FinishReason.LENGTH if finish.stop is None else FinishReason.STOP)
        return collected.texts[0]

    for bans in grown_bans(run, where):
        run(bans)


@settings(max_examples=examples(12))
@given(st.lists(cuts, min_size=1, max_size=3), ways, st.integers(0, 1000))
def test_choices_and_preempted_sequences_say_what_they_say_alone(
    where: list[tuple[int, int]], changes: dict[str, Any], seed: int
) -> None:
    def request(request_id: int, bans: tuple[str, ...], **more: Any) -> Any:
        fixed = {"max_tokens": 16, "logit_bias": BIASES, "ignore_eos": True, "seed": 7, "n": 2}
        return make_request(request_id, PROMPT, banned_strings=bans, **{**fixed, **changes, **more})

    def alone(bans: tuple[str, ...]) -> Collected:
        rig = rig_of(n_slots=2, seed=seed)
        rig.add(request(1, bans))
        return rig.run()[1]

    for bans in grown_bans(lambda bans: alone(bans).texts[0], where):
        rig = rig_of(n_slots=2, preempts=True, seed=seed)
        rig.add(request(1, bans, account="a"), request(2, bans, account="a"))
        for _ in range(8):
            rig.step()
        rig.add(request(3, bans, account="b"))
        together = rig.run()
        for collected in together.values():
            assert collected.texts == alone(bans).texts
            check_events(collected, bans, case_sensitive="bans_case_sensitive" in changes)


choices = st.lists(
    st.lists(st.sampled_from(["ab", "c", " a", "bé", "cab", "😀", "b"]), min_size=1, max_size=6).map("".join),
    min_size=1,
    max_size=6,
    unique=True,
)


@settings(max_examples=examples(80))
@given(choices, st.lists(st.tuples(st.integers(0, 5), cuts), min_size=1, max_size=4), st.sampled_from([0.0, 1.5]))
def test_a_choice_that_fits_is_found_wherever_the_others_part_from_it(
    texts: list[str], where: list[tuple[int, tuple[int, int]]], temperature: float
) -> None:
    phrases = []
    for which, (start, length) in where:
        text = texts[which % len(texts)]
        phrases.append(text[start % len(text) :][:length])
    bans = tuple(phrases)
    rig = rig_of()
    grammar = Grammar(GrammarKind.REGEX, "\n".join(texts))
    how = {"max_tokens": 60, "temperature": temperature, "seed": 1}
    rig.add(make_request(1, PROMPT, grammar=grammar, banned_strings=bans, **how))
    collected = rig.run()[1]
    fitting = [text for text in texts if not any(fold(ban) in fold(text) for ban in bans)]
    if fitting:
        assert collected.failure is None
        assert collected.texts[0] in fitting
        check_events(collected, bans)
    else:
        assert collected.failure is not None
        assert "no token is left" in collected.failure.message


def test_a_choice_is_found_within_few_rewinds_however_its_text_can_be_cut() -> None:
    """Each of the common letters can be cut into tokens in many ways: what was tried by one is not tried by all."""
    stem = "abc" * 10
    grammar = Grammar(GrammarKind.REGEX, f"{stem} a\n{stem} b\nc")
    rig = rig_of()
    rig.add(make_request(1, PROMPT, grammar=grammar, banned_strings=("c a", "c b"), max_tokens=60, logit_bias=BIASES))
    collected = rig.run()[1]
    assert collected.texts[0] == "c"
    assert collected.finishes[0].usage.rewinds < 200


def test_a_phrase_that_only_the_last_thought_completes_leaves_the_limit_of_thoughts() -> None:
    """Of three tokens that the thoughts may have, the third completes a phrase: another comes, and then the end."""

    def run(bans: tuple[str, ...]) -> Collected:
        rig = rig_of()
        limit = ReasoningBudget("", "</t>", tuple(b"</t>"), 3)
        rig.add(make_request(1, b"hello", max_tokens=12, banned_strings=bans, reasoning_budget=limit))
        return rig.run()[1]

    thought = said(run(()).tokens[0][:3])
    for start in range(3):
        text = run((thought[start:],)).texts[0]
        assert thought[start:].lower() not in text.lower()
        assert text.index("</t>") == 3


def test_a_token_is_not_sent_before_all_of_it_may_be() -> None:
    """The shortest case: the phrase begins inside a token, and what precedes it there was no text of its own."""
    grammar = Grammar(GrammarKind.REGEX, "\n".join(["cab abc", "ab"]))
    rig = rig_of()
    bias = ((WORDS[PIECES.index(b"cab")], 100.0),)
    rig.add(make_request(1, PROMPT, grammar=grammar, banned_strings=("b a",), logit_bias=bias))
    collected = rig.run()[1]
    assert collected.texts[0] == "ab"
    assert list(itertools.chain(*collected.tokens.values()))
