"""Numbers that stand for the rows of images in a prompt."""

from __future__ import annotations

from array import array
from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.messages.images import ImageRows, ImageSpan, row_tokens, tokens_only


@given(st.binary(), st.integers(0, 100))
def test_rows_are_numbers_below_zero_that_an_array_of_tokens_holds(content: bytes, n_rows: int) -> None:
    rows = row_tokens(sha256(content).hexdigest(), n_rows)
    assert len(rows) == n_rows
    assert all(row < 0 for row in rows)
    assert array("i", rows).tolist() == list(rows)


@given(st.binary(), st.binary())
def test_equal_rows_mean_equal_digests(one: bytes, other: bytes) -> None:
    first, second = sha256(one).hexdigest(), sha256(other).hexdigest()
    # The highest bit of each of the eight words is not kept.
    assert (row_tokens(first, 8) == row_tokens(second, 8)) == (first == second)


def test_rows_are_left_out_of_what_is_told_as_tokens() -> None:
    digest = sha256(b"").hexdigest()
    assert tokens_only((5, *row_tokens(digest, 3), 0, 7)) == [5, 0, 7]


def test_a_span_ends_behind_its_rows() -> None:
    assert ImageSpan(4, ImageRows("00" * 32, 3, "")).end == 7
