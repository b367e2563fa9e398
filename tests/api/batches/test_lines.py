"""Validation of input files: every line that is wrong is told by its number, and every other one can be read again."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.api.batches.lines import MAX_LINES, LineReader, body_of
from ggufd.batches.records import LineFault

CHAT = "/v1/chat/completions"


def line(custom_id: str = "a", **changes: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": {"messages": []}} | changes)


def check(content: bytes, max_bytes: int = 2000) -> LineReader:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        reader = LineReader(Path(file.name), CHAT, max_bytes)
        while reader.read(3):
            pass
        for one in reader.lines:
            assert isinstance(body_of(content[one.offset : one.offset + one.n_bytes]), dict)
        return reader


def faults_of(*lines: str, max_bytes: int = 2000) -> list[LineFault]:
    return check("\n".join(lines).encode(), max_bytes).faults


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
LINES = st.builds(
    lambda custom_id, method, url, body, more: json.dumps(
        {"custom_id": custom_id, "method": method, "url": url, "body": body} | more
    ),
    st.sampled_from(["a", "b", "c", "", 1, None]),
    st.sampled_from(["POST", "GET", None]),
    st.sampled_from([CHAT, "/v1/embeddings", None]),
    st.dictionaries(st.sampled_from(["messages", "stream"]), JSONS, max_size=2) | JSONS,
    st.dictionaries(st.text(max_size=3), JSONS, max_size=1),
)


@given(st.lists(LINES | JSONS.map(json.dumps) | st.text(max_size=8) | st.binary(max_size=8).map(repr), max_size=12))
def test_each_line_is_right_or_told_wrong_by_its_number(lines: list[str]) -> None:
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    reader = check(content)
    n_lines = len(content.split(b"\n"))
    right = {one.number for one in reader.lines}
    wrong = {fault.line for fault in reader.faults if fault.line is not None}
    assert not right & wrong
    blank = {number for number, one in enumerate(content.split(b"\n"), 1) if not one.strip()}
    assert right | wrong | blank == set(range(1, n_lines + 1))
    assert len({one.custom_id for one in reader.lines}) == len(reader.lines)


@given(st.binary(max_size=200))
def test_no_bytes_break_it(content: bytes) -> None:
    reader = check(content)
    assert reader.faults or reader.lines


@pytest.mark.parametrize(
    ("wrong", "code", "said"),
    [
        ("{", "invalid_json_line", "The line is not valid JSON"),
        ("[]", "invalid_json_line", "must be a JSON object"),
        (line(custom_id=""), "invalid_custom_id", "1 to 512 characters"),
        (line("ok"), "duplicate_custom_id", "an earlier line has 'ok' too"),
        (line("b", method="GET"), "invalid_method", "expected 'POST'"),
        (line("b", url="/v1/models"), "mismatched_endpoint", f"expected '{CHAT}'"),
        (line("b", body="x"), "invalid_body", "expected an object"),
        (line("b", body={"stream": True}), "invalid_body", "leave it out"),
        (line("b", body={"x": "y" * 3000}), "line_too_large", "over the limit of 2000 bytes"),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_with_its_line(wrong: str, code: str, said: str) -> None:
    (fault,) = faults_of(line("ok"), wrong, line("fine"))
    assert (fault.line, fault.code) == (2, code)
    assert said in fault.message


def test_a_line_behind_one_that_is_too_long_is_still_found() -> None:
    reader = check("\n".join([line("a"), "x" * 100_000, line("b")]).encode(), 500)
    assert [(one.number, one.custom_id) for one in reader.lines] == [(1, "a"), (3, "b")]
    assert [fault.line for fault in reader.faults] == [2]


def test_a_file_without_lines_is_told() -> None:
    assert [fault.code for fault in faults_of("", "  ")] == ["empty_file"]


def test_faults_are_told_up_to_a_number() -> None:
    assert len(faults_of(*["{"] * 500)) == 100


def test_more_lines_than_may_be_are_told() -> None:
    (fault,) = faults_of(*(line(str(i)) for i in range(MAX_LINES + 1)))
    assert (fault.line, fault.code) == (MAX_LINES + 1, "too_many_lines")
