"""What holds for a request that does not say: constraint, biases, stop strings, kept tokens, special tokens."""

from __future__ import annotations

from typing import Any

import pytest

from ggufd.api.services.settings import OutputDefaults
from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.messages.sampling import Grammar, GrammarKind
from tests.support.fakes.api_client import running

YES = Grammar(GrammarKind.GBNF, 'root ::= "yes"')
OBJECT = {"type": "object"}
ROUTES = {
    "/completion": {"prompt": "a"},
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/api/v1/generate": {"prompt": "a"},
    "/api/generate": {"prompt": "a", "stream": False},
}


async def asked(path: str, body: dict[str, Any], **settings: Any) -> EngineRequest:
    """What the engine gets."""
    async with running(**settings) as api:
        await api.ok(path, **ROUTES[path], **body)
        return api.engine.requests[0]


@pytest.mark.parametrize("path", ROUTES)
async def test_the_servers_constraint_holds_on_every_route(path: str) -> None:
    async with running(sampling={"grammar": YES}) as api:
        await api.ok(path, **ROUTES[path])
        assert api.engine.requests[0].sampling.grammar == YES


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"json_schema": OBJECT}, GrammarKind.JSON_SCHEMA),
        ({"grammar": 'root ::= "no"'}, GrammarKind.GBNF),
        ({"response_format": {"type": "json_object"}}, GrammarKind.JSON_SCHEMA),
        ({"guided_regex": "a+"}, GrammarKind.REGEX),
    ],
)
async def test_a_requests_own_constraint_stands_in_for_it(body: dict[str, Any], kind: GrammarKind) -> None:
    grammar = (await asked("/v1/completions", body, sampling={"grammar": YES})).sampling.grammar
    assert grammar is not None
    assert grammar.kind is kind
    assert grammar != YES


async def test_plain_text_is_no_constraint() -> None:
    body = {"response_format": {"type": "text"}}
    assert (await asked("/v1/completions", body, sampling={"grammar": YES})).sampling.grammar == YES


async def test_two_constraints_of_a_request_are_refused_as_before() -> None:
    async with running(sampling={"grammar": YES}) as api:
        await api.refused("/completion", {"prompt": "a", "grammar": 'root ::= "a"', "json_schema": OBJECT})


async def test_a_requests_biases_replace_the_servers_and_bans_are_added() -> None:
    default = {"logit_bias": ((5, -1.0),)}
    assert (await asked("/completion", {}, sampling=default)).sampling.logit_bias == ((5, -1.0),)
    own = await asked("/completion", {"logit_bias": [[6, 2]]}, sampling=default)
    assert own.sampling.logit_bias == ((6, 2.0),)
    banned = await asked("/completion", {"custom_token_bans": [7]}, sampling=default)
    assert banned.sampling.logit_bias == ((5, -1.0), (7, float("-inf")))


async def test_stop_strings_kept_tokens_and_special_tokens() -> None:
    output = OutputDefaults(stop=("END",), n_keep=2, special=True)
    default = await asked("/completion", {}, output=output)
    assert (default.stop, default.n_keep, default.skip_special_tokens) == (("END",), 2, False)
    body = {"stop": ["x"], "n_keep": 0, "skip_special_tokens": True}
    own = await asked("/completion", body, output=output)
    assert (own.stop, own.n_keep, own.skip_special_tokens) == (("x",), 0, True)
    assert (await asked("/completion", {}, output=OutputDefaults(n_keep=-1))).n_keep == 1


async def test_without_any_nothing_changes() -> None:
    plain = await asked("/completion", {})
    assert (plain.stop, plain.n_keep, plain.skip_special_tokens) == ((), 0, True)
    assert (plain.sampling.grammar, plain.sampling.logit_bias) == (None, ())


@pytest.mark.parametrize(("body", "expected"), [({}, False), ({"continue_final_message": True}, True)])
async def test_an_assistants_last_message_is_continued_only_where_the_server_does(
    body: dict[str, Any], expected: bool
) -> None:
    async with running(output=OutputDefaults(prefill_assistant=False)) as api:
        await api.ok("/v1/chat/completions", messages=[{"role": "assistant", "content": "a"}], **body)
        assert api.text.chats[0].continue_final_message is expected


async def test_the_norm_of_vectors() -> None:
    async with running(output=OutputDefaults(embd_normalize=-1)) as api:
        assert (await api.ok("/embedding", content="ab"))[0]["embedding"] == [[3, 97, 3, 4]]
        (normal,) = await api.ok("/embedding", content="ab", embd_normalize=2)
        assert normal["embedding"][0][0] < 1
