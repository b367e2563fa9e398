"""Over real sockets: headers at once, pings, disconnects at every moment, and the official client."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from ggufd.errors import EngineFailure, QueueFull
from tests.support.fakes.api_client import ring_of
from tests.support.fakes.api_server import Served, serving, wait_until
from tests.support.fakes.fake_engine import FakeEngine

if TYPE_CHECKING:
    import openai

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture
def server() -> Iterator[Served]:
    with serving(FakeEngine(["Hello wörld 🙂", "another"])) as served:
        yield served


@pytest.fixture(scope="module")
def sdk() -> Any:
    """The official client's library. To import it takes two seconds, in every process that collects this file."""
    import openai

    return openai


@pytest.fixture
def client(server: Served, sdk: Any) -> Iterator[openai.OpenAI]:
    with sdk.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=10) as client:
        yield client


def connect(server: Served, path: str, body: object) -> socket.socket:
    """A connection with the request sent."""
    raw = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(raw)}\r\n\r\n"
    connection.sendall(head.encode() + raw)
    return connection


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    """What comes, up to `mark`."""
    data = b""
    while mark not in data:
        piece = connection.recv(4096)
        assert piece, f"the connection ended before {mark!r}: {data!r}"
        data += piece
    return data


def close_gate(server: Served) -> None:
    server.in_loop(server.engine.gate.clear)
    wait_until(lambda: not server.engine.gate.is_set())


def test_headers_and_pings_come_while_the_request_waits(server: Served) -> None:
    close_gate(server)
    with connect(server, CHAT, {"messages": HELLO, "stream": True}) as connection:
        head = read_until(connection, b"\r\n\r\n")
        assert b"200 OK" in head
        assert b"text/event-stream" in head
        read_until(connection, b": ping\n\n")
        read_until(connection, b": ping\n\n")
        server.in_loop(server.engine.gate.set)
        assert b'"content":"H"' in read_until(connection, b"data: [DONE]")
    assert server.engine.aborted == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": HELLO}),
        (CHAT, {"messages": HELLO, "n": 2}),
        (COMPLETION, {"prompt": "a"}),
        (COMPLETION, {"prompt": ["a", "b", "c"]}),
    ],
)
def test_a_client_that_leaves_while_waiting_aborts_everything(
    server: Served, path: str, body: dict[str, object], stream: bool
) -> None:
    close_gate(server)
    n_prompts = len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1  # type: ignore[arg-type]
    with connect(server, path, {**body, "stream": stream}):
        wait_until(lambda: len(server.engine.open) == n_prompts)
    wait_until(lambda: not server.engine.open)
    assert sorted(server.engine.aborted) == sorted(request.request_id for request in server.engine.requests)


@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
def test_a_client_that_leaves_mid_stream_aborts(server: Served, prompt: object) -> None:
    server.engine.step_s = 0.05
    with connect(server, COMPLETION, {"prompt": prompt, "stream": True}) as connection:
        read_until(connection, b'"text":"e"')
    wait_until(lambda: not server.engine.open)
    assert len(server.engine.aborted) == len(server.engine.requests)


def test_a_client_that_leaves_while_it_is_answered_whole_aborts(server: Served) -> None:
    server.engine.step_s = 0.05
    with connect(server, COMPLETION, {"prompt": "a"}):
        wait_until(lambda: len(server.engine.open) == 1)
    wait_until(lambda: not server.engine.open)
    assert len(server.engine.aborted) == 1


def test_one_that_leaves_disturbs_nobody_else(server: Served, client: openai.OpenAI) -> None:
    server.engine.step_s = 0.02
    stream = client.completions.create(model="m", prompt="a", stream=True)
    with connect(server, COMPLETION, {"prompt": "b", "stream": True}) as connection:
        read_until(connection, b'"text":"e"')
    assert "".join(chunk.choices[0].text for chunk in stream) == "Hello wörld 🙂"
    assert len(server.engine.aborted) == 1


def test_text_and_end_come_in_one_write(server: Served) -> None:
    with connect(server, COMPLETION, {"prompt": "a", "stream": True, "max_tokens": 1}) as connection:
        data = read_until(connection, b"[DONE]\n\n\r\n")
    written = data.partition(b"\r\n\r\n")[2].split(b"\r\n")
    assert [piece.count(b"data: ") for piece in written if b"data: " in piece] == [3]


def test_the_official_client_reads_whole_answers(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(model="any", messages=HELLO, n=2, logprobs=True, top_logprobs=2)
    assert [choice.message.content for choice in chat.choices] == ["Hello wörld 🙂", "another"]
    assert chat.choices[0].logprobs is not None
    assert chat.choices[0].logprobs.content is not None
    assert chat.usage is not None
    assert chat.usage.prompt_tokens_details is not None
    text = client.completions.create(model="any", prompt="a", logprobs=2, echo=True)
    assert text.choices[0].text == "aHello wörld 🙂"
    assert [model.id for model in client.models.list()] == ["fake-model"]
    assert client.models.retrieve("fake-model").object == "model"


def test_the_official_client_reads_streams(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="any", messages=HELLO, n=2, stream=True, stream_options={"include_usage": True}
        )
    )
    texts = ["", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == ["Hello wörld 🙂", "another"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 17 + 7


async def test_the_official_async_client(server: Served, sdk: Any) -> None:
    async with sdk.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(model="any", messages=HELLO, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Hello wörld 🙂"


def test_the_official_client_knows_our_errors(server: Served, client: openai.OpenAI, sdk: Any) -> None:
    with pytest.raises(sdk.BadRequestError) as caught:
        client.chat.completions.create(model="any", messages=HELLO, temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(sdk.NotFoundError):
        client.models.retrieve("other")
    server.engine.refusal = QueueFull("full")
    with pytest.raises(sdk.InternalServerError) as busy:
        client.chat.completions.create(model="any", messages=HELLO, stream=True)
    assert (busy.value.status_code, busy.value.code) == (503, "queue_full")


def test_the_official_client_raises_on_an_error_event(server: Served, client: openai.OpenAI, sdk: Any) -> None:
    server.engine.error, server.engine.error_after = EngineFailure("broken midway"), 2
    stream = client.chat.completions.create(model="any", messages=HELLO, stream=True)
    with pytest.raises(sdk.APIError, match="broken midway"):
        list(stream)


def test_a_wrong_key_is_told(server: Served, sdk: Any) -> None:
    with serving(keys=ring_of("right")) as guarded:
        for key, works in (("right", True), ("wrong", False)):
            with sdk.OpenAI(base_url=f"{guarded.url}/v1", api_key=key, max_retries=0) as client:
                if works:
                    client.models.list()
                else:
                    with pytest.raises(sdk.AuthenticationError):
                        client.models.list()


def test_head_has_no_body(server: Served) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"HEAD /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        data = b""
        while piece := connection.recv(4096):
            data += piece
    assert data.startswith(b"HTTP/1.1 200")
    assert data.endswith(b"\r\n\r\n")
