"""Every client's contract, in each version: over the fakes, and against the real server with the real model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.messages.sampling import SamplingParams
from ggufd.engine.sampling.sampling import active_samplers
from tests.support.contract import Exchange, check, exchanges, found, read
from tests.support.fakes.api_client import running
from tests.support.limits import ANSWER_S
from tests.support.programs.live_server import LiveServer, live_server

ALL = exchanges()

ROUTES = {
    ("GET", "/v1/models"),
    ("GET", "/models"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/chat/completions"),
    ("POST", "/completion"),
    ("GET", "/props"),
    ("POST", "/tokenize"),
    ("POST", "/v1/completions"),
    ("POST", "/completions"),
    ("POST", "/v1/embeddings"),
    ("GET", "/v1/internal/model/info"),
    ("POST", "/v1/internal/encode"),
    ("POST", "/api/extra/tokencount"),
    ("POST", "/api/extra/abort"),
    ("GET", "/v1/model/list"),
    ("GET", "/v1/model"),
    ("POST", "/v1/token/encode"),
    ("POST", "/v1/tokenize"),
    ("GET", "/api/tags"),
    ("POST", "/api/generate"),
    ("GET", "/slots"),
    ("POST", "/slots/0"),
    ("GET", "/api/v1/info/version"),
    ("GET", "/api/extra/version"),
    ("GET", "/api/v1/model"),
    ("POST", "/api/v1/generate"),
    ("POST", "/api/extra/generate/stream"),
}
"""Every route that one of the clients needs, in both versions."""


@pytest.mark.parametrize("version", ["1.12.6", "1.18.0"])
def test_every_route_that_a_client_needs_is_in_the_contract(version: str) -> None:
    asked = {(one.method, one.path.partition("?")[0]) for one in ALL if one.client.endswith(version)}
    assert asked >= ROUTES


def test_paths_of_checks_find_what_they_say() -> None:
    data = {"a": [{"b": 1}, {"b": 2}, {"c": None}]}
    assert list(found(data, "a[*].b")) == [1, 2]
    assert list(found(data, "a[-1]")) == [{"c": None}]
    assert list(found(data, "a[9].b")) == list(found(data, "a[2].c")) == []


@pytest.mark.parametrize("exchange", ALL, ids=str)
async def test_over_the_fakes(exchange: Exchange) -> None:
    async with running() as api:
        response = await api.http.request(
            exchange.method, exchange.path, content=exchange.content, headers=exchange.headers
        )
    check(exchange, response.status_code, dict(response.headers), response.text)


DEFAULTS = [one for one in ALL if one.is_default]

SLIDERS = (
    "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "dry_allowed_length", "dry_base",
    "dry_penalty_last_n", "dry_sequence_breakers", "xtc_threshold", "mirostat_tau", "mirostat_eta", "samplers",
)  # fmt: skip
"""Samplers that have a value by default, or one that does nothing while another is off."""


def test_every_client_that_writes_has_a_default_request() -> None:
    clients = {one.client for one in ALL if one.client.partition(" ")[0] != "vectors"}
    assert {one.client for one in DEFAULTS} == clients


@pytest.mark.parametrize("exchange", DEFAULTS, ids=str)
async def test_a_default_request_sets_nothing(exchange: Exchange) -> None:
    async with running() as api:
        response = await api.http.request(
            exchange.method, exchange.path, content=exchange.content, headers=exchange.headers
        )
        (request,) = api.engine.requests
    assert "x-ggufd-ignored" not in response.headers
    sampling = request.sampling
    assert sampling.adaptive_target < 0
    assert sampling.top_n_sigma <= 0
    off = SamplingParams(adaptive_target=sampling.adaptive_target, top_n_sigma=sampling.top_n_sigma)
    assert sampling == dataclasses.replace(off, **{name: getattr(sampling, name) for name in SLIDERS})
    assert set(active_samplers(sampling)) <= {"penalties", "top_k", "top_p", "temperature"}
    plain = EngineRequest(request.request_id, request.prompt)
    changed = {name for name in EngineRequest.__slots__ if getattr(request, name) != getattr(plain, name)}
    assert changed <= {"sampling", "max_tokens", "stop", "principal"}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server("--ctx-size", "2048") as running:
        yield running


LIVE = [one for one in ALL if one.client.endswith("1.18.0") or one.client.startswith(("llamacpp", "custom"))]
"""What the real server is asked too: of clients whose versions read the same replies, the newer."""


@pytest.mark.e2e
@pytest.mark.parametrize("exchange", LIVE, ids=str)
def test_against_the_real_server(exchange: Exchange, server: LiveServer) -> None:
    response = httpx.request(
        exchange.method,
        server.url + exchange.path,
        content=exchange.greedy_content,
        headers=exchange.headers,
        timeout=120,
        trust_env=False,
    )
    check(exchange, response.status_code, dict(response.headers), response.text)


N_SAID = 16


def said(server: LiveServer, exchange: Exchange, body: dict[str, Any]) -> str:
    response = httpx.post(server.url + exchange.path, json=body, headers=exchange.headers, timeout=120, trust_env=False)
    assert response.status_code == 200, response.text
    (path,) = (one["text"] for one in exchange.checks if "text" in one)
    return "".join(map(str, found(read(exchange, response.text), path)))


@pytest.mark.e2e
@pytest.mark.parametrize("exchange", DEFAULTS, ids=str)
def test_a_default_request_gets_prose(exchange: Exchange, server: LiveServer) -> None:
    text = said(server, exchange, exchange.greedy(N_SAID))
    assert text == said(server, exchange, exchange.bare(N_SAID))
    assert len(text.split()) > 3
    assert not text.lstrip().startswith(('"', "{", "[")), text


def ask(server: LiveServer, path: str, **body: Any) -> Any:
    response = httpx.post(server.url + path, json=body, timeout=120, trust_env=False)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.e2e
def test_structured_output_is_nothing_but_json(server: LiveServer) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    answer = ask(
        server,
        "/v1/chat/completions",
        messages=[{"role": "user", "content": "Is water wet?"}],
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        temperature=0,
        max_tokens=40,
    )
    assert set(json.loads(answer["choices"][0]["message"]["content"])) == {"ok"}


def written(server: LiveServer, **body: Any) -> str:
    wanted = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
    text: str = ask(server, "/v1/completions", **wanted, **body)["choices"][0]["text"]
    return text


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["json_schema", "guided_json"])
def test_an_empty_schema_leaves_the_text_the_biases_and_the_grammar(server: LiveServer, name: str) -> None:
    plain, empty = written(server), {name: {}}
    assert plain[0] not in '"{['
    assert written(server, **empty) == plain
    (token,) = ask(server, "/tokenize", content=" in")["tokens"]
    assert written(server, **empty, logit_bias={str(token): 100}) == " in" * 12
    assert written(server, **empty, grammar='root ::= " yes" | " no"') in (" yes", " no")


@pytest.mark.e2e
def test_any_json_can_still_be_asked_for(server: LiveServer) -> None:
    for schema in ({"json_schema": True}, {"response_format": {"type": "json_schema", "schema": {}}}):
        assert written(server, **schema)[0] in '"{['
    answer = ask(server, "/completion", prompt="Once upon a time", n_predict=12, temperature=0, json_schema={})
    assert answer["content"][0] in '"{['


@pytest.mark.e2e
def test_letters_are_samplers_and_nonsense_is_refused(server: LiveServer) -> None:
    body = {"prompt": "Once upon a time", "n_predict": 2, "samplers": "kmt"}
    answer = ask(server, "/completion", **body)
    assert answer["generation_settings"]["samplers"] == ["top_k", "min_p", "temperature"]
    refused = httpx.post(
        f"{server.url}/completion", json=body | {"samplers": ["nonsense"]}, trust_env=False, timeout=ANSWER_S
    )
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "samplers"


@pytest.mark.e2e
@pytest.mark.parametrize(
    "changes", [{}, {"xtc_probability": 0.5, "xtc_threshold": 0.02}, {"grammar": "root ::= [a-z ]*"}]
)
def test_probabilities_after_sampling_are_of_what_was_left(server: LiveServer, changes: dict[str, Any]) -> None:
    body = {"prompt": "Once upon a time", "n_predict": 8, "top_k": 3, "temperature": 0.7, "n_probs": 9, "seed": 1}
    answer = ask(server, "/completion", **body, post_sampling_probs=True, **changes)
    assert answer["content"] == ask(server, "/completion", **body, **changes)["content"]
    entries = answer["completion_probabilities"]
    assert len(entries) == 8
    for entry in entries:
        assert len(entry["top_probs"]) <= 3
        assert sum(other["prob"] for other in entry["top_probs"]) == pytest.approx(1)
        assert entry["prob"] == next(other["prob"] for other in entry["top_probs"] if other["id"] == entry["id"])


@pytest.mark.e2e
def test_a_stop_string_stays_where_koboldcpps_switch_says_so(server: LiveServer) -> None:
    body = {"prompt": "Once upon a time", "max_length": 12, "temperature": 0}
    text = ask(server, "/api/v1/generate", **body)["results"][0]["text"]
    stop = text.split()[3]
    cut = ask(server, "/api/v1/generate", **body, stop_sequence=[stop])["results"][0]["text"]
    kept = ask(server, "/api/v1/generate", **body, stop_sequence=[stop], trim_stop=False)["results"][0]["text"]
    assert cut == text[: text.index(stop)]
    assert kept == cut + stop


@pytest.mark.e2e
def test_a_banned_phrase_is_taken_back_and_counted(server: LiveServer) -> None:
    body = {"prompt": "The capital of France is", "temperature": 0, "n_predict": 6}
    assert "Paris" in ask(server, "/completion", **body)["content"]
    answer = ask(server, "/completion", **body, banned_strings=["paris"])
    assert "paris" not in answer["content"].lower()
    assert answer["timings"]["banned_rewinds"] >= 1


@pytest.mark.e2e
def test_slots_keep_what_was_computed_until_they_are_erased(server: LiveServer) -> None:
    def kept() -> list[int]:
        return [slot["n_past"] for slot in httpx.get(f"{server.url}/slots", trust_env=False, timeout=ANSWER_S).json()]

    ask(server, "/completion", prompt="Once upon a time", n_predict=2)
    assert any(kept())
    for slot in range(len(kept())):
        httpx.post(f"{server.url}/slots/{slot}?action=erase", trust_env=False, timeout=ANSWER_S).raise_for_status()
    assert not any(kept())
