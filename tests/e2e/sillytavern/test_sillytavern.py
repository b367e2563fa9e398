"""A real SillyTavern before the real server: every API type, through its own Node API, driven as its page drives it.

The bodies are those that its page composes for each type with its default sliders, cut to what differs.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from tests.support.contract import bared
from tests.support.limits import ANSWER_S
from tests.support.programs import sillytavern_app
from tests.support.programs.live_server import LiveServer, live_server
from tests.support.programs.sillytavern_app import SillyTavern

pytestmark = [pytest.mark.e2e, pytest.mark.sillytavern, pytest.mark.timeout(900)]
"""The first test of a machine installs both versions."""

MODEL_WORDS = "SmolLM2"
PROMPT = "Once upon a time there was a small village by the sea, and in it"
ENDLESS_TOKENS = 1500
FREE_S = 1.0


class Kind(NamedTuple):
    """One API type of its connection panel."""

    name: str
    body: dict[str, Any]
    since: str = "1.12.6"
    has_tokenizer: bool = True
    swipes: bool = False


SLIDERS: dict[str, Any] = {
    "temperature": 0.7, "top_p": 0.95, "typical_p": 1, "typical": 1, "min_p": 0.02, "top_k": 40, "top_a": 0, "tfs": 1,
    "repetition_penalty": 1.1, "frequency_penalty": 0, "presence_penalty": 0, "skew": 0, "min_tokens": 0,
    "add_bos_token": True, "smoothing_factor": 0, "smoothing_curve": 1, "dry_allowed_length": 2, "dry_multiplier": 0,
    "dry_base": 1.75, "dry_sequence_breakers": '["\\n", ":", "\\"", "*"]', "dry_penalty_last_n": 0,
    "max_tokens_second": 0, "truncation_length": 2048, "ban_eos_token": False, "skip_special_tokens": True,
    "include_reasoning": True, "mirostat_mode": 0, "mirostat_tau": 5, "mirostat_eta": 0.1, "custom_token_bans": "",
    "banned_strings": [], "xtc_threshold": 0.1, "xtc_probability": 0, "nsigma": 0, "top_n_sigma": 0, "min_keep": 0,
    "adaptive_target": -0.01, "adaptive_decay": 0.9,
}  # fmt: skip

NATIVE: dict[str, Any] = {
    "rep_pen": 1.1, "rep_pen_range": 0, "repetition_penalty_range": 0, "guidance_scale": 1, "negative_prompt": "",
    "grammar_string": "", "repeat_penalty": 1.1, "repeat_last_n": 0, "num_ctx": 2048, "mirostat": 0,
    "ignore_eos": False, "rep_pen_slope": 1,
}  # fmt: skip

LLAMACPP: dict[str, Any] = {
    "samplers": ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "tfs_z", "typical_p", "top_p", "min_p", "xtc",
                 "temperature", "adaptive_p"],
    "logit_bias": [], "grammar": "", "cache_prompt": True, "dry_sequence_breakers": ["\n", ":", '"', "*"],
}  # fmt: skip

OOBA: dict[str, Any] = {
    "sampler_priority": ["repetition_penalty", "dry", "temperature", "top_k", "xtc"], "min_length": 0, "num_beams": 1,
    "length_penalty": 1, "early_stopping": False, "epsilon_cutoff": 0, "eta_cutoff": 0, "do_sample": True,
    "encoder_repetition_penalty": 1, "no_repeat_ngram_size": 0, "penalty_alpha": 0, "temperature_last": True,
}  # fmt: skip

KOBOLDCPP: dict[str, Any] = {
    "sampler_order": [6, 0, 1, 3, 4, 2, 5], "trim_stop": True, "dry_sequence_breakers": ["\n", ":", '"', "*"],
}  # fmt: skip

TABBY: dict[str, Any] = {"n": 1, "repetition_decay": 0, "temperature_last": True, "speculative_ngram": False}

APHRODITE: dict[str, Any] = {
    "n": 1, "custom_token_bans": [], "ignore_eos": False, "temperature_last": True, "eta_cutoff": 0, "early_stopping":
    False, "epsilon_cutoff": 0, "no_repeat_ngram_size": 0, "include_stop_str_in_output": False,
    "spaces_between_special_tokens": True,
}  # fmt: skip

KINDS = (
    Kind("llamacpp", SLIDERS | NATIVE | LLAMACPP, swipes=True),
    Kind("koboldcpp", SLIDERS | NATIVE | KOBOLDCPP),
    Kind("ooba", SLIDERS | NATIVE | OOBA),
    Kind("tabby", SLIDERS | NATIVE | TABBY, swipes=True),
    Kind("vllm", SLIDERS | {"n": 1, "ignore_eos": False, "spaces_between_special_tokens": True}, swipes=True),
    Kind("aphrodite", SLIDERS | APHRODITE, swipes=True),
    Kind("generic", SLIDERS | NATIVE, since="1.18.0", has_tokenizer=False),
    Kind("ollama", SLIDERS | NATIVE | {"logit_bias": [], "grammar": ""}, has_tokenizer=False),
)
CASES = [(version, kind) for version in sillytavern_app.VERSIONS for kind in KINDS if kind.since <= version]


def every(cases: list[tuple[str, Kind]]) -> pytest.MarkDecorator:
    ids = [f"{version}-{kind.name}" for version, kind in cases]
    return pytest.mark.parametrize(("app", "kind"), cases, ids=ids, indirect=["app"])


every_version = pytest.mark.parametrize("app", sillytavern_app.VERSIONS, indirect=True)


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server("--ctx-size", "8192", "--parallel", "4", "--threads", "1") as started:
        yield started


@pytest.fixture(scope="module")
def apps(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, SillyTavern]]:
    """All versions, running for the whole module."""
    folder = tmp_path_factory.mktemp("sillytavern")
    with sillytavern_app.or_skip(), contextlib.ExitStack() as stack:
        yield {
            version: stack.enter_context(sillytavern_app.running(version, folder / version))
            for version in sillytavern_app.VERSIONS
        }


@pytest.fixture
def app(request: pytest.FixtureRequest, apps: dict[str, SillyTavern]) -> SillyTavern:
    return apps[request.param]


def body_of(kind: Kind, server: LiveServer, **changes: Any) -> dict[str, Any]:
    n_tokens = changes.pop("max_tokens", 12)
    lengths = dict.fromkeys(("max_tokens", "max_new_tokens", "n_predict", "num_predict"), n_tokens)
    stop: list[str] = ["\nUser:", "\n***"]
    names = {"api_type": kind.name, "api_server": server.url, "model": model_of(server)}
    return {"prompt": PROMPT, "stop": stop, "stopping_strings": stop, **kind.body, **lengths, **names, **changes}


def model_of(server: LiveServer) -> str:
    model: str = httpx.get(f"{server.url}/v1/models", trust_env=False, timeout=ANSWER_S).json()["data"][0]["id"]
    return model


def whole_text(answer: Any) -> str:
    """The text of a whole answer, found where the page looks for it."""
    if "choices" in answer:
        return str(answer["choices"][0]["text"])
    return str(answer["content"] if "content" in answer else answer["response"])


def delta(event: dict[str, Any]) -> str:
    if "choices" in event:
        return str(event["choices"][0]["text"]) if event["choices"] else ""
    return str(event["content"])


def delta_index(event: dict[str, Any]) -> int:
    return int(event["choices"][0]["index"] if "choices" in event else event["index"])


@every(CASES)
def test_connects_and_names_the_model(app: SillyTavern, kind: Kind, server: LiveServer) -> None:
    answer = app.post("/api/backends/text-completions/status", {"api_server": server.url, "api_type": kind.name})
    assert answer.status_code == 200, answer.text
    assert MODEL_WORDS in answer.json()["result"]
    assert all(isinstance(model["id"], str) for model in answer.json()["data"])
    assert (answer.headers.get("x-supports-tokenization") == "true") == (kind.name == "ooba")


@every(CASES)
def test_writes_a_whole_answer(app: SillyTavern, kind: Kind, server: LiveServer) -> None:
    answer = app.post("/api/backends/text-completions/generate", body_of(kind, server, stream=False)).json()
    assert not (isinstance(answer, dict) and answer.get("error")), answer
    text = whole_text(answer)
    assert text.strip()
    assert PROMPT not in text


@every(CASES)
def test_streams_an_answer(app: SillyTavern, kind: Kind, server: LiveServer) -> None:
    with app.streamed("/api/backends/text-completions/generate", body_of(kind, server, stream=True)) as stream:
        events = list(stream)
    assert not [event for event in events if event.keys() & {"error", "message", "detail"}]
    deltas = [delta(event) for event in events]
    assert len(deltas) >= 3
    assert "".join(deltas).strip()
    assert PROMPT not in "".join(deltas)


EMPTY: dict[tuple[str, str], dict[str, Any]] = {
    ("1.12.6", "tabby"): {"json_schema": {}},
    ("1.12.6", "aphrodite"): {"guided_json": {}, "guided_grammar": "", "sampler_seed": -1},
    # It lets these through, for those who set them by an extension.
    ("1.12.6", "vllm"): {"guided_json": {}, "guided_grammar": "", "best_of": 1},
}
"""What the page of a version sends besides, whose user has set nothing."""

GRAMMARS = {"tabby": "grammar_string", "vllm": "guided_grammar", "aphrodite": "guided_grammar"}


def said(app: SillyTavern, body: dict[str, Any]) -> str:
    return whole_text(app.post("/api/backends/text-completions/generate", body).json())


@every(CASES)
def test_nothing_set_is_free_text(app: SillyTavern, kind: Kind, server: LiveServer) -> None:
    body = body_of(kind, server, stream=False, temperature=0, **EMPTY.get((app.version, kind.name), {}))
    names = {name: body[name] for name in ("api_type", "api_server", "model")}
    text = said(app, body)
    assert text == said(app, bared(body) | names)
    assert len(text.split()) > 3
    assert not text.lstrip().startswith(('"', "{", "["))


@every([case for case in CASES if (case[0], case[1].name) in EMPTY])
def test_a_grammar_holds_beside_an_empty_schema(app: SillyTavern, kind: Kind, server: LiveServer) -> None:
    grammar = {GRAMMARS[kind.name]: 'root ::= " yes" | " no"'}
    empty = EMPTY[app.version, kind.name] | grammar
    assert said(app, body_of(kind, server, stream=False, **empty)) in (" yes", " no")


@every([case for case in CASES if case[1].has_tokenizer])
def test_counts_tokens_with_the_models_own_vocabulary(app: SillyTavern, kind: Kind, server: LiveServer) -> None:
    model = model_of(server)
    body = {"text": "Hello world, hello sea", "url": server.url, "api_type": kind.name, "model": model}
    old = {"vllm_model": model, "aphrodite_model": model}
    answer = app.post("/api/tokenizers/remote/textgenerationwebui/encode", body | old).json()
    assert answer["count"] == len(answer["ids"]) == 5, answer
    assert all(isinstance(token, int) for token in answer["ids"])


@every(CASES)
@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_stop_frees_the_slot(app: SillyTavern, kind: Kind, server: LiveServer, stream: bool) -> None:
    assert server.wait_running(0, 5)
    body = body_of(kind, server, stream=stream, max_tokens=ENDLESS_TOKENS, ban_eos_token=True, ignore_eos=True, stop=[])
    if stream:
        with app.streamed("/api/backends/text-completions/generate", body) as events:
            next(events)
            assert server.wait_running(1, 5)
    else:
        app.post_and_leave("/api/backends/text-completions/generate", body, lambda: server.wait_running(1, 5))
    assert server.wait_running(0, FREE_S)


@every([case for case in CASES if case[1].swipes and case != ("1.12.6", KINDS[0])])
def test_swipes_come_together(app: SillyTavern, kind: Kind, server: LiveServer) -> None:
    body = body_of(kind, server, n=3, temperature=1.5, stream=False)
    answer = app.post("/api/backends/text-completions/generate", body).json()
    if kind.name == "llamacpp":
        assert isinstance(answer, list), answer
        texts = [whole_text(one) for one in answer]
    else:
        texts = [choice["text"] for choice in answer["choices"]]
    assert len(texts) == 3
    assert len(set(texts)) > 1

    with app.streamed("/api/backends/text-completions/generate", body | {"stream": True}) as stream:
        events = [event for event in stream if delta(event)]
    streamed = {index: "".join(delta(event) for event in events if delta_index(event) == index) for index in range(3)}
    assert all(streamed.values())
    assert len(set(streamed.values())) > 1
    assert {delta_index(event) for event in events} == {0, 1, 2}


@every(CASES)
def test_continue_goes_on_without_an_echo(app: SillyTavern, kind: Kind, server: LiveServer) -> None:
    begun = "### Instruction:\nCount.\n\n### Response:\n1, 2, 3, 4, 5,"
    body = body_of(kind, server, prompt=begun, temperature=0, stream=False, seed=1)
    answer = app.post("/api/backends/text-completions/generate", body).json()
    assert whole_text(answer).lstrip().startswith("6")


@every_version
def test_llamacpp_shows_token_probabilities(app: SillyTavern, server: LiveServer) -> None:
    body = body_of(KINDS[0], server, n_probs=10, logprobs=10, stream=True)
    with app.streamed("/api/backends/text-completions/generate", body) as stream:
        events = list(stream)
    shown = [event["completion_probabilities"] for event in events if event.get("completion_probabilities")]
    assert shown
    assert all(len(one) == 1 for one in shown)
    for (one,) in shown:
        assert one["probs"]
        assert all(0 <= entry["prob"] <= 1 for entry in one["probs"])
        assert all(entry["logprob"] <= 0 for entry in one["top_logprobs"])
    assert "".join(one[0]["content"] for one in shown) == "".join(event["content"] for event in events)


@pytest.mark.parametrize("app", sillytavern_app.VERSIONS[-1:], indirect=True)
@pytest.mark.parametrize("kind", ["llamacpp", "koboldcpp"])
def test_derives_template_and_context(app: SillyTavern, kind: str, server: LiveServer) -> None:
    answer = app.post(
        "/api/backends/text-completions/props", {"api_server": server.url, "api_type": kind, "model": model_of(server)}
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["default_generation_settings"]["n_ctx"] == 2048
    assert "<|im_start|>" in answer.json()["chat_template"]
    assert len(answer.json()["chat_template_hash"]) == 64


@every_version
def test_a_refusal_reaches_the_user_in_words(app: SillyTavern, server: LiveServer) -> None:
    body = body_of(KINDS[0], server, prompt="a b c d " * 2000, stream=True)
    with app.opened("/api/backends/text-completions/generate", body) as response:
        response.read()
    assert "2048" in response.text.replace(",", "")
    whole = app.post("/api/backends/text-completions/generate", body | {"stream": False}).json()
    assert whole["error"]
    assert "2048" in whole["response"].replace(",", "")


def chat_body(server: LiveServer, **changes: Any) -> dict[str, Any]:
    messages = [
        {"role": "system", "content": "Write the next reply."},
        {"role": "system", "content": "[Start a new Chat]"},
        {"role": "assistant", "content": "Hello there."},
        {"role": "user", "content": "Tell me about the sea."},
    ]
    return {
        "messages": messages, "model": model_of(server), "temperature": 1, "frequency_penalty": 0,
        "presence_penalty": 0, "top_p": 1, "max_tokens": 12, "stream": False, "logit_bias": {}, "stop": [],
        "chat_completion_source": "custom", "custom_url": f"{server.url}/v1", "user_name": "User", "char_name": "Ada",
        "custom_include_body": "", "custom_exclude_body": "", "custom_include_headers": "",
        "custom_prompt_post_processing": "", **changes,
    }  # fmt: skip


CHAT = "/api/backends/chat-completions"


@every_version
@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
def test_custom_connects_and_chats_however_the_url_ends(app: SillyTavern, path: str, server: LiveServer) -> None:
    at = {"chat_completion_source": "custom", "custom_url": server.url + path}
    models = app.post(f"{CHAT}/status", at).json()
    assert "error" not in models
    assert MODEL_WORDS in models["data"][0]["id"]
    answer = app.post(f"{CHAT}/generate", chat_body(server) | at).json()
    assert answer["choices"][0]["message"]["content"].strip()


@every_version
def test_custom_streams(app: SillyTavern, server: LiveServer) -> None:
    with app.streamed(f"{CHAT}/generate", chat_body(server, stream=True)) as stream:
        events = list(stream)
    assert all("choices" in event for event in events)
    deltas = [event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"]]
    assert len([text for text in deltas if text]) >= 3


@every_version
def test_custom_swipes_together(app: SillyTavern, server: LiveServer) -> None:
    answer = app.post(f"{CHAT}/generate", chat_body(server, n=3, temperature=1.5)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in answer["choices"]}) > 1
    with app.streamed(f"{CHAT}/generate", chat_body(server, n=3, stream=True)) as stream:
        events = [event for event in stream if event["choices"]]
    assert all(len(event["choices"]) == 1 for event in events)
    assert {event["choices"][0]["index"] for event in events} == {0, 1, 2}


@every_version
def test_custom_continues_the_last_message_without_an_echo(app: SillyTavern, server: LiveServer) -> None:
    messages = [
        {"role": "user", "content": "Count from one to ten in digits."},
        {"role": "assistant", "content": "1, 2, 3, 4, 5,"},
    ]
    answer = app.post(f"{CHAT}/generate", chat_body(server, messages=messages, temperature=0)).json()
    assert answer["choices"][0]["message"]["content"].lstrip().startswith("6")


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
ASKED = [{"role": "user", "content": "What is the weather in Paris? Call get_weather."}]


def joined_calls(events: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Tool calls as its page puts them together: every text field is appended to what is there."""
    calls: dict[int, dict[str, str]] = {}
    for event in events:
        for part in (event["choices"][0]["delta"].get("tool_calls") or []) if event["choices"] else []:
            call = calls.setdefault(part["index"], {"id": "", "name": "", "arguments": ""})
            call["id"] += part.get("id") or ""
            call["name"] += part["function"].get("name") or ""
            call["arguments"] += part["function"].get("arguments") or ""
    return list(calls.values())


@every_version
def test_custom_calls_a_tool_and_takes_its_result(app: SillyTavern, server: LiveServer) -> None:
    body = {"messages": ASKED, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 100}
    answer = app.post(f"{CHAT}/generate", chat_body(server, **body)).json()
    calls = answer["choices"][0]["message"]["tool_calls"]
    assert [set(json.loads(call["function"]["arguments"])) for call in calls] == [{"city"}] * len(calls)
    call = calls[0]
    assert call["function"]["name"] == "get_weather"

    with app.streamed(f"{CHAT}/generate", chat_body(server, **body, stream=True)) as stream:
        streamed = joined_calls(list(stream))[0]
    assert streamed["name"] == "get_weather"
    assert streamed["id"]
    assert set(json.loads(streamed["arguments"])) == {"city"}

    result = {"role": "tool", "tool_call_id": call["id"], "content": "Sunny, 20 degrees."}
    told = [*ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}, result]
    again = app.post(f"{CHAT}/generate", chat_body(server, messages=told, tools=[WEATHER], tool_choice="auto")).json()
    # So small a model may have nothing to say to it; that it was read is what counts.
    assert again["usage"]["prompt_tokens"] > answer["usage"]["prompt_tokens"]
    assert again["choices"][0]["finish_reason"] in ("stop", "length", "tool_calls")


@pytest.mark.parametrize("app", sillytavern_app.VERSIONS[-1:], indirect=True)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_custom_answers_in_the_form_of_a_schema(app: SillyTavern, stream: bool, server: LiveServer) -> None:
    value = {
        "type": "object",
        "properties": {"mood": {"enum": ["joy", "anger", "fear"]}, "strength": {"type": "integer", "maximum": 9}},
        "required": ["mood", "strength"],
        "additionalProperties": False,
    }
    schema = {"name": "expression", "strict": True, "value": value}
    body = chat_body(server, json_schema=schema, max_tokens=60, stream=stream)
    if stream:
        with app.streamed(f"{CHAT}/generate", body) as events:
            text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])
    else:
        text = app.post(f"{CHAT}/generate", body).json()["choices"][0]["message"]["content"]
    said = json.loads(text)
    assert said["mood"] in value["properties"]["mood"]["enum"]
    assert said["strength"] <= 9


@pytest.mark.parametrize("app", sillytavern_app.VERSIONS[-1:], indirect=True)
def test_llamacpp_answers_in_the_form_of_a_schema(app: SillyTavern, server: LiveServer) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}}}
    schema |= {"required": ["age"], "additionalProperties": False}
    body = body_of(KINDS[0], server, json_schema=schema, max_tokens=40, stream=False)
    body.pop("grammar")
    answer = app.post("/api/backends/text-completions/generate", body).json()
    assert 0 <= json.loads(whole_text(answer))["age"] <= 99


@every_version
@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "Write."}],
        [{"role": "system", "content": "Write."}, {"role": "assistant", "content": "Hello."}],
        [{"role": "user", "content": "One."}, {"role": "user", "content": "Two."}],
        [{"role": "user", "content": "Hi."}, {"role": "system", "content": "[Continue your last message.]"}],
    ],
    ids=["only-system", "no-user", "twice-user", "nudge"],
)
def test_custom_takes_messages_of_any_shape(
    app: SillyTavern, messages: list[dict[str, str]], server: LiveServer
) -> None:
    answer = app.post(f"{CHAT}/generate", chat_body(server, messages=messages)).json()
    assert "error" not in answer
    assert isinstance(answer["choices"][0]["message"]["content"], str)


@every_version
@pytest.mark.parametrize("stream", [True, False], ids=["streaming", "whole"])
def test_custom_stop_frees_the_slot(app: SillyTavern, server: LiveServer, stream: bool) -> None:
    assert server.wait_running(0, 5)
    body = chat_body(server, stream=stream, max_tokens=ENDLESS_TOKENS, custom_include_body="ignore_eos: true")
    if stream:
        with app.streamed(f"{CHAT}/generate", body) as events:
            next(events)
            assert server.wait_running(1, 5)
    else:
        app.post_and_leave(f"{CHAT}/generate", body, lambda: server.wait_running(1, 5))
    assert server.wait_running(0, FREE_S)


CLASSIC = "/api/backends/kobold"


def classic_body(server: LiveServer, **changes: Any) -> dict[str, Any]:
    return {
        "prompt": PROMPT, "api_server": f"{server.url}/api", "gui_settings": False, "max_context_length": 2048,
        "max_length": 12, "rep_pen": 1.1, "rep_pen_range": 600, "rep_pen_slope": 0, "temperature": 0.7, "tfs": 1,
        "top_a": 0, "top_k": 0, "top_p": 0.95, "min_p": 0, "typical": 1, "sampler_order": [6, 0, 1, 3, 4, 2, 5],
        "singleline": False, "use_default_badwordsids": False, "mirostat": 0, "mirostat_eta": 0.1, "mirostat_tau": 5,
        "stop_sequence": ["\nUser:"], "can_abort": True, "streaming": False, **changes,
    }  # fmt: skip


@every_version
def test_kobold_classic_connects_writes_and_streams(app: SillyTavern, server: LiveServer) -> None:
    status = app.post(f"{CLASSIC}/status", {"api_server": f"{server.url}/api"}).json()
    assert MODEL_WORDS in status["model"]
    assert status["koboldCppVersion"]
    answer = app.post(f"{CLASSIC}/generate", classic_body(server)).json()
    assert answer["results"][0]["text"].strip()
    with app.streamed(f"{CLASSIC}/generate", classic_body(server, streaming=True)) as stream:
        pieces = [event["token"] for event in stream]
    assert len(pieces) >= 3


@every_version
def test_kobold_classic_stop_frees_the_slot(app: SillyTavern, server: LiveServer) -> None:
    assert server.wait_running(0, 5)
    body = classic_body(
        server, streaming=True, max_length=ENDLESS_TOKENS, stop_sequence=[], use_default_badwordsids=True
    )
    with app.streamed(f"{CLASSIC}/generate", body) as events:
        next(events)
        assert server.wait_running(1, 5)
    assert server.wait_running(0, FREE_S)


@every_version
def test_a_banned_string_never_shows(app: SillyTavern, server: LiveServer) -> None:
    greedy = {"temperature": 0, "max_tokens": 24, "stop": [], "stopping_strings": []}
    whole = app.post("/api/backends/text-completions/generate", body_of(KINDS[0], server, stream=False, **greedy))
    word = max(whole.json()["content"].split(), key=len)
    banned = body_of(KINDS[0], server, stream=True, banned_strings=[word], **greedy)
    with app.streamed("/api/backends/text-completions/generate", banned) as stream:
        text = "".join(event["content"] for event in stream)
    assert len(text) > 10
    assert word.lower() not in text.lower()


MEMORIES = ("The cat sleeps on the sofa.", "Interest rates rose by half a point.", "It rained all day in June.")


@every_version
@pytest.mark.parametrize("source", ["llamacpp", "vllm", "ollama"])
def test_vector_storage_finds_what_was_said(app: SillyTavern, server: LiveServer, source: str) -> None:
    where = {"source": source, "apiUrl": server.url, "model": model_of(server), "keep": False}
    where["collectionId"] = f"chat-{source}"
    # 1.12.6 is told by headers what newer ones find in the body.
    headers = {f"x-{source}-url": server.url, f"x-{source}-model": model_of(server)}
    items = [{"hash": 100 + place, "text": text, "index": place} for place, text in enumerate(MEMORIES)]
    assert app.post("/api/vector/insert", {**where, "items": items}, headers).status_code == 200
    query = {**where, "searchText": MEMORIES[1], "topK": 1, "threshold": 0.1}
    found = app.post("/api/vector/query", query, headers).json()
    assert found["hashes"] == [101]
    assert found["metadata"][0]["text"] == MEMORIES[1]


def test_vector_storage_over_koboldcpp(apps: dict[str, SillyTavern], server: LiveServer) -> None:
    """Newer than 1.12.6: the page asks for the vectors and hands them on."""
    for version, app in apps.items():
        if version != "1.12.6":
            answer = app.post("/api/backends/kobold/embed", {"server": server.url, "items": list(MEMORIES)}).json()
            assert answer["model"] == model_of(server)
            assert len({len(vector) for vector in answer["embeddings"]}) == 1
            assert len(answer["embeddings"]) == len(MEMORIES)


@pytest.fixture(scope="module")
def locked_server() -> Iterator[LiveServer]:
    with live_server("--ctx-size", "2048", "--parallel", "1", "--threads", "1", "--api-key", "sesame") as started:
        yield started


@every_version
def test_a_key_is_wanted_and_taken(app: SillyTavern, locked_server: LiveServer) -> None:
    """Last in this file: the key stays saved in this SillyTavern."""
    chat = {"chat_completion_source": "custom", "custom_url": f"{locked_server.url}/v1"}
    kinds = ("llamacpp", "koboldcpp", "ooba", "tabby", "vllm", "aphrodite")

    def connects(kind: str) -> bool:
        # Without an answer in time it counts as not connected: 1.12.6 answers its page nothing after a refusal.
        with contextlib.suppress(httpx.TimeoutException):
            body = {"api_server": locked_server.url, "api_type": kind}
            answer = app.http.post("/api/backends/text-completions/status", json=body, timeout=3)
            return answer.status_code == 200 and MODEL_WORDS in answer.json()["result"]
        return False

    assert not connects("llamacpp")
    assert MODEL_WORDS not in app.post(f"{CHAT}/status", chat).text
    for kind in (*kinds, "custom"):
        app.post("/api/secrets/write", {"key": f"api_key_{kind}", "value": "sesame"}).raise_for_status()
    assert [kind for kind in kinds if not connects(kind)] == []
    assert MODEL_WORDS in app.post(f"{CHAT}/status", chat).text
