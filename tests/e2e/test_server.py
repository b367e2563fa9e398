"""The real server with the demo model, through the official client: answers, streams, errors, disconnects, the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import psutil
import pytest

from tests.support.limits import ANSWER_S
from tests.support.programs.live_server import LiveServer, live_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

FRANCE = "The capital of France is"
HELLO: list[Any] = [{"role": "user", "content": "Name three colours."}]
GREEDY: dict[str, Any] = {"model": "any", "temperature": 0}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server("--ctx-size", "2048") as running:
        yield running


def client_of(server: LiveServer, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120, **options)


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with client_of(server) as client:
        yield client


def test_the_model_is_listed_under_the_files_name(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert "SmolLM2" in model.id
    assert model.model_dump()["meta"]["n_ctx"] == 2048


def test_a_completion_knows_its_geography(client: openai.OpenAI) -> None:
    answer = client.completions.create(prompt=FRANCE, max_tokens=3, **GREEDY)
    assert answer.choices[0].text.startswith(" Paris")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    # Who comes second computes one row of the prompt. With other rows beside it numbers differ in their last digits.
    client.chat.completions.create(messages=HELLO, max_tokens=1, **GREEDY)
    whole = client.chat.completions.create(messages=HELLO, max_tokens=16, **GREEDY)
    chunks = list(
        client.chat.completions.create(
            messages=HELLO, max_tokens=16, stream=True, stream_options={"include_usage": True}, **GREEDY
        )
    )
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert text
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_streamed_completion_says_the_same_too(client: openai.OpenAI) -> None:
    whole = client.completions.create(prompt=FRANCE, max_tokens=8, **GREEDY)
    stream = client.completions.create(prompt=FRANCE, max_tokens=8, stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


async def test_many_at_once_each_get_their_own_answer(server: LiveServer) -> None:
    capitals = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Egypt": "Cairo", "Germany": "Berlin"}
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120) as client:

        async def ask(country: str) -> str:
            prompt = f"The capital of {country} is the city of"
            stream = await client.completions.create(prompt=prompt, max_tokens=4, stream=True, **GREEDY)
            return "".join([chunk.choices[0].text async for chunk in stream])

        answers = await asyncio.gather(*(ask(country) for country in capitals))
    assert [capital in answer for capital, answer in zip(capitals.values(), answers, strict=True)] == [True] * 5


def test_two_choices_of_one_prompt(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "any", "messages": HELLO, "n": 2, "max_tokens": 12, "temperature": 1.5}
    answer = client.chat.completions.create(**options)
    assert [choice.index for choice in answer.choices] == [0, 1]
    texts = {0: "", 1: ""}
    for chunk in client.chat.completions.create(**options, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert all(texts.values())
    assert texts[0] != texts[1]


def test_logprobs_add_up_to_the_text_and_are_probabilities(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(messages=HELLO, max_tokens=6, logprobs=True, top_logprobs=5, **GREEDY)
    assert chat.choices[0].logprobs is not None
    entries = chat.choices[0].logprobs.content or []
    assert "".join(entry.token for entry in entries) == chat.choices[0].message.content
    assert all(len(entry.top_logprobs) == 5 and entry.logprob <= 0 for entry in entries)
    assert all(entry.top_logprobs[0].token == entry.token for entry in entries), "greedy takes the best"

    text = client.completions.create(prompt=FRANCE, max_tokens=3, logprobs=1, echo=True, **GREEDY).choices[0]
    assert text.logprobs is not None
    assert "".join(text.logprobs.tokens or []) == text.text
    assert text.text.startswith(FRANCE)


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    whole = client.completions.create(prompt=FRANCE, max_tokens=12, **GREEDY).choices[0].text
    stop = whole[4:9]
    cut = client.completions.create(prompt=FRANCE, max_tokens=12, stop=[stop, "never"], **GREEDY).choices[0]
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_a_seed_reproduces_a_text(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "any", "prompt": "Once", "max_tokens": 8, "temperature": 1.2, "seed": 11}
    texts = [client.completions.create(**options).choices[0].text for _ in range(3)]
    # The first one may read the prompt in another shape than those that find it in the cache.
    assert texts[1] == texts[2]


def test_tokens_are_a_prompt_as_good_as_text(server: LiveServer, client: openai.OpenAI) -> None:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=ANSWER_S) as http:
        tokens = http.post("/tokenize", json={"content": FRANCE}).json()["tokens"]
        assert http.post("/detokenize", json={"tokens": tokens}).json()["content"] == FRANCE
    assert client.completions.create(prompt=tokens, max_tokens=2, **GREEDY).choices[0].text.startswith(" Paris")
    batch = client.completions.create(prompt=[tokens, tokens], max_tokens=1, **GREEDY)
    assert [choice.text for choice in batch.choices] == [" Paris", " Paris"]


def test_the_second_turn_finds_the_first_in_the_cache(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": f"My lucky number is {time.time_ns()}. Say OK. " * 4}]
    first = client.chat.completions.create(messages=messages, max_tokens=8, **GREEDY)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "Thanks."},
    ]
    second = client.chat.completions.create(messages=messages, max_tokens=4, **GREEDY)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    cached = second.usage.prompt_tokens_details.cached_tokens or 0
    # All of the first prompt but its generation prompt, which the template may write in another way now.
    assert first.usage.prompt_tokens - 8 <= cached < second.usage.prompt_tokens


def test_the_cache_is_explained_where_a_chat_was_edited(server: LiveServer) -> None:
    question = "  Which ships did the pirates of the Caribbean sail\U0001f3f4, and how many guns had they?"
    chat = [
        {"role": "system", "content": "You are the historian of a small harbour town."},
        {"role": "user", "content": question},
        {"role": "assistant", "content": "Mostly sloops with ten guns."},
        {"role": "user", "content": "And how many men?"},
    ]
    edited = [*chat[:2], {"role": "assistant", "content": "Mostly sloops and brigs."}, chat[3]]

    def cache_of(messages: list[dict[str, str]]) -> Any:
        body = {**GREEDY, "messages": messages, "max_tokens": 2, "explain_cache": True}
        response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
        return response.json()["cache"]

    cache_of(chat)
    assert cache_of(chat)["first_difference"] is None
    cache = cache_of(edited)
    first = cache["first_difference"]
    assert (first["message"], first["role"]) == (2, "assistant")
    assert first["character"] == len("Mostly sloops")
    assert first["token"] == cache["reused"] < cache["of"]
    assert " and brigs." in first["prompt"]
    assert " with ten guns." in first["cached"]
    other = [chat[0], {"role": "user", "content": question.replace("guns", "cats")}]
    first = cache_of(other)["first_difference"]
    assert (first["message"], first["character"]) == (1, question.index(" guns"))


def test_the_last_message_of_the_assistant_goes_on(client: openai.OpenAI) -> None:
    messages: list[Any] = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is"},
    ]
    answer = client.chat.completions.create(messages=messages, max_tokens=3, **GREEDY)
    assert (answer.choices[0].message.content or "").startswith(" Paris")


def test_a_grammar_is_kept_to(client: openai.OpenAI) -> None:
    grammar = 'root ::= ("red" | "blue") "!"'
    answer = client.chat.completions.create(model="any", messages=HELLO, max_tokens=8, extra_body={"grammar": grammar})
    assert answer.choices[0].message.content in ("red!", "blue!")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"extra_body": {"top_p": 2}}, "top_p"),
        ({"extra_body": {"logit_bias": {"the": 1}}}, "logit_bias"),
        ({"extra_body": {"grammar": "root ::= ("}}, "grammar"),
        ({"extra_body": {"tools": [{"type": "function", "function": {"name": ""}}]}}, "tools[0].function.name"),
    ],
)
def test_a_wrong_field_is_named(client: openai.OpenAI, body: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="any", messages=HELLO, max_tokens=1, **body)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_a_prompt_that_does_not_fit_is_told_so_before_it_waits(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="2048") as caught:
        client.completions.create(prompt="word " * 3000, max_tokens=1, **GREEDY)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("prompt", ["a" * 50_000, "\0" * 10, "\u2028", "🙂" * 5_000, "<|im_end|>" * 100, " "], ids=repr)
def test_hostile_text_harms_nobody(server: LiveServer, client: openai.OpenAI, prompt: str) -> None:
    response = httpx.post(
        f"{server.url}/v1/completions", json={"prompt": prompt, "max_tokens": 1}, timeout=60, trust_env=False
    )
    assert response.status_code in (200, 400)
    if response.status_code == 400:
        assert response.json()["error"]["code"] == "context_length_exceeded"
    assert client.completions.create(prompt=FRANCE, max_tokens=1, **GREEDY).choices[0].text == " Paris"


def send(server: LiveServer, body: dict[str, Any]) -> socket.socket:
    """A raw connection with a completion asked for."""
    raw = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", urlsplit(server.url).port or 0), timeout=60)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(raw)}\r\n\r\n"
    connection.sendall(head.encode() + raw)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_those_who_leave_free_their_slots(server: LiveServer, client: openai.OpenAI, stream: bool) -> None:
    """More leave than there are slots; if one of theirs stayed taken until its end, the last would wait for it."""
    endless = {"prompt": "Once upon a time", "max_tokens": 2000, "ignore_eos": True, "stream": stream}
    gone = [send(server, endless) for _ in range(6)]
    if stream:
        assert b"text" in gone[0].recv(4096) + gone[0].recv(4096)
    time.sleep(0.5)
    for connection in gone:
        connection.close()
    started = time.monotonic()
    client.completions.create(prompt=FRANCE, max_tokens=1, **GREEDY)
    assert time.monotonic() - started < 15


def test_sigterm_lets_a_stream_end_refuses_new_ones_and_exits_with_zero() -> None:
    with live_server("--ctx-size", "512", "--parallel", "1") as server, client_of(server) as client:
        stream = client.completions.create(
            prompt="Once", max_tokens=60, stream=True, extra_body={"ignore_eos": True}, **GREEDY
        )
        texts = [next(stream).choices[0].text]
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        with contextlib.suppress(httpx.HTTPError):  # it may have ended
            while httpx.get(f"{server.url}/health", trust_env=False, timeout=ANSWER_S).status_code != 503:
                time.sleep(0.02)
        with pytest.raises((openai.InternalServerError, openai.APIConnectionError)) as refused:
            client.completions.create(prompt="Twice", max_tokens=1, **GREEDY)
        if isinstance(refused.value, openai.InternalServerError):
            assert (refused.value.status_code, refused.value.code) == (503, "shutting_down")
        reasons = []
        for chunk in stream:
            texts.append(chunk.choices[0].text)
            reasons.append(chunk.choices[0].finish_reason)
        stopping.join(60)
        assert reasons[-1] == "length"
        assert len(texts) > 30
        assert server.exit_code == 0


def test_what_outlasts_the_drain_is_told_so_in_its_last_event() -> None:
    arguments = ("--ctx-size", "8192", "--parallel", "1", "--drain-s", "0.5")
    with live_server(*arguments) as server, client_of(server) as client:
        stream = client.completions.create(
            prompt="Once", max_tokens=8000, stream=True, extra_body={"ignore_eos": True}, **GREEDY
        )
        next(stream)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        with pytest.raises(openai.APIError) as cut:
            list(stream)
        stopping.join(60)
        assert cut.value.code == "shutting_down"
        assert server.exit_code == 0


def test_an_engine_that_dies_is_started_again_and_its_requests_are_told() -> None:
    with live_server("--ctx-size", "2048", "--parallel", "1") as server, client_of(server) as client:
        stream = client.completions.create(
            prompt="Once", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}, **GREEDY
        )
        next(stream)
        heaviest = max(psutil.Process(server.pid).children(), key=lambda child: child.memory_info().rss)
        heaviest.kill()
        with pytest.raises(openai.APIError) as lost:
            list(stream)
        assert lost.value.code == "engine_down"
        assert httpx.get(f"{server.url}/health/live", trust_env=False, timeout=ANSWER_S).status_code == 200
        server.wait_ready()
        assert client.completions.create(prompt=FRANCE, max_tokens=1, **GREEDY).choices[0].text == " Paris"
