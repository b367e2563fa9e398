"""Models, health, tokens, keys, documentation, and what paths and methods without a route get."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from ggufd.api.app import create_app
from ggufd.api.http.record import RequestRecord
from ggufd.api.request.validation import Body
from ggufd.api.services.settings import ApiConfig
from ggufd.errors import QueueFull
from tests.support.fakes.api_client import FakeModels, error_of, ring_of, running
from tests.support.fakes.fake_engine import FakeEngine, FakeState, FakeText, make_ready


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1//models/"])
async def test_the_one_model_is_listed(path: str) -> None:
    async with running(created=5) as api:
        listing = (await api.http.get(path)).json()
    assert listing["object"] == "list"
    (model,) = listing["data"]
    assert (model["id"], model["object"], model["created"]) == ("fake-model", "model", 5)
    assert model["meta"]["n_ctx"] == 512
    assert {"vocab_type", "n_vocab", "n_ctx_train", "n_params", "size"} <= set(model["meta"])


async def test_a_model_is_found_by_id_and_alias() -> None:
    async with running(model_id="org/fake", model_aliases=("fake.gguf",)) as api:
        for name in ("org/fake", "fake.gguf"):
            assert (await api.http.get(f"/v1/models/{name}")).json()["id"] == "org/fake"
        error = error_of(await api.http.get("/v1/models/other"), 404)
        assert "org/fake" in error["message"]


async def test_a_model_may_have_several_names_and_tags() -> None:
    names = {"model_id": "code", "model_aliases": ("code", "fim"), "model_tags": ("small",), "model_file": "m.gguf"}
    async with running(**names) as api:
        (model,) = (await api.http.get("/v1/models")).json()["data"]
        assert (model["id"], model["aliases"], model["tags"]) == ("code", ["code", "fim"], ["small"])
        for name in ("code", "fim", "m.gguf"):
            assert (await api.http.get(f"/v1/models/{name}")).status_code == 200


async def test_the_list_is_there_while_the_model_loads() -> None:
    async with running() as api:
        api.engine.ready = None
        (model,) = (await api.http.get("/v1/models")).json()["data"]
        assert (model["id"], model["meta"]) == ("fake-model", None)


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/ready", "/v1/health"])
async def test_health_tells_the_engines_state(path: str) -> None:
    async with running() as api:
        response = await api.http.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
        for state in (FakeState.LOADING, FakeState.DRAINING):
            api.engine.state = state
            response = await api.http.get(path)
            assert response.status_code == 503
            assert response.json()["status"] == state.value
            assert response.json()["error"]["code"] == state.value
        assert (await api.http.get("/health/live")).json() == {"status": "ok"}


async def test_a_full_queue_is_healthy_but_not_ready() -> None:
    async with running() as api:
        api.engine.refusal = QueueFull("full")
        for path in ("/ready", "/health/ready"):
            response = await api.http.get(path)
            assert (response.status_code, response.json()["status"]) == (503, "queue_full")
            assert response.headers["retry-after"]
        assert (await api.http.get("/health")).status_code == 200
        api.engine.refusal = None
        assert (await api.http.get("/ready")).status_code == 200


async def test_a_full_queue_may_leave_the_server_ready() -> None:
    async with running(ready_when_full=True) as api:
        api.engine.refusal = QueueFull("full")
        response = await api.http.get("/ready")
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
        api.engine.state = FakeState.DRAINING
        assert (await api.http.get("/ready")).json()["status"] == "draining"


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/ready", "/v1/health"])
async def test_a_server_without_its_text_process_is_not_well(path: str) -> None:
    async with running() as api:
        api.text.is_running = False
        response = await api.http.get(path)
        assert (response.status_code, response.json()["status"]) == (503, "text_restarting")
        message = response.json()["error"]["message"]
        assert message == "The server takes no requests now: the text process is being started again."
        assert (await api.http.get("/health/live")).status_code == 200
        api.text.is_running = True
        assert (await api.http.get(path)).status_code == 200


async def test_a_reason_that_is_a_sentence_gets_no_second_full_stop() -> None:
    async with running() as api:
        api.engine.state, api.engine.trouble = FakeState.SLEEPING, "the file is gone."
        message = (await api.http.get("/health")).json()["error"]["message"]
    assert message == "The server takes no requests now: the file is gone."


@pytest.mark.parametrize("state", [FakeState.SLEEPING, FakeState.WAKING])
async def test_a_model_that_wakes_for_a_request_is_healthy(state: FakeState) -> None:
    async with running() as api:
        api.engine.state = state
        response = await api.http.get("/health")
        assert (response.status_code, response.json()) == (200, {"status": state.value})


@pytest.mark.parametrize("state", [FakeState.SLEEPING, FakeState.WAKING])
async def test_a_model_that_could_not_wake_is_not_well(state: FakeState) -> None:
    async with running() as api:
        api.engine.state, api.engine.trouble = state, "the model could not be loaded again: m.gguf: no such file"
        for path in ("/health", "/ready", "/v1/health", "/health/ready"):
            response = await api.http.get(path)
            assert (response.status_code, response.json()["status"]) == (503, "wake_failed")
            message = response.json()["error"]["message"]
            assert message == f"The server takes no requests now: {api.engine.trouble}."
        assert (await api.http.get("/health/live")).status_code == 200


async def test_the_slots_of_a_sleeper_are_idle_and_empty() -> None:
    async with running() as api:
        api.engine.state = FakeState.SLEEPING
        slots = (await api.http.get("/slots")).json()
    assert [(slot["id"], slot["is_processing"], slot["n_tokens"]) for slot in slots] == [
        (at, False, 0) for at in range(4)
    ]


async def test_health_waits_for_the_text_process_too() -> None:
    async with running() as api:
        del api.text.info
        response = await api.http.get("/health")
        assert (response.status_code, response.json()["status"]) == (503, "loading")
        assert error_of(await api.post("/tokenize", {"content": "a"}), 503)["code"] == "engine_down"


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models", "/v1/models/fake-model"])
async def test_head_is_answered_where_get_is(path: str) -> None:
    async with running() as api:
        assert (await api.http.head(path)).status_code == 200


async def test_behind_a_proxys_prefix_everything_is_found() -> None:
    async with running(root_path="/llm", keys=ring_of("k")) as api:
        assert (await api.http.get("/llm/health")).status_code == 200
        for path in ("/llm/", "/llm//", "/llm/v1/models/", "/llm/models", "/llm/llm/models", "/models"):
            assert (await api.http.get(path, headers={"x-api-key": "k"})).status_code == 200
            assert (await api.http.get(path)).status_code == 401


@pytest.mark.parametrize("sent", ["/llm", "/llm/llm"], ids=["the proxy took it off", "the proxy left it on"])
async def test_behind_a_proxys_prefix_records_and_errors_are_those_of_the_route(sent: str) -> None:
    """A server that is told the prefix puts it before every path."""
    records: list[RequestRecord] = []
    async with running(root_path="/llm", sinks=[records.append]) as api:
        assert (await api.http.get(f"{sent}/health")).status_code == 200
        assert (await api.http.head(f"{sent}/v1//models/")).status_code == 200
        refused = await api.post(f"{sent}/v1/messages", {})
        assert refused.json()["type"] == "error"
        assert refused.headers["request-id"]
    paths = [(record.method, record.path) for record in records]
    assert paths == [("GET", "/health"), ("HEAD", "/v1/models"), ("POST", "/v1/messages")]


async def test_options_tells_the_methods() -> None:
    async with running(keys=ring_of("k")) as api:
        response = await api.http.options("/v1/completions")
        assert (response.status_code, response.headers["allow"]) == (204, "POST")


async def test_browsers_elsewhere_may_ask_when_their_origin_is_configured() -> None:
    headers = {"origin": "http://page", "access-control-request-method": "POST"}
    async with running(cors_origins=("http://page",), keys=ring_of("k")) as api:
        response = await api.http.options("/v1/completions", headers=headers)
        assert response.headers["access-control-allow-origin"] == "http://page"
        response = await api.http.get("/v1/models", headers=headers)
        assert response.status_code == 401
        assert response.headers["access-control-allow-origin"] == "http://page"


@pytest.mark.parametrize(("method", "path"), [("GET", "/nope"), ("POST", "/v1/nope"), ("DELETE", "/v1")])
async def test_no_such_route_is_a_404_in_the_error_shape(method: str, path: str) -> None:
    async with running() as api:
        assert error_of(await api.http.request(method, path), 404)["type"] == "not_found_error"


async def test_tokenize_counts_in_every_familys_words() -> None:
    async with running(text=FakeText(adds_bos=True)) as api:
        expected = {"tokens": [97, 98], "count": 2, "length": 2, "max_model_len": 512}
        assert await api.ok("/tokenize", content="ab") == expected
        assert await api.ok("/v1/tokenize", prompt="ab", model="undefined") == expected
        assert (await api.ok("/tokenize", content="ab", add_special=True))["tokens"] == [256, 97, 98]
        assert (await api.ok("/tokenize", content=""))["tokens"] == []
        assert (await api.ok("/tokenize", content="<s>"))["tokens"] == [256]
        assert (await api.ok("/tokenize", content="<s>", parse_special=False))["tokens"] == [60, 115, 62]


async def test_pieces_are_text_or_bytes() -> None:
    async with running() as api:
        tokens = (await api.ok("/tokenize", content="aé", with_pieces=True))["tokens"]
        assert tokens == [{"id": 97, "piece": "a"}, {"id": 0xC3, "piece": [0xC3]}, {"id": 0xA9, "piece": [0xA9]}]


async def test_detokenize() -> None:
    async with running() as api:
        assert (await api.ok("/detokenize", tokens=[97, 98]))["content"] == "ab"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": 3}, "content"),
        ("/tokenize", {"content": "a", "add_special": "yes"}, "add_special"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [258]}, "tokens"),
    ],
)
async def test_wrong_tokens_are_named(path: str, body: dict[str, Any], param: str) -> None:
    async with running() as api:
        assert (await api.refused(path, body))["param"] == param


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer secret"},
        {"authorization": "bearer  secret "},
        {"x-api-key": "other"},
        {"authorization": "Bearer ", "x-api-key": "secret"},
    ],
)
async def test_a_key_lets_in(headers: dict[str, str]) -> None:
    async with running(keys=ring_of("secret", "other")) as api:
        assert (await api.http.get("/v1/models", headers=headers)).status_code == 200
        response = await api.post("/v1/completions", {"prompt": "a"}, headers=headers)
        assert response.status_code == 200
        name = api.engine.requests[0].principal.name
        assert name
        assert "secret" not in name


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic secret"},
        {"authorization": "secret"},
        {"x-api-key": "sécret".encode("latin-1").decode("latin-1")},
    ],
)
async def test_without_a_right_key_nobody_is_let_in(headers: dict[str, str]) -> None:
    async with running(keys=ring_of("secret")) as api:
        raw = {name: value.encode("latin-1") for name, value in headers.items()}
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("GET", "/"), ("GET", "/nope")):
            response = await api.http.request(method, path, headers=raw)
            assert error_of(response, 401)["code"] == "invalid_api_key"
            assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "path", ["/health", "/health/live", "/ready", "/docs", "/openapi.json", "http://test//health/"]
)
async def test_probes_and_documentation_need_no_key(path: str) -> None:
    async with running(keys=ring_of("secret")) as api:
        assert (await api.http.get(path)).status_code == 200


async def test_the_documentation_page_needs_no_other_server_and_no_key() -> None:
    async with running(keys=ring_of("secret")) as api:
        page = (await api.http.get("/docs")).text
        addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert len(addresses) >= 3
        for address in addresses:
            assert (await api.http.get(address)).status_code == 200, address


@pytest.mark.parametrize("value", ["Bearer ", "Bearer whatever", "nonsense"])
async def test_without_configured_keys_any_header_is_fine(value: str) -> None:
    async with running() as api:
        assert (await api.http.get("/v1/models", headers={"authorization": value})).status_code == 200


async def test_every_route_with_a_body_is_documented_with_examples_that_work() -> None:
    async with running(models=FakeModels(), text=FakeText(has_infill=True)) as api:
        document = (await api.http.get("/openapi.json")).json()
        posts = {path: item["post"] for path, item in document["paths"].items() if "post" in item}
        assert all({"400", "401", "413", "503"} <= set(operation["responses"]) for operation in posts.values())
        # They need a folder, and what was uploaded before.
        for path in ("/v1/files", "/v1/batches", "/v1/batches/{batch_id}/cancel"):
            del posts[path]
        assert {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"} <= set(posts)
        for path, operation in posts.items():
            body = operation["requestBody"]["content"]["application/json"]
            assert body["examples"]
            # Scores come from a model that gives nothing else.
            ready = make_ready(pooling="rank" if path == "/v1/rerank" else "mean")
            api.engine.ready = replace(ready, embedding=replace(ready.embedding, n_ctx=128))
            for example in body["examples"].values():
                assert (await api.post(path, example["value"])).status_code == 200, path


async def test_the_schemas_of_the_document_are_all_there_and_each_its_own() -> None:
    async with running() as api:
        text = (await api.http.get("/openapi.json")).text
    schemas = json.loads(text)["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/(\w+)"', text)) <= set(schemas)
    assert "#/$defs" not in text
    names = [model.__name__ for model in descendants(Body)]
    assert sorted(names) == sorted(set(names))
    assert set(names) == set(schemas) - {"Error"}
    assert {"messages", "temperature", "tools"} <= set(schemas["ChatRequest"]["properties"])


def descendants(model: type[Body]) -> list[type[Body]]:
    return [found for one in model.__subclasses__() for found in (one, *descendants(one))]


async def test_openais_routes_are_shown_first_and_the_operators_last() -> None:
    async with running() as api:
        document = (await api.http.get("/openapi.json")).json()
    names = [tag["name"] for tag in document["tags"]]
    used = {tag for item in document["paths"].values() for one in item.values() for tag in one["tags"]}
    assert (names[0], names[-1]) == ("OpenAI", "operations")
    assert sorted(names) == sorted(used)


async def test_the_document_tells_no_error_shape_but_ours() -> None:
    async with running() as api:
        document = (await api.http.get("/openapi.json")).text
    assert "HTTPValidationError" not in document
    assert "422" not in document


async def test_applications_share_nothing() -> None:
    first, second = (create_app(FakeEngine(), FakeText(), ApiConfig(model_id=name)) for name in ("one", "two"))
    assert first.state.services.config.model_id == "one"
    assert second.state.services.config.model_id == "two"
