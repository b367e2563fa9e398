"""JSON schemas: what is enforced, what is refused, and where it says so."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLTokenizer

from ggufd.errors import InvalidRequest
from ggufd.llama.grammar.grammar import Matcher, check_grammar, compile_grammar
from ggufd.llama.grammar.schema import MAX_LEVELS, Subschema, places

_BYTES = LLTokenizer("byte")


def takes(schema: Any, value: Any) -> bool:
    """Whether the value, written as Python writes it, is what the schema allows."""
    matcher = Matcher(_BYTES, compile_grammar("json_schema", json.dumps(schema)))
    return all(matcher.accept(byte) for byte in json.dumps(value).encode()) and matcher.is_accepting


def refusal(schema: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        check_grammar("json_schema", json.dumps(schema))
    return caught.value.message


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (True, [1, {"a": [None]}], []),
        ({"$schema": "https://json-schema.org/draft-07/schema", "type": "integer"}, [1], ["a"]),
        ({"$schema": "http://json-schema.org/draft/2020-12/schema#", "type": "integer"}, [1], ["a"]),
        ({"multipleOf": 0.25, "type": "number"}, [0.75], [0.8]),
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": False}, [[1, 1]], [["a"]]),
        ({"type": "object", "minProperties": 1, "unevaluatedProperties": True}, [{"a": 1}], [{}]),
        (
            {"$defs": {"n": {"properties": {"next": {"$ref": "#/$defs/n"}}, "type": "object"}}, "$ref": "#/$defs/n"},
            [{"next": {"next": {}}}],
            [{"next": 1}],
        ),
        (
            {"type": "object", "properties": {"uniqueItems": {"const": False}}, "required": ["uniqueItems"]},
            [{"uniqueItems": False}],
            [{}],
        ),
    ],
)
def test_what_is_enforced(schema: Any, good: list[Any], bad: list[Any]) -> None:
    check_grammar("json_schema", json.dumps(schema))
    assert all(takes(schema, value) for value in good)
    assert not any(takes(schema, value) for value in bad)


def test_json_is_written_in_one_way_so_that_nothing_blank_goes_on_for_ever() -> None:
    matcher = Matcher(_BYTES, compile_grammar("json_schema", '{"type": "object"}'))
    assert not all(matcher.accept(byte) for byte in b'{ "a":1}')


@pytest.mark.parametrize(
    ("schema", "place", "reason"),
    [
        ({"properties": {"tags": {"uniqueItems": True}}}, "#/properties/tags/uniqueItems", "not supported"),
        ({"$defs": {"x": {"anyOf": [{}, {"not": {}}]}}, "$ref": "#/$defs/x"}, "#/$defs/x/anyOf/1/not", "not supported"),
        ({"items": {"format": "color"}}, "#/items/format", "format"),
        ({"properties": {"a/b~": {"pattern": "(?=a)b"}}}, "#/properties/a~1b~0/pattern", "look-around"),
        ({"items": {"properties": {"a": {"$ref": "#/$defs/b"}}}}, "#/items/properties/a/$ref", "does not exist"),
        ({"items": {"$ref": "https://example.org/a"}}, "#/items/$ref", "not present"),
        ({"allOf": [{"oneOf": [{"type": "number"}, {"minimum": 3}]}]}, "#/allOf/0/oneOf", "Use 'anyOf'"),
        ({"prefixItems": [{"type": "foo"}]}, "#/prefixItems/0/type", "foo"),
        ({"properties": 5}, "#/properties", "must be an object"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "#", "no text can satisfy it"),
        ({"properties": {"a": {"x-guidance": {"lenient": True}}}}, "#/properties/a/x-guidance", "not supported"),
        # llguidance reads doubles, and dies of the second.
        ({"properties": {"id": {"const": 1234567890123456789}}}, "#/properties/id/const", "beyond 2**53"),
        ({"enum": [1, {"a": [-(2**63)]}]}, "#/enum", "beyond 2**53"),
    ],
)
def test_what_is_refused_names_the_place_and_the_keyword(schema: Any, place: str, reason: str) -> None:
    message = refusal(schema)
    assert f"'{place}'" in message
    assert reason in message


@pytest.mark.parametrize("schema", [False, [], 5, "{}", None])
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    assert "expected an object" in refusal(schema)


def chain(n: int) -> dict[str, Any]:
    definitions = {f"d{i}": {"properties": {"x": {"$ref": f"#/$defs/d{i - 1}"}}} for i in range(1, n)}
    return {"$defs": {"d0": {"type": "integer"}, **definitions}, "$ref": f"#/$defs/d{n - 1}"}


def product(n: int) -> dict[str, Any]:
    """2**n ways to be an object."""
    either = [{"anyOf": [{"properties": {f"{side}{i}": {"type": "null"}}} for side in "ab"]} for i in range(n)]
    return {"type": "object", "allOf": either}


@pytest.mark.parametrize(
    "schema",
    [
        chain(MAX_LEVELS),
        product(16),
        {"type": "integer", "multipleOf": 9999991},
        {"enum": [f"value {i}" for i in range(30_000)]},
        {"properties": {f"p{i}": {"type": "string"} for i in range(20_000)}},
        {"allOf": [{"type": "integer", "multipleOf": n} for n in (97, 89, 83)]},
    ],
    ids=["chain", "product", "multiple", "enum", "properties", "multiples"],
)
def test_hostile_schemas_hit_a_limit(schema: Any) -> None:
    assert len(refusal(schema)) < 700


def test_a_chain_of_references_within_the_limit_is_taken() -> None:
    check_grammar("json_schema", json.dumps(chain(MAX_LEVELS // 2 - 2)))


def test_every_schema_inside_a_schema_has_its_place() -> None:
    schema = {"properties": {"a": {"items": [{}, {"not": {}}]}}, "else": {}, "enum": [{"items": {}}]}
    pointers = [place.pointer for place in places(Subschema("#", schema))]
    assert pointers == [
        "#",
        "#/properties/a",
        "#/properties/a/items/0",
        "#/properties/a/items/1",
        "#/properties/a/items/1/not",
        "#/else",
    ]


_KEYWORDS = st.sampled_from(
    [
        "type",
        "properties",
        "items",
        "anyOf",
        "allOf",
        "enum",
        "const",
        "required",
        "pattern",
        "format",
        "$ref",
        "not",
        "minimum",
    ]
)
_VALUES = st.recursive(
    st.sampled_from([True, None, 0, -1.5, "string", "object", "#", "#/properties/a", "(", "date"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYWORDS | st.just("a"), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(_KEYWORDS, _VALUES, max_size=4))
def test_no_schema_does_anything_but_pass_or_be_refused(schema: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidRequest):
        check_grammar("json_schema", json.dumps(schema))
