"""Banned phrases with the real server and the demo model: what was seen broken in the running program."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.programs.live_server import LiveServer, live_server

pytestmark = pytest.mark.e2e

LITTLE = "Once upon a time, there was a little"
GIRLS = ["girl named Emma", "girl who loved", "girl with a hat"]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server("-t", "1", "--ctx-size", "1024") as running:
        yield running


def post(server: LiveServer, path: str, **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json={"temperature": 0, **body}, timeout=120, trust_env=False)


def ask(server: LiveServer, path: str, **body: Any) -> Any:
    response = post(server, path, **body)
    assert response.status_code == 200, response.text
    return response.json()


def events(server: LiveServer, path: str, **body: Any) -> Iterator[Any]:
    sent = {"temperature": 0, "stream": True, **body}
    with httpx.stream("POST", server.url + path, json=sent, timeout=120, trust_env=False) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))


@pytest.mark.parametrize("ban", ["amed Em", "named Emma"])
def test_nothing_of_a_token_that_is_taken_back_was_sent(server: LiveServer, ban: str) -> None:
    body = {"prompt": LITTLE, "max_tokens": 8, "banned_strings": [ban]}
    (choice,) = ask(server, "/v1/completions", **body, logprobs=0)["choices"]
    assert choice["text"] == " girl who loved to play with her toys"
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"]
    assert all(choice["text"].startswith(*pair) for pair in zip(told["tokens"], told["text_offset"], strict=True))
    streamed = [event["choices"][0]["text"] for event in events(server, "/v1/completions", **body)]
    assert "".join(streamed) == choice["text"]


def test_each_phrase_of_the_text_that_the_others_led_to_is_kept_out(server: LiveServer) -> None:
    """At every event the text is the text of its tokens, and the next turn finds all of it computed."""
    bans: list[str] = []
    for start, length in ((2, 7), (9, 5), (4, 12), (13, 3)):
        text, tokens = "", []
        body = {"prompt": LITTLE, "n_predict": 12, "banned_strings": bans, "return_tokens": True}
        for event in events(server, "/completion", **body):
            text += event["content"]
            tokens += event["tokens"]
            assert not any(ban.lower() in text.lower() for ban in bans)
        assert ask(server, "/detokenize", tokens=tokens)["content"] == text
        bans.append(text[start : start + length])
    # The last of the tokens was never computed, and the prompt's last one is computed again.
    again = ask(
        server, "/completion", prompt=[*ask(server, "/tokenize", content=LITTLE)["tokens"], *tokens], n_predict=1
    )
    assert again["timings"]["cache_n"] >= again["tokens_evaluated"] - 2


@pytest.mark.parametrize("ban", ["amed Em", "irl na", "rl nam"])
def test_a_grammar_is_kept(server: LiveServer, ban: str) -> None:
    grammar = 'root ::= " girl" (" named Emma" | " who loved" | " with a hat")'
    answer = ask(server, "/completion", prompt=LITTLE, n_predict=20, grammar=grammar, banned_strings=[ban])
    assert answer["content"] == " girl who loved"


@pytest.mark.parametrize(
    ("ban", "found"), [("ttle gi", "little boy"), ("little", "a small dog"), ("it", "a small dog")]
)
def test_the_choice_that_is_left_is_found(server: LiveServer, ban: str, found: str) -> None:
    schema = {"enum": ["little girl named Emma", "little girl who loved", "little boy", "a small dog"]}
    answer = ask(server, "/completion", prompt=LITTLE, n_predict=20, json_schema=schema, banned_strings=[ban])
    assert json.loads(answer["content"]) == found


def test_where_no_choice_is_left_the_answer_says_so(server: LiveServer) -> None:
    schema = {"enum": ["little girl named Emma", "little girl who loved"]}
    refusal = post(server, "/completion", prompt=LITTLE, n_predict=20, json_schema=schema, banned_strings=["ttle gi"])
    assert (refusal.status_code, "no token is left" in refusal.text) == (400, True)


@pytest.mark.parametrize("ban", ["amed Em", "irl na"])
def test_a_strict_tool_gets_arguments_of_its_schema_streamed_or_not(server: LiveServer, ban: str) -> None:
    schema = {
        "type": "object",
        "properties": {"who": {"enum": GIRLS}},
        "required": ["who"],
        "additionalProperties": False,
    }
    body = {
        "messages": [{"role": "user", "content": "Who is she? A girl named Emma."}],
        "tools": [{"type": "function", "function": {"name": "tell", "strict": True, "parameters": schema}}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 60,
        "banned_strings": [ban],
    }
    (call,) = ask(server, "/v1/chat/completions", **body)["choices"][0]["message"]["tool_calls"]
    arguments = call["function"]["arguments"]
    assert json.loads(arguments)["who"] in GIRLS[1:]
    deltas = [event["choices"][0]["delta"] for event in events(server, "/v1/chat/completions", **body)]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert "".join(call["function"].get("arguments", "") for call in calls) == arguments
