"""Hints of requests: the same conversation in every turn and API, another for another chat or key, and no exception."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.cluster.routing.hints import HEAD_CHARACTERS, RouteHint, caller_of, hint_of
from ggufd.cluster.routing.leaves import leaves

KEY = {"authorization": "Bearer sk-1"}

SYSTEM, FIRST, ANSWER, SECOND = "You are a pirate.", "Hello, who are you?", "Arr.", "And your ship?"
LONG = "The ship sails at dawn. " * 200


def hint(path: str, body: Any, headers: Mapping[str, str] = KEY, **others: Any) -> RouteHint:
    made = hint_of("POST", path, headers, json.dumps(body).encode(), **others)
    assert made is not None
    return made


def message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def chat(*texts: str, system: str = SYSTEM) -> dict[str, Any]:
    roles = ("user", "assistant")
    turns = [message(roles[index % 2], text) for index, text in enumerate(texts)]
    return {"messages": [message("system", system), *turns]}


def parts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


def items(*texts: str) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [
        {"type": "message", "role": roles[index % 2], "content": [{"type": "input_text", "text": text}]}
        for index, text in enumerate(texts)
    ]


def cached(message: dict[str, Any]) -> dict[str, Any]:
    """A message as an agent sends it the first time: with a mark that it moves on in the next turn."""
    return {
        "role": message["role"],
        "content": [{"type": "text", "text": message["content"], "cache_control": {"type": "ephemeral"}}],
    }


FIRST_AND_SECOND_TURN = [
    ("/v1/chat/completions", chat(FIRST), chat(FIRST, ANSWER, SECOND)),
    ("/chat/completions", chat(FIRST), {"messages": [*chat(FIRST, ANSWER)["messages"], message("user", SECOND)]}),
    (
        "/v1/messages",
        {"system": SYSTEM, "messages": [cached(message("user", FIRST))]},
        {"system": parts(SYSTEM), "messages": chat(FIRST, ANSWER, SECOND)["messages"][1:]},
    ),
    (
        "/v1/responses",
        {"instructions": SYSTEM, "input": FIRST},
        {"instructions": SYSTEM, "input": items(FIRST, ANSWER, SECOND)},
    ),
    ("/api/chat", chat(FIRST), chat(FIRST, ANSWER, SECOND)),
    ("/v1/completions", {"prompt": LONG}, {"prompt": [LONG + ANSWER]}),
    ("/completion", {"prompt": LONG}, {"prompt": {"prompt_string": LONG + ANSWER}}),
    ("/v1/completions", {"prompt": [*range(5000)]}, {"prompt": [[*range(6000)]]}),
    ("/api/generate", {"system": SYSTEM, "prompt": LONG}, {"system": SYSTEM, "prompt": LONG + ANSWER}),
    ("/api/v1/generate", {"memory": LONG, "prompt": FIRST}, {"memory": LONG, "prompt": SECOND}),
    ("//api/extra/generate/stream/", {"prompt": LONG}, {"prompt": LONG + ANSWER}),
    ("/infill", {"input_prefix": LONG, "input_suffix": "a"}, {"input_prefix": LONG + "x", "input_suffix": "b"}),
]


@pytest.mark.parametrize(("path", "first", "second"), FIRST_AND_SECOND_TURN)
def test_every_turn_of_a_conversation_has_the_same_home(path: str, first: Any, second: Any) -> None:
    assert hint(path, first).chat == hint(path, second).chat
    assert len(hint(path, first).chat) == 16


@pytest.mark.parametrize(("path", "first", "second"), FIRST_AND_SECOND_TURN)
def test_another_key_or_beginning_has_another(path: str, first: Any, second: Any) -> None:
    home = hint(path, first).chat
    assert home != hint(path, first, {"authorization": "Bearer sk-2"}).chat
    changed = json.loads(
        json.dumps(first).replace("Hello", "Hi").replace("The ship", "A ship").replace("[0, 1", "[7, 1")
    )
    assert home != hint(path, changed).chat or changed == first or "memory" in first


def test_a_chat_is_the_same_by_whichever_api_it_comes() -> None:
    openai = hint("/v1/chat/completions", chat(FIRST))
    anthropic = hint("/v1/messages", {"system": SYSTEM, "messages": [message("user", FIRST)]}, {"x-api-key": "sk-1"})
    assert openai.chat == anthropic.chat


def test_another_system_prompt_is_another_conversation() -> None:
    assert hint("/v1/chat/completions", chat(FIRST)).chat != hint("/v1/chat/completions", chat(FIRST, system="x")).chat


def test_a_greeting_before_the_users_first_message_is_part_of_the_head() -> None:
    bodies = [
        {"messages": [message("system", SYSTEM), message("assistant", greeting), message("user", "Hi")]}
        for greeting in ("Ahoy!", "Good day.")
    ]
    assert hint("/v1/chat/completions", bodies[0]).chat != hint("/v1/chat/completions", bodies[1]).chat


def test_chats_with_different_images_are_different() -> None:
    def body(data: str) -> dict[str, Any]:
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
        return {"messages": [{"role": "user", "content": [*parts("What is it?"), image]}]}

    one, other = hint("/v1/chat/completions", body("A" * 90_000)), hint("/v1/chat/completions", body("B" * 90_000))
    assert one.chat != other.chat
    assert one.n_prompt_bytes == len("What is it?") + 4096


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"x-session-id": "s"}, {}),
        ({"x-conversation-id": "s"}, {}),
        ({}, {"session_id": "s"}),
        ({}, {"conv_id": "s"}),
        ({}, {"prompt_cache_key": "s"}),
        ({}, {"user": "s"}),
        ({}, {"metadata": {"user_id": "s"}}),
    ],
)
def test_a_session_is_the_clients_word_for_it_within_its_key(headers: dict[str, str], body: dict[str, Any]) -> None:
    one = hint("/v1/chat/completions", chat(FIRST) | body, KEY | headers)
    other = hint("/v1/chat/completions", chat(SECOND) | body, KEY | headers)
    assert one.chat == other.chat
    assert one.head != other.head, "chats of one session can still be told apart"
    assert one.chat != hint("/v1/chat/completions", chat(FIRST) | body, {"x-api-key": "sk-2"} | headers).chat
    assert one.chat != hint("/v1/chat/completions", chat(FIRST)).chat


def test_without_a_key_the_address_stands_for_the_caller() -> None:
    one = hint("/v1/chat/completions", chat(FIRST), {}, address="10.0.0.1")
    assert one.chat == hint("/v1/chat/completions", chat(FIRST), {}, address="10.0.0.1").chat
    assert one.chat != hint("/v1/chat/completions", chat(FIRST), {}, address="10.0.0.2").chat


def test_a_key_is_the_same_in_both_headers_and_no_address() -> None:
    assert caller_of({"authorization": "bearer  a "}) == caller_of({"x-api-key": "a"}, "10.0.0.1")
    assert caller_of({"authorization": "Basic a"}, "a") == caller_of({}, "a") != caller_of({"x-api-key": "a"})


def test_the_length_of_the_prompt_counts_every_message_and_tools() -> None:
    body = chat("a" * 100, "b" * 200, "c" * 300, system="d" * 50)
    assert hint("/v1/chat/completions", body).n_prompt_bytes == 650
    tools = [{"type": "function", "function": {"name": "f" * 10, "description": "g" * 40}}]
    assert hint("/v1/chat/completions", body | {"tools": tools}).n_prompt_bytes >= 700
    assert hint("/v1/completions", {"prompt": [*range(1000)]}).n_prompt_bytes == 4000


def test_chats_with_one_beginning_are_told_apart_once_they_are_longer() -> None:
    path = "/v1/chat/completions"
    assert hint(path, chat(FIRST)).head == hint(path, chat(FIRST)).chat
    one, other = hint(path, chat(FIRST, ANSWER, SECOND)), hint(path, chat(FIRST, ANSWER, "No."))
    assert one.chat == other.chat == hint(path, chat(FIRST)).chat
    assert one.head != other.head
    assert one.head == hint(path, chat(FIRST, ANSWER, SECOND, ANSWER, FIRST)).head, "and the same from then on"
    card, longer = "c" * HEAD_CHARACTERS[0], "c" * HEAD_CHARACTERS[1]
    assert hint("/completion", {"prompt": card + "a"}).head == hint("/completion", {"prompt": card + "b"}).chat
    long = [hint("/completion", {"prompt": f"{card}{letter}{longer}"}) for letter in "ab"]
    assert long[0].chat == long[1].chat
    assert long[0].head != long[1].head


@pytest.mark.parametrize(
    ("path", "body", "is_new"),
    [
        ("/v1/chat/completions", chat(FIRST), True),
        ("/v1/chat/completions", chat(FIRST, ANSWER, SECOND), False),
        ("/v1/chat/completions", {"messages": [message("assistant", "Ahoy!"), message("user", FIRST)]}, False),
        ("/v1/chat/completions", chat(FIRST) | {"user": "me"}, False),
        ("/v1/chat/completions", {"messages": [message("user", FIRST), "what"]}, False),
        ("/v1/messages", {"system": SYSTEM, "messages": [message("user", FIRST)]}, True),
        ("/v1/responses", {"input": FIRST}, True),
        ("/v1/responses", {"input": FIRST, "previous_response_id": "resp_1"}, False),
        ("/v1/responses", {"input": [message("user", FIRST), {"type": "function_call", "name": "f"}]}, False),
        ("/api/chat", {"messages": [message("user", FIRST)]}, True),
        ("/v1/completions", {"prompt": FIRST}, False),
    ],
)
def test_a_chat_is_new_as_long_as_nobody_has_answered_in_it(path: str, body: Any, is_new: bool) -> None:
    assert hint(path, body).is_new == is_new


def test_text_beyond_the_head_of_a_prompt_does_not_count() -> None:
    same, other = "x" * HEAD_CHARACTERS[0], "x" * (HEAD_CHARACTERS[0] - 1)
    assert hint("/completion", {"prompt": f"{same}a"}).chat == hint("/completion", {"prompt": f"{same}b"}).chat
    assert hint("/completion", {"prompt": f"{other}a"}).chat != hint("/completion", {"prompt": f"{other}b"}).chat


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/chat/completions", chat(FIRST)),
        ("POST", "/v1/embeddings", {"input": "a"}),
        ("POST", "/v1/tokenize", {"content": "a"}),
        ("POST", "/", chat(FIRST)),
        ("POST", "/v1/chat/completions", {}),
        ("POST", "/v1/chat/completions", []),
        ("POST", "/v1/chat/completions", "text"),
    ],
)
def test_what_belongs_to_no_conversation_has_no_hint(method: str, path: str, body: Any) -> None:
    assert hint_of(method, path, KEY, json.dumps(body).encode()) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe{",
        b"[" * 200_000,
        b'{"messages": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"prompt": ' + b"1" * 5000 + b"}",
        b'{"prompt": "\\ud800"}',
        b'{"messages": [{"role": "user", "content": "\\udfff"}]}',
        b'{"prompt": NaN, "messages": Infinity}',
        b'{"messages": {"role": "user"}, "metadata": 5, "user": {"a": 1}}',
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/api/v1/generate"])
def test_strange_bodies_never_raise(path: str, body: bytes) -> None:
    made = hint_of("POST", path, KEY, body)
    assert made is None or len(made.chat) == 16


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["role", "content", "text", "images", "x"]), inner),
)
FIELDS = ["messages", "input", "prompt", "system", "instructions", "memory", "user", "metadata", "tools", "input_extra"]
PATHS = ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/completion", "/api/generate", "/infill"]


@given(st.sampled_from(PATHS), st.dictionaries(st.sampled_from(FIELDS), JSON), st.text(), st.text())
def test_any_json_gives_a_hint_or_none(path: str, body: dict[str, Any], key: str, address: str) -> None:
    raw = json.dumps(body).encode()
    made = hint_of("POST", path, {"authorization": key, "x-session-id": key[:1]}, raw, address)
    assert made == hint_of("POST", path, {"authorization": key, "x-session-id": key[:1]}, raw, address)
    assert made is None or (len(made.chat) == 16 and made.n_prompt_bytes >= 0)


@given(st.sampled_from(PATHS), st.binary())
def test_any_bytes_give_a_hint_or_none(path: str, body: bytes) -> None:
    hint_of("POST", path, {}, body)


def test_texts_are_found_in_order_without_marks_and_names() -> None:
    value = {"role": "user", "content": [{"type": "text", "text": "a"}, "b", {"images": ["c"]}], "n": 5, "f": 0.5}
    assert [(leaf.text, leaf.is_media) for leaf in leaves(value)] == [
        ("a", False),
        ("b", False),
        ("c", True),
        ("5", False),
    ]


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[' + b"[]," * 100_000 + b"[]]}",
        b'{"messages":' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"n":' + b"1" * 9000,
    ],
    ids=["many arrays", "deep", "digits"],
)
def test_what_no_server_would_read_is_not_read_here(body: bytes) -> None:
    """Reading it would hold up every stream of the ingress: sixty megabytes of empty arrays take half a minute."""
    begun = time.perf_counter()
    assert hint_of("POST", "/v1/chat/completions", {}, body) is None
    assert time.perf_counter() - begun < 5
