"""JSON that comes in pieces beside a value: the same in whatever spelling, and known to be another at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.chat.deltas.json_comparison import JsonComparison

_LEAVES = (
    st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-9, 9) | st.text(alphabet='ab"\\\n/\u00e9\U0001f600')
)
VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet="abc", max_size=2), inner, max_size=3),
    max_leaves=8,
)


def spelled(data: st.DataObject, value: Any) -> str:
    """A value as JSON in any of its spellings."""
    blank = data.draw(st.sampled_from(["", " ", "\n\t"]))
    match value:
        case dict():
            items = data.draw(st.permutations(list(value.items())))
            parts = [f"{spelled(data, key)}{blank}:{blank}{spelled(data, item)}" for key, item in items]
            return "{" + blank + f"{blank},{blank}".join(parts) + blank + "}"
        case list():
            return "[" + blank + f",{blank}".join(spelled(data, item) for item in value) + blank + "]"
        case str():
            return json.dumps(value, ensure_ascii=data.draw(st.booleans()))
    return json.dumps(value)


def compared(value: Any, text: str, step: int = 1) -> tuple[bool, bool]:
    """Whether a text in pieces of `step` is taken to its end, and found equal."""
    comparison = JsonComparison(value)
    pieces = [text[place : place + step] for place in range(0, len(text), step)]
    return all(comparison.feed(piece) for piece in pieces), comparison.is_equal


@given(st.dictionaries(st.text(alphabet="abc", max_size=2), VALUES, max_size=3), st.data())
def test_every_spelling_of_a_value_is_equal_at_its_last_character(value: Any, data: st.DataObject) -> None:
    text = spelled(data, value)
    for step in (1, 3, len(text)):
        assert compared(value, text, step) == (True, True)
        assert compared(value, text[:-1], step) == (True, False)


@given(VALUES, VALUES)
def test_only_equal_values_are_equal(one: Any, other: Any) -> None:
    # In a list, where a number has an end.
    is_same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    _, is_equal = compared([one], json.dumps([other]))
    assert is_equal == is_same or (is_equal and one == other)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"city": "Paris"}, '{"city": "L'),
        ({"city": "Paris"}, '{"t'),
        ({"city": "Paris"}, '{"city": "Paris '),
        ({"city": "Paris"}, '{"city": "Pari"'),
        ({"city": "Paris"}, '{"city": "Paris",'),
        ({"city": "Paris"}, "{}"),
        ({"city": "Paris"}, '{"city": 3'),
        ({"a": 1, "b": 2}, '{"b": 2, "b'),
        ({"a": "\u00e9"}, '{"a": "\\u00e8'),
        ({"a": "\u00e9"}, '{"a": "\\u00eg'),
        ({"a": "xyz"}, '{"a": "\\x'),
        ({"a": 1}, '{"a": true,'),
        ({"a": True}, '{"a": 1}'),
        ({"a": 1}, '{"a": 1x}'),
        ({"a": 1}, '{"a": "'),
        ({"a": 1}, '{"a": 1000000000'),
        ({"a": []}, '{"a": [1'),
        ({}, '{"'),
        ({}, "["),
    ],
)
def test_a_text_is_another_value_from_its_first_other_character_on(value: Any, text: str) -> None:
    assert compared(value, text[:-1]) == (True, False)
    assert compared(value, text) == (False, False)


@pytest.mark.parametrize("text", ["1.0", "10e-1", "1.00"])
def test_numbers_are_compared_by_value(text: str) -> None:
    assert compared({"a": 1}, f'{{"a": {text}}}') == (True, True)


def test_values_as_deep_as_json_may_be_are_compared() -> None:
    for depth in (190, 20_000):
        text = "[" * depth + "]" * depth
        value: list[Any] = []
        for _ in range(depth - 1):
            value = [value]
        comparison = JsonComparison(value)
        assert comparison.feed(text) == comparison.is_equal == (depth < 1000)
