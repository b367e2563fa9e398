"""Bodies: whatever a stranger sends is a JSON object or a clear refusal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.api.http.body import MAX_CONTAINERS, MAX_DEPTH, MAX_STRINGS, MAX_VALUES, _without_texts, parse_json
from ggufd.errors import InvalidRequest
from tests.support.fakes.api_client import error_of, running

N_BYTES = 2_000_000

LARGE = {
    "text": b'{"a": "' + b"a" * N_BYTES + b'"}',
    "prose full of commas": b'{"a": "' + b"a, [b], {c}" * (N_BYTES // 11) + b'"}',
    "quoted quotes": b'{"a": "' + b'\\"' * (N_BYTES // 2) + b'"}',
    "escapes": b'{"a": "' + rb"\u00e9" * (N_BYTES // 6) + b'"}',
    "a string without an end": b'{"a": "' + b'\\"' * (N_BYTES // 2),
    "ids": b'{"a": [' + b"1," * (MAX_VALUES - 2) + b"1]}",
}

HOSTILE = {
    "numbers": b'{"a": [' + b"1," * (N_BYTES // 2) + b"1]}",
    "arrays": b'{"a": [' + b"[]," * (N_BYTES // 3) + b"[]]}",
    "objects": b'{"a": [' + b"{}," * (N_BYTES // 3) + b"{}]}",
    "deep arrays": b'{"a": [' + (b"[" * 90 + b"]" * 90 + b",") * (N_BYTES // 181) + b"[]]}",
    "strings": b'{"a": [' + b'"a",' * (N_BYTES // 4) + b'"a"]}',
    "names": b"{" + b",".join(b'"%d":1' % i for i in range(N_BYTES // 10)) + b"}",
}


TEXTS = st.text(alphabet='"\\[{,:n') | st.text()


def cpu_s(work: Callable[[], object]) -> float:
    """Seconds of the processor that `work` takes, which other programs add little to, nor does whoever counts lines."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        start_s = time.process_time()
        with contextlib.suppress(InvalidRequest):
            work()
        return time.process_time() - start_s
    finally:
        sys.settrace(tracer)


@pytest.mark.parametrize("raw", [*LARGE.values(), *HOSTILE.values()], ids=[*LARGE, *HOSTILE])
@pytest.mark.timed
def test_no_body_keeps_others_waiting(raw: bytes) -> None:
    """Measured by what json alone takes for as many numbers as may be, some 8 ms."""
    ratios = [cpu_s(lambda: parse_json(raw)) / cpu_s(lambda: json.loads(LARGE["ids"])) for _ in range(5)]
    assert min(ratios) < 4


@pytest.mark.parametrize("raw", [raw for name, raw in LARGE.items() if "without" not in name])
def test_large_texts_are_read(raw: bytes) -> None:
    assert parse_json(raw)["a"]


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_masses_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match="holds too much"):
        parse_json(raw)


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_a_small_body_is_never_too_much(value: Any) -> None:
    assert parse_json(json.dumps({"a": value}).encode())["a"] == value


@given(st.recursive(TEXTS | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner)))
def test_what_is_in_texts_does_not_count(value: Any) -> None:
    raw = json.dumps(value).encode()
    assert _without_texts(raw) == re.sub(rb'"(?:[^"\\]|\\.)*"', b"", raw)
    assert _without_texts(raw + rb', "[\", [,') == _without_texts(raw) + b", "


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"{", "not valid JSON"),
        (b'{"a": 1,}', "not valid JSON"),
        (b"prompt=hello", "not valid JSON"),
        (b"[1]", "must be a JSON object, not an array"),
        (b'"x"', "must be a JSON object, not a string"),
        (b"null", "must be a JSON object, not null"),
        (b"3", "must be a JSON object, not a number"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": [-1e400]}', "-1e400 is too large a number"),
        (b'{"a": "\xff\xfe"}', "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": ' + b"[" * 15_000, "nested too deeply"),
        (b'{"a": "\xed\xa0\x80"}', "not valid JSON"),
        ('{"a": 1}'.encode("utf-16"), "not valid JSON"),
        (b'{"a": [' + b"[]," * MAX_CONTAINERS + b"[]]}", "at most 20000 arrays and objects"),
        (b'{"a": [' + b"1," * MAX_VALUES + b"1,1]}", "at most 150000 values"),
        (b'{"a": [' + b'"a",' * MAX_STRINGS + b'"a"]}', "at most 50000 strings"),
        (b'{"a": ' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}", "nested too deeply"),
    ],
)
def test_what_is_no_json_object_is_refused_in_words(raw: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        parse_json(raw)


def test_nesting_up_to_the_bound_is_read() -> None:
    depth = MAX_DEPTH - 1
    assert parse_json(b'{"a": ' + b"[" * depth + b"]" * depth + b"}")


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (rb'{"messages": [{"content": "\ud800"}]}', "messages[0].content"),
        (rb'{"prompt": "a\uDFFFb"}', "prompt"),
        (rb'{"a": {"\ud800": 1}}', "a"),
    ],
)
def test_half_a_surrogate_pair_is_named(raw: bytes, param: str) -> None:
    with pytest.raises(InvalidRequest, match="surrogate") as caught:
        parse_json(raw)
    assert caught.value.param == param


def test_a_whole_surrogate_pair_is_a_character() -> None:
    assert parse_json(rb'{"a": "\ud83d\ude42"}') == {"a": "\U0001f642"}


@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_an_invalid_request(raw: bytes) -> None:
    try:
        value: Any = parse_json(raw)
    except InvalidRequest:
        value = {}
    assert isinstance(value, dict)


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.text())))
def test_json_survives(value: dict[str, Any]) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/json"])
async def test_the_content_type_does_not_matter(content_type: str) -> None:
    async with running() as api:
        raw = b'{"prompt": "hi"}'
        response = await api.http.post("/v1/completions", content=raw, headers={"content-type": content_type})
        assert response.status_code == 200


async def test_a_declared_length_over_the_limit_is_413() -> None:
    async with running(max_body_bytes=1000) as api:
        error = error_of(await api.post("/v1/completions", {"prompt": "x" * 2000}), 413)
        assert error["code"] == "payload_too_large"
        assert "1000 bytes" in error["message"]
        assert (await api.post("/v1/completions", {"prompt": "x" * 400})).status_code == 200


async def test_a_body_in_pieces_without_a_length_is_bounded_too() -> None:
    async def pieces() -> Any:
        for _ in range(100):
            yield b" " * 100

    async with running(max_body_bytes=1000) as api:
        response = await api.http.post("/v1/completions", content=pieces())
        error_of(response, 413)


async def test_a_broken_body_is_answered_in_the_error_shape() -> None:
    async with running() as api:
        response: httpx.Response = await api.http.post("/v1/chat/completions", content=b"{")
        error = error_of(response, 400)
        assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a", "lora": [{}] * 19_000}),
        ("/v1/completions", {"prompt": "a", "lora": [{"id": 0, "scale": 1}] * 19_000}),
        ("/infill", {"input_prefix": "a", "input_suffix": "b", "input_extra": [None] * 140_000}),
        ("/tokenize", {"content": "ab " * 100_000, "with_pieces": True}),
    ],
    ids=["faulty adapters", "many adapters", "faulty files", "many pieces"],
)
@pytest.mark.timed
async def test_no_list_keeps_others_waiting(path: str, body: dict[str, Any]) -> None:
    """Processor time between two turns of the event loop, the best of three."""
    longest_s = []
    async with running() as api:
        for _ in range(3):
            asked = asyncio.create_task(api.post(path, body))
            longest_s.append(0.0)
            while not asked.done():
                before_s = time.thread_time()
                await asyncio.sleep(0)
                longest_s[-1] = max(longest_s[-1], time.thread_time() - before_s)
    assert min(longest_s) < 0.1
