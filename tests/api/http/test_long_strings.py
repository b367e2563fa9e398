"""Bodies with long strings: the same values and the same refusals as without taking them out, in far less time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufd.api.http.body import parse_json
from ggufd.api.http.long_strings import take_out
from ggufd.errors import InvalidRequest

LONG = "aB+/" * 50_000
EDGES = (LONG, f"data:,{LONG}", LONG + "\n", LONG + "é", " " * 200_000, f'"{LONG}', "\\" + LONG, f"{LONG}\\u0041")
LONGS = st.integers(0, len(EDGES) - 1)
"""Numbers of long strings: the strings themselves would make the reports of failures long."""

VALUES = st.recursive(
    st.none() | st.text(max_size=5) | LONGS,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=2),
    max_leaves=5,
)


def with_long(value: Any) -> Any:
    """The value with long strings for their numbers."""
    if isinstance(value, dict):
        return {name: with_long(child) for name, child in value.items()}
    if isinstance(value, list):
        return [with_long(child) for child in value]
    return EDGES[value] if isinstance(value, int) else value


@given(body=VALUES, ascii_only=st.booleans(), indent=st.sampled_from([None, 40_000]))
@settings(max_examples=60, deadline=None)
def test_a_body_is_what_it_says(body: Any, ascii_only: bool, indent: int | None) -> None:
    whole = {"a": with_long(body), "b": ["c", {"d": EDGES[0]}]}
    assert parse_json(json.dumps(whole, ensure_ascii=ascii_only, indent=indent).encode()) == whole


def test_long_strings_are_taken_out_as_they_are() -> None:
    raw = json.dumps({"a": LONG, "b": ["short", LONG + "c"], LONG: 1}).encode()
    short = take_out(raw)
    assert len(short.raw) < 500
    assert sorted(short.found.values()) == sorted([LONG, LONG + "c", LONG])
    assert parse_json(raw) == {"a": LONG, "b": ["short", LONG + "c"], LONG: 1}


@pytest.mark.parametrize(
    "raw",
    [
        f'{{"a": "{LONG}',
        f'{{"a": {LONG}}}',
        f'{{"a": "b"{LONG}"c"}}',
        f'{{"a": "{LONG}"{LONG}}}',
        f'{{"a": "{LONG}\n"}}',
        f'{{"a": "{LONG}\x00"}}',
        f'{{"a" {"1" * 200_000}: "b"}}',
        f'{{"a": "{LONG}",}}',
        f'"{LONG}"',
    ],
    ids=["no end", "no quotes", "between", "behind", "line end", "null", "digits", "comma", "no object"],
)
def test_what_is_no_json_is_refused(raw: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_json(raw.encode())


def test_a_name_of_ones_own_is_taken_for_nothing_else() -> None:
    short = take_out(json.dumps({"a": LONG}).encode())
    (name,) = short.found
    assert parse_json(json.dumps({"a": LONG, "b": name}).encode()) == {"a": LONG, "b": name}


def test_what_is_parsed_of_an_image_is_short() -> None:
    raw = json.dumps({"messages": [{"content": [{"url": f"data:image/png;base64,{LONG * 20}"}] * 3}]}).encode()
    assert len(take_out(raw).raw) < 500
