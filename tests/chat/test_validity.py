"""The second opinion on a finished text: what is no schema, and what does not satisfy one."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from ggufd.chat.rendering.validity import check_json, validator_of
from ggufd.errors import EngineFailure, InvalidRequest

SCHEMA = json.dumps({"properties": {"a/b": {"items": {"type": "integer", "maximum": 3}}}, "required": ["a/b"]})


def test_names_of_dialects_are_read_kindly() -> None:
    schema = {"$schema": "https://json-schema.org/draft-04/schema", "minimum": 1, "exclusiveMinimum": True}
    check_json(json.dumps(schema), "2")
    with pytest.raises(EngineFailure, match="inimum"):
        check_json(json.dumps(schema), "1")


@pytest.mark.parametrize("text", ['{"a/b": [1, 2, 3]}', '{"a/b": [], "c": null}'])
def test_what_satisfies_a_schema(text: str) -> None:
    check_json(SCHEMA, text)


@pytest.mark.parametrize("number", ["-1E400", "1e99999999999", "-" + "9" * 5000, "-0E923547", "1" * 900])
def test_numbers_that_python_has_not_are_numbers(number: str) -> None:
    check_json('{"items": {"type": "number"}}', f"[{number}]")
    if number.strip("-").isdecimal():
        check_json('{"type": "integer"}', number)


@pytest.mark.parametrize("number", ["1e400", "1" * 5000])
def test_numbers_that_python_has_not_are_held_to_bounds(number: str) -> None:
    with pytest.raises(EngineFailure, match="maximum"):
        check_json('{"maximum": 5}', number)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a/b": [1, 777]}', "'#/properties/a~1b/items/maximum'"),
        ('{"a/b": [1, "777"]}', "'#/properties/a~1b/items/type'"),
        ("{}", "'#/required'"),
        ('{"a/b": [777', "no JSON"),
        ("", "no JSON"),
    ],
)
def test_what_does_not_and_nothing_of_it_is_said(text: str, said: str) -> None:
    with pytest.raises(EngineFailure) as caught:
        check_json(SCHEMA, text)
    assert said in caught.value.message
    assert "777" not in caught.value.message


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"properties": {"a": {"required": "b"}}}, "'#/properties/a/required'"),
        ({"items": {"minimum": "5"}}, "'#/items/minimum'"),
        ({"items": {"pattern": "("}}, "'#/items/pattern'"),
        ({"$schema": "https://example.org/own"}, "meta-schema"),
        ({"$ref": "https://example.org/other"}, "Retrieval is disabled"),
    ],
)
def test_what_is_no_schema(schema: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validator_of(json.dumps(schema))
    assert said in caught.value.message
    assert caught.value.param == "grammar"


@pytest.mark.timed
def test_a_pattern_cannot_take_for_ever() -> None:
    schema = json.dumps({"type": "string", "pattern": "^(a+)+$"})
    began_s = time.perf_counter()
    with pytest.raises(EngineFailure):
        check_json(schema, json.dumps("a" * 5000 + "b"))
    assert time.perf_counter() - began_s < 1


@pytest.mark.parametrize("draft", ["draft-06", "draft-07"])
def test_an_encoding_is_a_note_as_in_later_drafts(draft: str) -> None:
    inner = {"type": "string", "contentEncoding": "base64", "contentMediaType": "application/json"}
    schema = {"$schema": f"http://json-schema.org/{draft}/schema#", "properties": {"a": inner}}
    check_json(json.dumps(schema), '{"a": "no base64"}')
