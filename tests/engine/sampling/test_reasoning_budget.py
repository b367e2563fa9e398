"""A part of the text that may only become so long: by its marks, a limit, and circles."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.messages.sampling import ReasoningBudget
from ggufd.engine.sampling.reasoning_budget import ReasoningGuard, Stage, is_looping

ENDING = (10, 60, 47, 116, 62)
"""`\\n</t>`, a byte a token."""


def guard(opening: str = "", max_tokens: int | None = None, reopening: str = "") -> ReasoningGuard:
    return ReasoningGuard(ReasoningBudget(opening, "</t>", ENDING, max_tokens, reopening))


def feed(one: ReasoningGuard, text: str, said: array[int] | None = None) -> array[int]:
    said = array("i") if said is None else said
    for byte in text.encode():
        said.append(byte)
        one.note(bytes([byte]), said)
    return said


def left(one: ReasoningGuard, *, banned: tuple[int, ...] = ()) -> list[int]:
    """The tokens that may come next."""
    row = np.zeros(256, np.float32)
    row[list(banned)] = -np.inf
    one.apply(row)
    return [int(token) for token in np.flatnonzero(np.isfinite(row))]


@pytest.mark.parametrize(
    ("opening", "text", "stage"),
    [
        ("", "", Stage.INSIDE),
        ("", "ab</t", Stage.INSIDE),
        ("", "ab</t>c", Stage.OVER),
        ("<t>", "", Stage.BEFORE),
        ("<t>", "\n<t", Stage.BEFORE),
        ("<t>", "\n<t>a", Stage.INSIDE),
        ("<t>", "Hello <t>", Stage.OVER),
        ("<t>", "<t></t>", Stage.OVER),
    ],
)
def test_marks_tell_where_the_text_is(opening: str, text: str, stage: Stage) -> None:
    one = guard(opening)
    feed(one, text)
    assert one.stage is stage
    assert len(left(one)) == 256


def test_marks_may_lie_within_tokens() -> None:
    one = guard("<t>")
    one.note(b"<t>a", array("i", [1]))
    assert one.stage is Stage.INSIDE
    one.note(b"b</t>c", array("i", [1, 2]))
    assert one.stage is Stage.OVER


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("<t>ab</t>", Stage.BETWEEN),
        ("<t>ab</t>\n<", Stage.BETWEEN),
        ("<t>ab</t>\n<a><t>", Stage.INSIDE),
        ("<t>ab</t><a><t>c</t>", Stage.BETWEEN),
        ("<t>ab</t><t>", Stage.OVER),
        ("<t>ab</t>c<a><t>", Stage.OVER),
    ],
)
def test_a_part_that_may_go_on(text: str, stage: Stage) -> None:
    one = guard("<t>", reopening="<a><t>")
    feed(one, text)
    assert one.stage is stage
    assert len(left(one)) == 256


def test_what_goes_on_is_within_the_same_bound() -> None:
    one = guard("<t>", max_tokens=8, reopening="<a><t>")
    # Four bytes are inside before the mark is whole, and four after it: the eighth is the last.
    said = feed(one, "<t>a</t><a><t>bcd")
    assert len(left(one)) == 256
    said = feed(one, "e", said)
    for token in ENDING:
        assert left(one) == [token]
        said = feed(one, chr(token), said)
    assert one.stage is Stage.BETWEEN
    assert len(left(one)) == 256


def test_the_ending_is_said_token_by_token() -> None:
    one = guard("<t>", max_tokens=2)
    said = feed(one, "<t>a")
    assert len(left(one)) == 256
    said = feed(one, "b", said)
    for token in ENDING:
        assert left(one) == [token]
        said = feed(one, chr(token), said)
    assert one.stage is Stage.OVER
    assert len(left(one)) == 256


def test_no_tokens_at_all_means_the_ending_comes_first() -> None:
    assert left(guard(max_tokens=0)) == [ENDING[0]]
    one = guard("<t>", max_tokens=0)
    assert len(left(one)) == 256
    feed(one, "<t>")
    assert left(one) == [ENDING[0]]


def test_circles_are_ended() -> None:
    one = guard()
    feed(one, "Let me think. " + "Wait, but no. " * 20)
    assert left(one) == [ENDING[0]]
    one = guard()
    feed(one, "".join(f"Step {i}. " for i in range(200)))
    assert len(left(one)) == 256


def test_a_banned_ending_is_given_up() -> None:
    one = guard(max_tokens=0)
    assert len(left(one, banned=(ENDING[0],))) == 255
    assert one.stage is Stage.OVER


def test_an_ending_that_was_taken_back_is_not_tried_again() -> None:
    one = guard(max_tokens=1)
    feed(one, "a\n</")
    one.rewind(3)
    assert len(left(one)) == 256


@given(st.text(alphabet="<t/>ab", max_size=20), st.text(alphabet="<t/>ab", max_size=20))
def test_a_rewind_is_as_if_nothing_had_been_said(kept: str, taken: str) -> None:
    one, other = guard("<t>"), guard("<t>")
    said = feed(one, kept)
    feed(one, taken, array("i", said))
    if taken:
        one.rewind(len(taken))
    feed(other, kept)
    assert one.stage is other.stage
    feed(one, "</t>a", array("i", said))
    feed(other, "</t>a", array("i", said))
    assert one.stage is other.stage


@given(st.lists(st.integers(0, 9), min_size=1, max_size=24), st.lists(st.integers(0, 9), max_size=50))
def test_whatever_is_said_often_enough_is_a_circle(circle: list[int], before: list[int]) -> None:
    assert is_looping(array("i", before + circle * 100))


def test_a_text_of_few_rounds_is_no_circle() -> None:
    assert not is_looping(array("i", list(range(100)) * 3))
    assert not is_looping(array("i", [7] * 95))
    assert is_looping(array("i", [7] * 96))
