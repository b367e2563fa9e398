"""The other families' routes over the fakes: KoboldCpp, text-generation-webui, tabbyAPI, vLLM, Ollama, the page."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from ggufd.api.app import create_app
from ggufd.api.services.settings import ApiConfig
from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.messages.sampling import GrammarKind
from ggufd.errors import EngineFailure
from tests.support.fakes.api_client import Api, error_of, ring_of, running
from tests.support.fakes.fake_engine import BOS, FakeEngine, FakeText
from tests.support.limits import ANSWER_S

HELLO = [{"role": "user", "content": "Hi"}]


def lines_of(text: str) -> list[Any]:
    """The objects of a stream of lines."""
    return [json.loads(line) for line in text.splitlines()]


# --- KoboldCpp --------------------------------------------------------------------------------------------------------


async def kobold(**body: Any) -> EngineRequest:
    """What the engine gets of a KoboldAI request."""
    async with running(text=FakeText(adds_bos=True)) as api:
        await api.ok("/api/v1/generate", **{"prompt": "a"} | body)
        return api.engine.requests[0]


@pytest.mark.parametrize("path", ["/api/v1/generate", "/api/latest/generate"])
async def test_kobold_generates(path: str) -> None:
    async with running() as api:
        (result,) = (await api.ok(path, prompt="abc"))["results"]
    assert result == {"text": "Hello world", "finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 11}


async def test_kobolds_prompts_are_never_cut() -> None:
    async with running() as api:
        await api.ok("/api/v1/generate", prompt="a" * 200, max_context_length=64, max_length=32)
        assert len(api.engine.requests[0].prompt) == 200
        error = await api.refused("/api/v1/generate", {"prompt": "a" * 600, "max_context_length": 64})
        assert error["code"] == "context_length_exceeded"
        assert "512" in error["message"]
        assert "600" in error["message"]


async def test_kobold_answers_several_times() -> None:
    async with running(FakeEngine(["x", "yy"])) as api:
        assert [one["text"] for one in (await api.ok("/api/v1/generate", prompt="a", n=2))["results"]] == ["x", "yy"]
        assert (await api.refused("/api/extra/generate/stream", {"prompt": "a", "n": 2}))["param"] == "n"


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ({"max_length": 7, "max_tokens": 9}, "max_tokens", 7),
        ({"stop_sequence": ["x"], "stop": ["y"]}, "stop", ("x",)),
        ({"memory": "m", "prompt": "a"}, "prompt", (BOS, 109, 97)),
        ({"banned_tokens": ["a shiver"]}, "banned_strings", ("a shiver",)),
        ({"banned_strings": ["x"], "banned_tokens": ["y"]}, "banned_strings", ("x",)),
    ],
)
async def test_kobolds_names(body: Any, field: str, value: Any) -> None:
    assert getattr(await kobold(**body), field) == value


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ({"rep_pen": 1.1, "repeat_penalty": 1.3}, "repeat_penalty", 1.1),
        ({"rep_pen_range": 0}, "repeat_last_n", -1),
        ({"rep_pen_range": 128, "repeat_last_n": 5}, "repeat_last_n", 128),
        ({"typical": 0.5}, "typ_p", 0.5),
        ({"sampler_seed": 5, "seed": 6}, "seed", 5),
        ({"use_default_badwordsids": True}, "ignore_eos", True),
        ({"bypass_eos": True}, "ignore_eos", True),
        (
            {"sampler_order": [6, 0, 1, 3, 4, 2, 5]},
            "samplers",
            ("penalties", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "temperature"),
        ),
        ({"sampler_order": [5, 0]}, "samplers", ("temperature", "top_k")),
    ],
)
async def test_kobolds_samplers(body: Any, field: str, value: Any) -> None:
    assert getattr((await kobold(**body)).sampling, field) == value


async def test_kobold_streams_named_events() -> None:
    async with running(FakeEngine(["a\u2028b"])) as api:
        response = await api.post("/api/extra/generate/stream", {"prompt": "a"})
    assert "\u2028" not in response.text
    blocks = [block for block in response.text.split("\n\n") if block]
    assert all(block.startswith("event: message\ndata: {") for block in blocks)
    data = [json.loads(block.partition("data: ")[2]) for block in blocks]
    assert "".join(item["token"] for item in data) == "a\u2028b"
    assert [item["finish_reason"] for item in data] == [None, None, "stop"]


async def until(api: Api, n_running: int) -> None:
    """Wait until so many requests are open."""
    while len(api.engine.open) != n_running:  # noqa: ASYNC110 - the fake tells nobody
        await asyncio.sleep(0.001)


ABORTED = [
    ("/api/v1/generate", {"prompt": "a"}),
    ("/v1/completions", {"prompt": "a"}),
    ("/v1/completions", {"prompt": ["a", "b"], "n": 2}),
    ("/v1/chat/completions", {"messages": HELLO}),
    ("/completion", {"prompt": "a"}),
    ("/api/generate", {"prompt": "a", "stream": False}),
]


@pytest.mark.parametrize("abort", ["/api/extra/abort", "/v1/internal/stop-generation"])
@pytest.mark.parametrize(("path", "body"), ABORTED)
async def test_abort_ends_an_answer_with_what_there_is(path: str, body: Any, abort: str) -> None:
    engine = FakeEngine()
    engine.gate.clear()
    async with running(engine) as api:
        answering = asyncio.create_task(api.post(path, body))
        await until(api, len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1)
        assert (await api.http.post(abort)).status_code == 200
        assert (await asyncio.wait_for(answering, ANSWER_S)).status_code == 200
        assert engine.aborted
        assert not engine.open


@pytest.mark.parametrize("path", ["/v1/completions", "/completion", "/api/extra/generate/stream", "/api/generate"])
async def test_abort_ends_a_stream_in_order(path: str) -> None:
    engine = FakeEngine(["x" * 1000])
    engine.step_s = 0.001
    async with running(engine) as api:
        streaming = asyncio.create_task(api.post(path, {"prompt": "a", "stream": True}))
        await until(api, 1)
        await asyncio.sleep(0.01)
        assert (await api.http.post("/api/extra/abort")).json() == {"success": True, "n_aborted": 1}
        response = await asyncio.wait_for(streaming, ANSWER_S)
    assert response.status_code == 200
    assert "error" not in response.text
    assert 0 < response.text.count('"x"') < 1000


async def test_abort_touches_only_what_its_owner_started() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    async with running(engine, keys=ring_of("one", "two")) as api:
        headers = {name: {"authorization": f"Bearer {name}"} for name in ("one", "two")}
        mine = asyncio.create_task(api.post("/v1/completions", {"prompt": "a"}, headers=headers["one"]))
        await until(api, 1)
        elsewhere = httpx.AsyncClient(
            transport=httpx.ASGITransport(api.http._transport.app, client=("10.0.0.9", 1)),  # type: ignore[attr-defined]
            base_url="http://test",
        )
        async with elsewhere as other:
            for client, name in ((api.http, "two"), (other, "one")):
                response = await client.post("/api/extra/abort", headers=headers[name])
                assert response.json() == {"success": False, "n_aborted": 0}
        assert len(engine.open) == 1
        assert (await api.http.post("/api/extra/abort", headers=headers["one"])).json()["n_aborted"] == 1
        assert (await mine).status_code == 200


async def test_a_genkey_names_one_of_several() -> None:
    engine = FakeEngine(["Hello"])
    engine.gate.clear()
    async with running(engine) as api:
        first, second = (
            asyncio.create_task(api.post("/api/v1/generate", {"prompt": "a", "genkey": name})) for name in ("x", "y")
        )
        await until(api, 2)
        assert (await api.ok("/api/extra/abort", genkey="nobody"))["n_aborted"] == 0
        assert (await api.ok("/api/extra/abort", genkey="x"))["n_aborted"] == 1
        assert (await first).json()["results"][0]["text"] == ""
        engine.gate.set()
        assert (await second).json()["results"][0]["text"] == "Hello"


async def test_check_tells_the_text_so_far() -> None:
    engine = FakeEngine(["x" * 500])
    engine.step_s = 0.001
    async with running(engine) as api:
        empty = {"results": [{"text": ""}]}
        assert (await api.http.get("/api/extra/generate/check")).json() == empty
        answering = asyncio.create_task(api.post("/api/v1/generate", {"prompt": "a", "genkey": "k"}))
        await until(api, 1)
        await asyncio.sleep(0.02)
        text = (await api.ok("/api/extra/generate/check", genkey="k"))["results"][0]["text"]
        assert 0 < len(text) < 500
        assert text == "x" * len(text)
        assert await api.ok("/api/extra/generate/check", genkey="other") == empty
        await api.http.post("/api/extra/abort")
        await answering


async def test_perf_tells_the_truth() -> None:
    async with running() as api:
        before = (await api.http.get("/api/extra/perf")).json()
        assert (before["total_gens"], before["stop_reason"], before["idle"], before["queue"]) == (0, -1, 1, 0)
        await api.ok("/v1/completions", prompt="abc", n=2)
        after = (await api.http.get("/api/extra/perf")).json()
        assert (after["total_gens"], after["last_token_count"], after["last_input_count"]) == (2, 11, 3)
        assert (after["last_process"], after["last_eval"], after["last_eval_speed"]) == (0.02, 0.1, 100)
        assert after["stop_reason"] == 1
        await api.ok("/v1/completions", prompt="abc", max_tokens=2)
        assert (await api.http.get("/api/extra/perf")).json()["stop_reason"] == 0
        api.engine.gate.clear()
        waiting = asyncio.create_task(api.post("/v1/completions", {"prompt": "a"}))
        await until(api, 1)
        busy = (await api.http.get("/api/extra/perf")).json()
        assert (busy["queue"], busy["idle"], busy["idletime"]) == (1, 0, 0)
        api.engine.gate.set()
        await waiting


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/v1/model", {"result": "fake-model"}),
        ("/api/v1/info/version", {"result": "1.2.5"}),
        ("/api/v1/config/max_context_length", {"value": 512}),
        ("/api/v1/config/max_length", {"value": 512}),
        ("/api/extra/true_max_context_length", {"value": 512}),
        ("/v1/internal/model/list", {"model_names": ["fake-model"]}),
    ],
)
async def test_what_kobold_and_others_tell(path: str, expected: Any) -> None:
    async with running() as api:
        assert (await api.http.get(path)).json() == expected


async def test_koboldcpps_version_says_what_there_is() -> None:
    async with running(keys=ring_of("k")) as api:
        answer = (await api.http.get("/api/extra/version", headers={"x-api-key": "k"})).json()
    assert (answer["result"], answer["protected"], answer["server"]) == ("KoboldCpp", True, "ggufd")
    assert answer["vision"] is False


async def test_kobold_counts_tokens() -> None:
    async with running(text=FakeText(adds_bos=True)) as api:
        assert await api.ok("/api/extra/tokencount", prompt="ab", special=False) == {"value": 2, "ids": [97, 98]}
        assert (await api.ok("/api/extra/tokencount", prompt="ab"))["ids"] == [BOS, 97, 98]
        assert (await api.ok("/api/extra/detokenize", ids=[97, 98]))["result"] == "ab"
        assert (await api.refused("/api/extra/detokenize", {"ids": [999]}))["param"] == "ids"


# --- text-generation-webui, tabbyAPI, vLLM ----------------------------------------------------------------------------


async def test_ooba_tells_and_counts() -> None:
    async with running(text=FakeText(adds_bos=True)) as api:
        assert (await api.http.get("/v1/internal/model/info")).json()["model_name"] == "fake-model"
        assert await api.ok("/v1/internal/encode", text="ab") == {"tokens": [97, 98], "length": 2}
        assert await api.ok("/v1/internal/token-count", text="ab") == {"length": 2}
        assert await api.ok("/v1/internal/decode", tokens=[97, 98]) == {"text": "ab"}
        assert (await api.refused("/v1/internal/encode", {"text": 3}))["param"] == "text"


async def test_tabby_tells_and_counts() -> None:
    async with running(text=FakeText(adds_bos=True)) as api:
        model = (await api.http.get("/v1/model")).json()
        assert (model["id"], model["parameters"]["max_seq_len"]) == ("fake-model", 512)
        assert [one["id"] for one in (await api.http.get("/v1/model/list")).json()["data"]] == ["fake-model"]
        body = {"text": "<s>", "add_bos_token": False}
        assert await api.ok("/v1/token/encode", **body) == {"tokens": [BOS], "length": 1}
        assert (await api.ok("/v1/token/encode", **body, encode_special_tokens=False))["length"] == 3
        assert (await api.ok("/v1/token/encode", text="a"))["tokens"] == [BOS, 97]
        assert await api.ok("/v1/token/decode", tokens=[97]) == {"text": "a"}


async def test_vllm_counts_a_conversation() -> None:
    async with running() as api:
        answer = await api.ok("/tokenize", model="x", messages=HELLO)
        assert bytes(answer["tokens"]) == b"user: Hi\nassistant: "
        assert answer["count"] == len(answer["tokens"])
        assert (await api.refused("/tokenize", {"messages": "x"}))["param"] == "messages"
        assert set((await api.http.get("/version")).json()) == {"version"}


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/completion", {"repeat_last_n": 0, "rep_pen_range": 0, "repetition_penalty_range": 0}, 0),
        ("/v1/completions", {"repeat_last_n": 0, "rep_pen_range": 0, "repetition_penalty_range": 0}, -1),
        ("/v1/completions", {"repeat_last_n": 0}, 0),
        ("/v1/completions", {"repetition_penalty_range": 128, "repeat_last_n": 0}, 128),
        ("/api/v1/generate", {"rep_pen_range": 0}, -1),
        ("/api/generate", {"raw": True, "stream": False, "options": {"repeat_last_n": 0}}, 0),
    ],
)
async def test_a_range_of_zero_means_what_it_means_in_each_family(path: str, body: Any, expected: int) -> None:
    async with running() as api:
        await api.ok(path, prompt="a", **body)
        assert api.engine.requests[0].sampling.repeat_last_n == expected


# --- Ollama -----------------------------------------------------------------------------------------------------------


async def ollama(path: str = "/api/generate", **body: Any) -> EngineRequest:
    """What the engine gets of an Ollama request."""
    async with running() as api:
        await api.ok(path, **{"prompt": "a", "messages": HELLO, "raw": True, "stream": False} | body)
        return api.engine.requests[0]


async def test_ollama_streams_a_line_for_each_text() -> None:
    async with running(FakeEngine(["aé\n"])) as api:
        response = await api.post("/api/generate", {"prompt": "Hi", "raw": True, "model": "whatever"})
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = lines_of(response.text)
    assert [(line["response"], line["done"]) for line in lines] == [
        ("a", False),
        ("é", False),
        ("\n", False),
        ("", True),
    ]
    assert (lines[-1]["done_reason"], lines[-1]["prompt_eval_count"], lines[-1]["eval_count"]) == ("stop", 2, 4)
    assert lines[-1]["eval_duration"] == 100_000_000
    assert {line["model"] for line in lines} == {"fake-model"}


async def test_every_line_is_a_write_of_its_own() -> None:
    writes: list[bytes] = []

    async def receive() -> dict[str, Any]:
        if not received:
            received.append(True)
            return {"type": "http.request", "body": b'{"prompt": "a", "raw": true}', "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        writes.append(message.get("body", b""))

    received: list[bool] = []
    app = create_app(FakeEngine(["abc"]), FakeText(), ApiConfig(model_id="m"))
    scope = {"type": "http", "method": "POST", "path": "/api/generate", "headers": [], "query_string": b""}
    await app({**scope, "client": ("127.0.0.1", 1), "server": ("test", 80), "scheme": "http"}, receive, send)
    assert [write.count(b"\n") for write in writes if write] == [1, 1, 1, 1]


async def test_ollamas_stream_ends_when_the_client_leaves() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    received: list[bool] = []

    async def receive() -> dict[str, Any]:
        if not received:
            received.append(True)
            return {"type": "http.request", "body": b'{"prompt": "a", "raw": true}', "more_body": False}
        while not engine.open:  # noqa: ASYNC110 - the fake tells nobody
            await asyncio.sleep(0.001)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    app = create_app(engine, FakeText(), ApiConfig(model_id="m"))
    scope = {"type": "http", "method": "POST", "path": "/api/generate", "headers": [], "query_string": b""}
    call = app({**scope, "client": ("127.0.0.1", 1), "server": ("test", 80), "scheme": "http"}, receive, send)
    await asyncio.wait_for(call, ANSWER_S)
    assert engine.aborted
    assert not engine.open


async def test_ollama_answers_whole() -> None:
    async with running() as api:
        answer = await api.ok("/api/generate", prompt="Hi", stream=False)
        assert (answer["response"], answer["done"]) == ("Hello world", True)
        assert bytes(api.engine.requests[0].prompt) == b"user: Hi\nassistant: "
        answer = await api.ok("/api/chat", messages=HELLO, stream=False)
        assert answer["message"] == {"role": "assistant", "content": "Hello world"}


async def test_ollama_chats_in_lines() -> None:
    async with running() as api:
        lines = lines_of((await api.post("/api/chat", {"messages": HELLO})).text)
    assert "".join(line["message"]["content"] for line in lines) == "Hello world"
    assert [line["done"] for line in lines] == [False] * 11 + [True]


async def test_ollamas_system_text_is_a_message() -> None:
    request = await ollama(system="Be short", prompt="Hi", raw=False)
    assert bytes(request.prompt) == b"system: Be short\nuser: Hi\nassistant: "


@pytest.mark.parametrize("stream", [False, True])
async def test_ollamas_older_route_tells_thoughts_apart(stream: bool) -> None:
    text = FakeText(template="<think>", opened="<think>\n")
    async with running(FakeEngine(["Hm.</think>{}"]), text) as api:
        response = await api.post("/api/generate", {"prompt": "Hi", "stream": stream, "format": "json"})
        lines = lines_of(response.text)
        (request,) = api.engine.requests
    assert ("".join(line.get("thinking", "") for line in lines), lines[-1]["done"]) == ("Hm.", True)
    assert "".join(line["response"] for line in lines) == "{}"
    assert request.sampling.grammar is not None
    assert "</think>" in request.sampling.grammar.frame


async def test_ollamas_older_route_switches_thoughts_off() -> None:
    async with running() as api:
        await api.ok("/api/generate", prompt="Hi", stream=False, think=False)
        assert api.text.chats[0].template_kwargs == {"enable_thinking": False}


async def test_ollama_fills_in_before_a_suffix() -> None:
    async with running(None, FakeText(has_infill=True)) as api:
        await api.ok("/api/generate", prompt="a", suffix="b", stream=False)
        assert api.engine.requests[0].prompt == (1, *b"a", 2, *b"b", 3)
    async with running() as api:
        assert (await api.refused("/api/generate", {"prompt": "a", "suffix": "b"}))["param"] == "suffix"


OLLAMA_TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
OLLAMA_CALL = '<think>Hm.</think>I look.<tool_call>{"name": "clock", "arguments": {"zone": "UTC"}}</tool_call>'


async def test_ollama_chat_tells_thoughts_and_calls_apart() -> None:
    async with running(FakeEngine([OLLAMA_CALL], n_ctx=2048)) as api:
        answer = await api.ok("/api/chat", messages=HELLO, stream=False, tools=[OLLAMA_TOOL])
        lines = lines_of((await api.post("/api/chat", {"messages": HELLO, "tools": [OLLAMA_TOOL]})).text)
    calls = [{"function": {"name": "clock", "arguments": {"zone": "UTC"}}}]
    expected = {"role": "assistant", "content": "I look.", "thinking": "Hm.", "tool_calls": calls}
    assert answer["message"] == expected
    assert "".join(line["message"].get("thinking", "") for line in lines) == "Hm."
    assert "".join(line["message"]["content"] for line in lines) == "I look."
    assert [line["message"]["tool_calls"] for line in lines if "tool_calls" in line["message"]] == [calls]
    assert lines[-1]["done"] is True


async def test_ollamas_results_are_known_by_their_tool_and_their_order() -> None:
    names = ("clock", "weather", "weather")
    calls = [{"function": {"name": name, "arguments": {"n": n}}} for n, name in enumerate(names)]
    said = ("weather", "1"), ("clock", "0"), ("weather", "2")
    results = [{"role": "tool", "tool_name": name, "content": text} for name, text in said]
    async with running() as api:
        history = [*HELLO, {"role": "assistant", "content": "", "tool_calls": calls}]
        await api.ok("/api/chat", messages=[*history, *results], stream=False)
        unnamed = [{"role": "tool", "content": str(n)} for n in range(3)]
        await api.ok("/api/chat", messages=[*history, *unnamed], stream=False)
        named, ordered = (chat.messages[1:] for chat in api.text.chats)
    for called, *told in (named, ordered):
        ids = [call["id"] for call in called["tool_calls"]]
        assert all(result["tool_call_id"] == ids[int(result["content"])] for result in told)


async def test_a_call_that_was_made_already_ends_ollamas_answer_unsaid() -> None:
    body = {"messages": HELLO, "tools": [OLLAMA_TOOL], "parallel_tool_calls": True}
    call = OLLAMA_CALL[OLLAMA_CALL.index("<tool_call>") :]
    async with running(FakeEngine([OLLAMA_CALL + call * 20], n_ctx=2048)) as api:
        answer = await api.ok("/api/chat", **body, stream=False)
        lines = lines_of((await api.post("/api/chat", body)).text)
        assert len(api.engine.finished) == 2
    calls = [{"function": {"name": "clock", "arguments": {"zone": "UTC"}}}]
    assert answer["message"]["tool_calls"] == calls
    assert [line["message"]["tool_calls"] for line in lines if "tool_calls" in line["message"]] == [calls]
    assert answer["done_reason"] == lines[-1]["done_reason"] == "stop"
    assert answer["eval_count"] == lines[-1]["eval_count"] == len(OLLAMA_CALL + call) - len("}</tool_call>")


async def test_ollama_takes_its_own_history_back_and_switches_thoughts_off() -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "clock", "arguments": {}}}]}
    result = {"role": "tool", "content": "noon", "tool_name": "clock"}
    async with running() as api:
        await api.ok("/api/chat", messages=[*HELLO, called, result], stream=False, think=False)
        (chat,) = api.text.chats
    assert chat.messages[2]["name"] == "clock"
    assert chat.messages[2]["tool_call_id"] == chat.messages[1]["tool_calls"][0]["id"]
    assert chat.template_kwargs == {"enable_thinking": False}


@pytest.mark.parametrize(("path", "key"), [("/api/generate", "prompt"), ("/api/chat", "messages")])
async def test_ollama_without_a_prompt_says_that_the_model_is_loaded(path: str, key: str) -> None:
    async with running() as api:
        answer = await api.ok(path, **({"messages": []} if key == "messages" else {}))
        assert (answer["done"], answer["done_reason"]) == (True, "load")
        assert not api.engine.requests


async def test_ollamas_options() -> None:
    options = {"num_predict": 5, "stop": ["x"], "temperature": 0.5, "typical_p": 0.6, "repeat_last_n": 0, "num_ctx": 9}
    request = await ollama(options=options)
    assert (request.max_tokens, request.stop, request.sampling.temperature) == (5, ("x",), 0.5)
    assert (request.sampling.typ_p, request.sampling.repeat_last_n) == (0.6, 0)
    assert (await ollama(options={"num_predict": -1})).max_tokens is None
    assert (await ollama(options={"banned_strings": ["x"]})).banned_strings == ("x",)


@pytest.mark.parametrize("value", ["json", {"type": "object"}])
async def test_ollamas_format(value: Any) -> None:
    grammar = (await ollama(format=value)).sampling.grammar
    assert grammar is not None
    assert (grammar.kind, json.loads(grammar.text)) == (GrammarKind.JSON_SCHEMA, {"type": "object"})


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/api/generate", {"prompt": 3}, "prompt"),
        ("/api/generate", {"prompt": "a", "options": 3}, "options"),
        ("/api/generate", {"prompt": "a", "options": {"temperature": "hot"}}, "temperature"),
        ("/api/generate", {"prompt": "a", "images": ["x"]}, "images[0]"),
        ("/api/generate", {"prompt": "a", "n": 2}, "n"),
        ("/api/chat", {"messages": "x"}, "messages"),
        ("/api/chat", {"messages": [{"role": "user", "content": "a", "images": ["x"]}]}, "messages[0].images[0]"),
        ("/api/chat", {"messages": [3]}, "messages[0]"),
        ("/api/v1/generate", {}, "prompt"),
        ("/api/v1/generate", {"prompt": "a", "max_length": "x"}, "max_length"),
        ("/api/extra/abort", {"genkey": 3}, "genkey"),
    ],
)
async def test_a_wrong_request_is_named(path: str, body: Any, param: str) -> None:
    async with running() as api:
        assert (await api.refused(path, body))["param"] == param


async def test_an_error_in_a_stream_of_lines_is_its_last_line() -> None:
    engine = FakeEngine()
    engine.error, engine.error_after = EngineFailure("broken"), 2
    async with running(engine) as api:
        lines = lines_of((await api.post("/api/generate", {"prompt": "a", "raw": True})).text)
    assert [line.get("response") for line in lines] == ["H", "e", None]
    assert lines[-1] == {"error": "broken", "code": "engine_failure"}


async def test_ollama_tells_of_its_model() -> None:
    async with running(created=0) as api:
        (model,) = (await api.http.get("/api/tags")).json()["models"]
        assert (model["name"], model["modified_at"]) == ("fake-model", "1970-01-01T00:00:00.000000Z")
        assert (model["details"]["quantization_level"], model["size"]) == ("F32", 4000)
        shown = await api.ok("/api/show", model="x")
        assert (shown["template"], shown["model_info"]["fake.context_length"]) == ("fake", 2048)
        assert (await api.http.post("/api/show")).status_code == 200
        assert (await api.http.get("/api/version")).json()["version"].count(".") == 2
        api.engine.ready = None
        assert (await api.http.get("/api/tags")).json() == {"models": []}


async def test_loading_is_a_503_everywhere() -> None:
    paths = ["/api/v1/generate", "/api/extra/generate/stream", "/api/generate", "/api/extra/tokencount", "/completion"]
    async with running() as api:
        api.engine.ready = None
        for path in paths:
            error_of(await api.post(path, {"prompt": "a"}), 503)
        error_of(await api.post("/v1/internal/encode", {"text": "a"}), 503)
