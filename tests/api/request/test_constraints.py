"""Constraints and bans: under which names they come, and what the engine gets."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.api.request.constraints import of_choices
from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.messages.sampling import GrammarKind
from tests.support.fakes.api_client import running
from tests.support.fakes.fake_engine import FakeEngine, FakeText

OBJECT = {"type": "object"}
HELLO = [{"role": "user", "content": "Hi"}]
ROUTES = ("/v1/completions", "/v1/chat/completions")
GENERATING: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 9},
    "/completion": {"prompt": "a"},
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
    "/api/v1/generate": {"prompt": "a"},
    "/api/generate": {"prompt": "a", "stream": False},
    "/api/chat": {"messages": HELLO, "stream": False},
}
"""Every route that writes, with what it cannot do without."""


async def asked(path: str, **body: Any) -> EngineRequest:
    """What the engine gets."""
    async with running(text=FakeText(has_infill=True)) as api:
        await api.ok(path, **GENERATING[path], **body)
        (request,) = api.engine.requests
    return request


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize(
    ("body", "kind", "schema"),
    [
        ({"json_schema": OBJECT}, GrammarKind.JSON_SCHEMA, OBJECT),
        ({"json_schema": True}, GrammarKind.JSON_SCHEMA, True),
        ({"guided_json": json.dumps(OBJECT)}, GrammarKind.JSON_SCHEMA, OBJECT),
        ({"response_format": {"type": "json_object"}}, GrammarKind.JSON_SCHEMA, OBJECT),
        ({"response_format": {"type": "json_object", "schema": {"a": 1}}}, GrammarKind.JSON_SCHEMA, {"a": 1}),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": OBJECT},
                }
            },
            GrammarKind.JSON_SCHEMA,
            OBJECT,
        ),
        ({"response_format": {"type": "json_schema", "schema": OBJECT}}, GrammarKind.JSON_SCHEMA, OBJECT),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, GrammarKind.JSON_SCHEMA, {}),
        ({"response_format": {"type": "json_schema", "schema": {}}}, GrammarKind.JSON_SCHEMA, {}),
        ({"response_format": {"type": "json_object", "schema": {}}}, GrammarKind.JSON_SCHEMA, {}),
        ({"structured_outputs": {"json": OBJECT}}, GrammarKind.JSON_SCHEMA, OBJECT),
        ({"structured_outputs": {"json": False}}, GrammarKind.JSON_SCHEMA, False),
        ({"grammar": "", "json_schema": OBJECT}, GrammarKind.JSON_SCHEMA, OBJECT),
    ],
)
async def test_a_schema_under_each_of_its_names(path: str, body: Any, kind: GrammarKind, schema: Any) -> None:
    grammar = (await asked(path, **body)).sampling.grammar
    assert grammar is not None
    assert (grammar.kind, json.loads(grammar.text)) == (kind, schema)


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        ({"grammar": 'root ::= "a"'}, GrammarKind.GBNF, 'root ::= "a"'),
        ({"grammar_string": 'root ::= "a"'}, GrammarKind.GBNF, 'root ::= "a"'),
        ({"guided_grammar": 'root ::= "a"'}, GrammarKind.GBNF, 'root ::= "a"'),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, GrammarKind.GBNF, 'root ::= "a"'),
        ({"guided_regex": "a+"}, GrammarKind.REGEX, "a+"),
        ({"guided_choice": ["a", 'b"\n']}, GrammarKind.REGEX, "a|b\\x22\\x0a"),
        ({"structured_outputs": {"choice": ["a"]}}, GrammarKind.REGEX, "a"),
        ({"structured_outputs": {"regex": "a+"}}, GrammarKind.REGEX, "a+"),
    ],
)
async def test_other_constraints(path: str, body: Any, kind: GrammarKind, text: str) -> None:
    grammar = (await asked(path, **body)).sampling.grammar
    assert grammar is not None
    assert (grammar.kind, grammar.text) == (kind, text)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"text": {"format": {"type": "json_schema", "name": "x", "schema": OBJECT}}}),
        ("/v1/messages", {"output_config": {"format": {"type": "json_schema", "schema": OBJECT}}}),
        ("/v1/messages", {"output_format": {"type": "json_schema", "schema": OBJECT}}),
        ("/api/generate", {"format": OBJECT}),
        ("/api/chat", {"format": "json"}),
    ],
)
async def test_a_schema_under_an_apis_own_name(path: str, body: Any) -> None:
    grammar = (await asked(path, **body)).sampling.grammar
    assert grammar is not None
    assert json.loads(grammar.text) == OBJECT
    async with running() as api:
        second = {"response_format": {"type": "json_object"}}
        response = await api.post(path, {**GENERATING[path], **body, **second})
    assert response.status_code == 400, "two constraints were taken"


NOTHING: list[dict[str, Any]] = [
    {},
    {"grammar": ""},
    {"json_schema": None},
    {"json_schema": ""},
    {"guided_json": {}},
    {"guided_json": {}, "guided_grammar": ""},
    {"guided_json": {}, "guided_regex": "", "guided_choice": None, "grammar": ""},
    {"response_format": {"type": "text"}},
    {"response_format": {}},
    {"structured_outputs": {}},
    {"structured_outputs": {"json": {}}},
    {"structured_outputs": {"json": {}, "regex": "", "grammar": "", "choice": None, "json_object": False}},
]
"""What clients send whose users have set nothing."""

SCHEMAS_OF_THEIR_OWN = ("/completion", "/infill")
"""Where `json_schema: {}` is any JSON, as llama-server documents it."""


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("body", NOTHING, ids=str)
async def test_no_constraint(path: str, body: Any) -> None:
    assert (await asked(path, **body)).sampling.grammar is None


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("empty", [{}, "{}"])
async def test_an_empty_schema_sets_nothing_but_on_the_routes_that_call_it_any_json(path: str, empty: Any) -> None:
    grammar = (await asked(path, json_schema=empty)).sampling.grammar
    assert (grammar is not None) == (path in SCHEMAS_OF_THEIR_OWN)
    if grammar is not None:
        assert (grammar.kind, grammar.text) == (GrammarKind.JSON_SCHEMA, "{}")


@pytest.mark.parametrize("path", [path for path in GENERATING if path not in SCHEMAS_OF_THEIR_OWN])
@pytest.mark.parametrize(
    "body",
    [
        {"json_schema": {}, "grammar": 'root ::= "a"'},
        {"json_schema": {}, "guided_json": {}, "grammar_string": 'root ::= "a"'},
        {"guided_json": {}, "guided_grammar": 'root ::= "a"'},
        {"guided_json": {}, "response_format": {}, "structured_outputs": {"json": {}, "grammar": 'root ::= "a"'}},
    ],
    ids=str,
)
async def test_an_empty_schema_beside_a_grammar_leaves_the_grammar(path: str, body: Any) -> None:
    grammar = (await asked(path, **body)).sampling.grammar
    assert grammar is not None
    assert (grammar.kind, grammar.text) == (GrammarKind.GBNF, 'root ::= "a"')


async def test_ollamas_format_is_set_whatever_it_says() -> None:
    grammar = (await asked("/api/generate", format={})).sampling.grammar
    assert grammar is not None
    assert grammar.text == "{}"
    assert (await asked("/api/generate", format="")).sampling.grammar is None


async def test_an_empty_schema_beside_a_schema_leaves_the_schema() -> None:
    grammar = (await asked(ROUTES[0], json_schema={}, guided_json=OBJECT)).sampling.grammar
    assert grammar is not None
    assert json.loads(grammar.text) == OBJECT


async def test_an_empty_schema_leaves_the_biases() -> None:
    request = await asked(ROUTES[0], json_schema={}, logit_bias={"7": 3})
    assert (request.sampling.grammar, request.sampling.logit_bias) == (None, ((7, 3.0),))


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ({"jsno": OBJECT}, ".jsno"),
        ({"structural_tag": "{}"}, ".structural_tag"),
        ({"regex": 3}, ".regex"),
        ({"grammar": ["root"]}, ".grammar"),
        ({"choice": "a"}, ".choice"),
        ({"choice": []}, ".choice"),
        ({"json": 3}, ".json"),
        ({"json_object": "yes"}, ".json_object"),
        ({"regex": "a", "choice": ["b"]}, ""),
    ],
)
async def test_no_part_of_structured_outputs_is_passed_over(value: Any, param: str) -> None:
    async with running() as api:
        error = await api.refused(ROUTES[0], {"prompt": "a", "structured_outputs": value})
    assert error["param"] == f"structured_outputs{param}"


async def test_how_vllm_writes_json_is_no_constraint() -> None:
    body = {"structured_outputs": {"json": OBJECT, "regex": None, "disable_any_whitespace": True}}
    grammar = (await asked(ROUTES[0], **body)).sampling.grammar
    assert grammar is not None
    assert grammar.kind is GrammarKind.JSON_SCHEMA


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"guided_json": {"type": "nonsense"}}, "guided_json"),
        ({"json_schema": {"type": "nonsense"}}, "json_schema"),
        ({"guided_grammar": "x"}, "guided_grammar"),
        ({"guided_regex": "a", "grammar_string": "root"}, "guided_regex"),
        ({"structural_tag": "{}"}, "structural_tag"),
    ],
)
async def test_a_constraint_is_called_what_the_client_called_it(body: Any, param: str) -> None:
    async with running() as api:
        assert (await api.refused(ROUTES[0], {"prompt": "a", **body}))["param"] == param
        ollamas = {"prompt": "a", "format": {"type": "nonsense"}}
        assert (await api.refused("/api/generate", ollamas))["param"] == "format"


@pytest.mark.parametrize(
    "body",
    [
        {"json_schema": OBJECT, "guided_json": {"type": "array"}},
        {"grammar": 'root ::= "a"', "guided_grammar": 'root ::= "b"'},
        {"guided_regex": "a", "regex_pattern": "b"},
    ],
)
async def test_a_constraint_that_comes_twice_is_taken_only_if_both_say_the_same(body: dict[str, Any]) -> None:
    first, second = body
    async with running() as api:
        error = await api.refused(ROUTES[0], {"prompt": "a", **body})
        assert error["param"] == second
        await api.ok(ROUTES[0], prompt="a", **{first: body[first], second: body[first]})


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_text_that_its_schema_does_not_allow_is_an_error(path: str, stream: bool) -> None:
    """The grammar would have to be wrong; then nobody must take the text for an answer."""
    prompt = {"messages": HELLO} if "chat" in path else {"prompt": "a"}
    async with running(FakeEngine(("{}", "[1]"))) as api:
        api.text.invalid_texts.add("[1]")
        await api.ok(path, **prompt, json_schema=OBJECT)
        body = {**prompt, "json_schema": OBJECT, "n": 2}
        if stream:
            last = (await api.events(path, **body))[-1]
            assert last["error"]["code"] == "engine_failure"
        else:
            assert (await api.refused(path, body, 500))["code"] == "engine_failure"
        assert (OBJECT, "[1]") in api.text.checked


@pytest.mark.parametrize(
    "body",
    [
        {"json_schema": OBJECT, "stop": ["l"]},
        {"json_schema": OBJECT, "max_tokens": 2},
        {"grammar": 'root ::= "a"'},
        {"guided_choice": ["a"]},
        {},
    ],
    ids=str,
)
async def test_only_whole_texts_of_a_schema_are_checked(body: dict[str, Any]) -> None:
    async with running() as api:
        await api.ok(ROUTES[0], prompt="a", **body)
        assert api.text.checked == []


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=4))
def test_any_choices_are_a_grammar_that_is_read(choices: list[str]) -> None:
    pattern = of_choices(tuple(choices)).text
    assert all(re.fullmatch(pattern, choice) for choice in choices)
    assert not re.fullmatch(pattern, max(choices, key=len) + "x")


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"banned_strings": ["a b", "c"]}, ("a b", "c")),
        ({"banned_strings": '["a b", "c"]'}, ("a b", "c")),
        ({"banned_strings": '"a b"\n\nc '}, ("a b", "c")),
        ({"banned_strings": [""]}, ()),
        ({"banned_strings": []}, ()),
        ({"banned_phrases": ["c"]}, ("c",)),
        ({"anti_slop": ["c"]}, ("c",)),
        ({"anti_slop": True}, ()),
        ({}, ()),
    ],
)
async def test_banned_strings_in_every_spelling(path: str, body: Any, expected: tuple[str, ...]) -> None:
    request = await asked(path, **body)
    assert (request.banned_strings, request.banned_regexes, request.bans_case_sensitive) == (expected, (), False)


async def test_banned_regexes_and_their_case() -> None:
    request = await asked(ROUTES[0], banned_regex=["a+"], bans_case_sensitive=True)
    assert (request.banned_regexes, request.bans_case_sensitive) == (("a+",), True)


@pytest.mark.parametrize("path", ROUTES)
async def test_the_answer_counts_rewinds_only_when_something_is_banned(path: str) -> None:
    engine = FakeEngine()
    engine.rewinds = 3
    prompt = {"messages": HELLO} if "chat" in path else {"prompt": "a"}
    options = {"stream_options": {"include_usage": True}}
    async with running(engine) as api:
        assert (await api.ok(path, **prompt, n=2, banned_strings=["x"]))["usage"]["banned_rewinds"] == 6
        assert (await api.events(path, **prompt, banned_regex=["x"], **options))[-2]["usage"]["banned_rewinds"] == 3
        assert "banned_rewinds" not in (await api.ok(path, **prompt))["usage"]


@pytest.mark.parametrize("path", ROUTES)
async def test_progress_of_the_prompt_is_told_when_asked_for(path: str) -> None:
    prompt = {"messages": HELLO} if "chat" in path else {"prompt": "abc"}
    async with running() as api:
        first = (await api.events(path, **prompt, return_progress=True))[0]
        assert first["choices"] == []
        assert set(first["prompt_progress"]) == {"total", "cache", "processed", "time_ms"}
        assert not any("prompt_progress" in event for event in await api.events(path, **prompt))
