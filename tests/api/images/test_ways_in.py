"""Every way in for images, over fakes: what stands in the engine's prompt, where, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fakes.api_client import Api, running
from tests.support.fakes.fake_engine import BOS, FakeEngine, FakeText
from tests.support.fakes.fake_images import N_ROWS, FakeImages, rows_of, url_of

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def image(name: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url_of(name), "detail": "low"}}


def user(*content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content), **more}


def source(name: str) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": name}}


def prompt(*parts: str | list[int]) -> tuple[int, ...]:
    """The tokens of texts and images in a row."""
    return tuple(token for part in parts for token in (part.encode() if isinstance(part, str) else part))


def last_prompt(api: Api) -> tuple[int, ...]:
    return api.engine.requests[-1].prompt


RED, BLUE = rows_of("red"), rows_of("blue")

ANSWER = "\nassistant: "


# --- chat completions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([user(text("a"), image("red"), text(" b"))], prompt("user: a", RED, " b", ANSWER)),
        ([user(image("red"), image("blue"))], prompt("user: ", RED, BLUE, ANSWER)),
        ([user(image("blue"), text("a"), text("b"), image("red"))], prompt("user: ", BLUE, "a\nb", RED, ANSWER)),
        ([user({"type": "image_url", "image_url": url_of("red")})], prompt("user: ", RED, ANSWER)),
        ([user({"type": "input_image", "image_url": url_of("red")})], prompt("user: ", RED, ANSWER)),
        ([user(source("red"))], prompt("user: ", RED, ANSWER)),
        ([user(image_url=url_of("red"))], prompt("user: ", RED, ANSWER)),
        ([user(text("a"), image_url=url_of("red"))], prompt("user: ", RED, "a", ANSWER)),
        ([{"role": "user", "image_url": {"url": url_of("red")}}], prompt("user: ", RED, ANSWER)),
        ([{"role": "user", "content": "a", "image_url": url_of("red")}], prompt("user: ", RED, "a", ANSWER)),
        ([{"role": "user", "content": "a", "image_url": ""}], prompt("user: a", ANSWER)),
        (
            [{"role": "system", "content": [image("red")]}, user(text("a"))],
            prompt("system: ", RED, "\nuser: [{'type': 'text', 'text': 'a'}]", ANSWER),
        ),
        (
            [user(image("red")), {"role": "assistant", "content": "ok"}, user(image("red"), text("again"))],
            prompt("user: ", RED, "\nassistant: ok\nuser: ", RED, "again", ANSWER),
        ),
    ],
)
async def test_images_stand_in_the_prompt_where_they_were_sent(messages: Any, expected: tuple[int, ...]) -> None:
    async with running(images=FakeImages()) as api:
        answer = await api.ok(CHAT, messages=messages)
        (request,) = api.engine.requests
    assert request.prompt == expected
    n_rows = sum(token < 0 for token in expected)
    details = answer["usage"]["prompt_tokens_details"]
    assert details.get("image_tokens", 0) == n_rows
    assert answer["usage"]["prompt_tokens"] == len(expected)


async def test_a_tools_result_may_hold_an_image() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [
        user(text("a")),
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": [text("seen:"), image("red")]},
    ]
    async with running(images=FakeImages()) as api:
        await api.ok(CHAT, messages=messages)
        sent = last_prompt(api)
    at = sent.index(RED[1])
    assert bytes(sent[at - 6 : at]) == b"seen:["
    assert [token for token in sent if token < 0] == [token for token in RED if token < 0]


async def test_an_image_that_comes_twice_is_read_once() -> None:
    images = FakeImages()
    async with running(images=images) as api:
        await api.ok(CHAT, messages=[user(image("red"), image("blue"), image("red"))])
        spans = api.engine.requests[0].images
    assert (images.loaded, images.encoded) == (["red", "blue"], ["red", "blue"])
    assert [span.rows.path for span in spans] == ["/rows/red", "/rows/blue", "/rows/red"]


async def test_an_image_too_large_to_be_kept_is_loaded_again() -> None:
    images = FakeImages()
    images.n_bytes = 12 << 20
    async with running(images=images) as api:
        await api.ok(CHAT, messages=[user(image("red"), image("blue"))])
    assert images.loaded == ["red", "blue", "blue"]


async def test_a_stream_has_images_too_and_tells_their_tokens() -> None:
    async with running(images=FakeImages()) as api:
        events = await api.events(
            CHAT, messages=[user(image("red"), image("blue"))], stream_options={"include_usage": True}
        )
    assert events[-2]["usage"]["prompt_tokens_details"]["image_tokens"] == 2 * N_ROWS


async def test_what_somebody_types_is_no_image() -> None:
    async with running(images=FakeImages()) as api:
        await api.ok(CHAT, messages=[user(text("<__media__><image>"), image("red"))])
        assert last_prompt(api) == prompt("user: <__media__><image>", RED, ANSWER)
        await api.ok("/completion", prompt="<__media__>")
        assert last_prompt(api) == prompt("<__media__>")


async def test_the_prompt_that_is_shown_names_images() -> None:
    async with running(images=FakeImages()) as api:
        messages = [user(text("a"), image("red"))]
        shown = (await api.ok(CHAT, messages=messages, verbose=True))["__verbose"]["prompt"]
        applied = await api.ok("/apply-template", messages=messages)
    name = f"<image {-1 - RED[1]:08x}>"
    assert shown == f"user: a[{name}]{ANSWER}"
    assert applied["prompt"] == shown
    assert applied["n_tokens"] == len(prompt("user: a", RED, ANSWER))


# --- the other families ---------------------------------------------------------------------------------------------


async def test_responses_take_input_images() -> None:
    item = user({"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": url_of("red")})
    async with running(images=FakeImages()) as api:
        first = await api.ok(RESPONSES, input=[item])
        assert last_prompt(api) == prompt("user: a", RED, ANSWER)
        assert first["usage"]["input_tokens_details"]["image_tokens"] == N_ROWS
        await api.ok(RESPONSES, input="b", previous_response_id=first["id"])
        first_turn = prompt("user: a", RED, "\nassistant: ")
        assert last_prompt(api)[: len(first_turn)] == first_turn
        assert bytes(last_prompt(api)[len(first_turn) :]).endswith(b"\nuser: b\nassistant: ")
        listed = (await api.http.get(f"{RESPONSES}/{first['id']}/input_items")).json()["data"]
        assert listed[0]["content"][1] == {"type": "input_image", "image_url": url_of("red")}
        events = await api.http.post(RESPONSES, json={"input": [item], "stream": True})
    assert f'"image_tokens":{N_ROWS}' in events.text.replace(" ", "")


async def test_a_functions_output_may_be_an_image() -> None:
    items = [
        {"type": "message", "role": "user", "content": "a"},
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
        {
            "type": "function_call_output",
            "call_id": "1",
            "output": [{"type": "input_image", "image_url": url_of("red")}],
        },
    ]
    async with running(images=FakeImages()) as api:
        await api.ok(RESPONSES, input=items)
        assert [token for token in last_prompt(api) if token < 0] == [token for token in RED if token < 0]


async def test_messages_take_image_blocks() -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": [source("blue"), text("b")]}
    use = {"type": "tool_use", "id": "t", "name": "look", "input": {}}
    messages = [
        user(source("red"), text(" what")),
        {"role": "assistant", "content": [use]},
        user(result, {"type": "image", "source": {"type": "url", "url": url_of("red")}}),
    ]
    body = {"max_tokens": 5, "messages": messages}
    async with running(images=FakeImages()) as api:
        answer = await api.ok(MESSAGES, **body)
        sent = last_prompt(api)
        counted = await api.ok(f"{MESSAGES}/count_tokens", messages=messages)
    assert [t for t in sent if t < 0] == [t for t in (*RED, *BLUE, *RED) if t < 0]
    assert prompt("user: ", RED, " what") == sent[: len(prompt("user: ", RED, " what"))]
    assert answer["usage"]["input_tokens"] == counted["input_tokens"] == len(sent)


async def test_ollamas_images_stand_before_the_text() -> None:
    async with running(images=FakeImages()) as api:
        await api.ok("/api/chat", messages=[{"role": "user", "content": " a", "images": ["red", "blue"]}], stream=False)
        assert last_prompt(api) == prompt("user: ", RED, BLUE, " a", ANSWER)
        await api.ok("/api/generate", prompt=" a", images=["red"], system="s", stream=False)
        assert last_prompt(api) == prompt("system: s\nuser: ", RED, " a", ANSWER)
        await api.ok("/api/generate", prompt=" a", images=["red"], raw=True, stream=False)
        assert last_prompt(api) == prompt(RED, " a")
        response = await api.post("/api/generate", {"prompt": " a", "images": ["blue"]})
        assert response.status_code == 200
        assert last_prompt(api) == prompt("user: ", BLUE, " a", ANSWER)


async def test_kobolds_images_stand_between_memory_and_prompt() -> None:
    async with running(images=FakeImages(), text=FakeText(adds_bos=True)) as api:
        await api.ok("/api/v1/generate", prompt=" b", memory="a", images=["red"])
        assert last_prompt(api) == (BOS, *prompt("a", RED, " b"))
        await api.ok("/api/v1/generate", prompt=" b", images=["red", "blue"])
        assert last_prompt(api) == (BOS, *prompt(RED, BLUE, " b"))
        response = await api.post("/api/extra/generate/stream", {"prompt": " b", "images": ["red"]})
        assert response.status_code == 200
        assert last_prompt(api) == (BOS, *prompt(RED, " b"))
        await api.ok("/api/v1/generate", prompt="b", images=[])
        assert last_prompt(api) == (BOS, *prompt("b"))


async def test_llama_servers_media_markers_are_images() -> None:
    media = {"prompt_string": "a<__media__> b<__media__>", "multimodal_data": ["red", "blue"]}
    async with running(images=FakeImages(), text=FakeText(adds_bos=True)) as api:
        answer = await api.ok("/completion", prompt=media)
        assert last_prompt(api) == (BOS, *prompt("a", RED, " b", BLUE))
        name = f"<image {-1 - RED[1]:08x}>"
        assert answer["prompt"].startswith(f"a[{name}] b")
        assert answer["tokens_evaluated"] == len(last_prompt(api))
        await api.ok("/completion", prompt=[media, "x", {"prompt_string": "<__media__>", "multimodal_data": ["red"]}])
        assert [request.prompt for request in api.engine.requests[-3:]] == [
            (BOS, *prompt("a", RED, " b", BLUE)),
            (BOS, *prompt("x")),
            (BOS, *prompt(RED)),
        ]


async def test_llama_servers_older_form_marks_images_by_number() -> None:
    data = [{"id": 7, "data": "blue"}, {"id": 1, "data": "red"}]
    async with running(images=FakeImages()) as api:
        await api.ok("/completion", prompt="USER:[img-1] a[img-7][img-2] b[img-1]", image_data=data)
        assert last_prompt(api) == prompt("USER:", RED, " a", BLUE, "[img-2] b", RED)
        await api.ok("/completion", prompt="[img-1]", image_data=[])
        assert last_prompt(api) == prompt("[img-1]")


# --- counting -------------------------------------------------------------------------------------------------------


async def test_counting_routes_count_images_and_encode_none() -> None:
    images = FakeImages()
    messages = [user(text("a"), image("red"))]
    n_tokens = len(prompt("user: a", RED, ANSWER))
    items = [user({"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": url_of("red")})]
    async with running(images=images) as api:
        assert (await api.ok(f"{CHAT}/input_tokens", messages=messages))["input_tokens"] == n_tokens
        assert (await api.ok(f"{RESPONSES}/input_tokens", input=items))["input_tokens"] == n_tokens
        assert (await api.ok("/tokenize", messages=messages))["count"] == n_tokens
        assert (await api.ok("/v1/token/encode", text=messages))["length"] == n_tokens
        assert (await api.ok("/v1/internal/token-count", messages=messages))["length"] == n_tokens
        assert (await api.ok("/api/extra/tokencount", messages=messages))["value"] == n_tokens
    assert images.encoded == []


async def test_tokenize_shows_rows_as_llama_server_does() -> None:
    media = {"prompt_string": "a<__media__>b", "multimodal_data": ["red"]}
    async with running(images=FakeImages()) as api:
        whole = await api.ok("/tokenize", content=media)
        pieces = (await api.ok("/tokenize", content=media, with_pieces=True))["tokens"]
    assert whole["tokens"] == [97, 91, -1, -1, -1, 93, 98]
    assert whole["count"] == 7
    assert [one["piece"] for one in pieces] == ["a", "[", "", "", "", "]", "b"]


# --- refusals -------------------------------------------------------------------------------------------------------

WITHOUT_IMAGE: list[Any] = ["", " ", None, 3, {}, {"url": ""}, {"url": None}, {"url": 3}, [url_of("red")]]


@pytest.mark.parametrize("value", WITHOUT_IMAGE, ids=repr)
async def test_what_is_no_url_is_named(value: Any) -> None:
    part = {"type": "image_url", "image_url": value}
    async with running(images=FakeImages()) as api:
        error = await api.refused(CHAT, {"messages": [user(text("a")), user(text("a")), user(text("a"), part)]})
        assert api.engine.requests == []
    assert (error["param"], error["code"]) == ("messages[2].content[1].image_url", "invalid_value")
    assert "'messages[2].content[1].image_url'" in error["message"]


async def test_a_part_without_an_image_is_named() -> None:
    async with running(images=FakeImages()) as api:
        error = await api.refused(CHAT, {"messages": [user({"type": "image_url"})]})
    assert error["param"] == "messages[0].content[0].image_url"


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"messages": [user(text("a"), image("!"))]}, "messages[0].content[1].image_url"),
    (CHAT, {"messages": [user(image_url=url_of("!"))]}, "messages[0].image_url"),
    (CHAT, {"messages": [user(image_url=3)]}, "messages[0].image_url"),
    (RESPONSES, {"input": [user({"type": "input_image", "image_url": "!"})]}, "input[0].content[0].image_url"),
    (RESPONSES, {"input": [user({"type": "input_image", "file_id": "f"})]}, "input[0].content[0].file_id"),
    ("/api/chat", {"messages": [{"role": "user", "content": "a", "images": ["red", "!"]}]}, "messages[0].images[1]"),
    ("/api/chat", {"messages": [{"role": "user", "content": "a", "images": "red"}]}, "messages[0].images"),
    ("/api/generate", {"prompt": "a", "images": [""]}, "images[0]"),
    ("/api/generate", {"prompt": "a", "images": ["!"]}, "images[0]"),
    ("/api/generate", {"prompt": "a", "images": ["red"], "suffix": "b"}, "images"),
    ("/api/v1/generate", {"prompt": "a", "images": [3]}, "images[0]"),
    ("/api/v1/generate", {"prompt": "a", "images": ["!"]}, "images[0]"),
    (
        "/completion",
        {"prompt": {"prompt_string": "<__media__>", "multimodal_data": ["!"]}},
        "prompt.multimodal_data[0]",
    ),
    ("/completion", {"prompt": {"prompt_string": "a", "multimodal_data": ["red"]}}, "prompt.multimodal_data"),
    (
        "/completion",
        {"prompt": ["a", {"prompt_string": "<__media__>", "multimodal_data": [""]}]},
        "prompt[1].multimodal_data[0]",
    ),
    ("/completion", {"prompt": "[img-1]", "image_data": [{"id": 1, "data": "!"}]}, "image_data[0].data"),
    ("/completion", {"prompt": "[img-1]", "image_data": [{"id": "1", "data": "red"}]}, "image_data[0]"),
    ("/completion", {"prompt": "a", "image_data": [{"id": 1, "data": "red"}]}, "image_data[0].data"),
    ("/v1/completions", {"prompt": "a", "image_data": [{"id": 1, "data": "red"}]}, "image_data"),
    ("/v1/completions", {"prompt": "a", "images": ["red"]}, "images"),
    ("/completion", {"prompt": "a", "images": ["red"]}, "images"),
]


@pytest.mark.parametrize(("path", "body", "param"), REFUSED)
async def test_an_image_that_is_refused_is_named(path: str, body: dict[str, Any], param: str) -> None:
    async with running(images=FakeImages()) as api:
        error = (await api.post(path, body)).json()["error"]
        assert api.engine.requests == []
        streamed = await api.post(path, {**body, "stream": True})
    assert error["param"] == param
    assert f"'{param}'" in error["message"]
    assert (streamed.status_code, streamed.json()["error"]["param"]) == (400, param)


async def test_anthropics_errors_name_its_own_blocks() -> None:
    messages = [
        user({"type": "tool_result", "tool_use_id": "t", "content": [text("x"), source("!")]}, text("a")),
    ]
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "look", "input": {}}]}
    async with running(images=FakeImages()) as api:
        response = await api.post(MESSAGES, {"max_tokens": 5, "messages": [user(text("a")), call, *messages]})
        other = await api.post(MESSAGES, {"max_tokens": 5, "messages": [user(text("a"), source("!"))]})
    assert (response.status_code, response.json()["type"]) == (400, "error")
    assert response.json()["error"]["param"] == "messages[2].content[0].content[1].source"
    assert other.json()["error"]["param"] == "messages[0].content[1].source"


WAYS: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"messages": [user(image("red"))]}, "messages[0].content[0].image_url"),
    (f"{CHAT}/input_tokens", {"messages": [user(image("red"))]}, "messages[0].content[0].image_url"),
    (CHAT, {"messages": [user(image_url=url_of("red"))]}, "messages[0].image_url"),
    (
        RESPONSES,
        {"input": [user({"type": "input_image", "image_url": url_of("red")})]},
        "input[0].content[0].image_url",
    ),
    (MESSAGES, {"max_tokens": 5, "messages": [user(source("red"))]}, "messages[0].content[0].source"),
    (f"{MESSAGES}/count_tokens", {"messages": [user(source("red"))]}, "messages[0].content[0].source"),
    ("/api/chat", {"messages": [{"role": "user", "content": "a", "images": ["red"]}]}, "messages[0].images[0]"),
    ("/api/generate", {"prompt": "a", "images": ["red"]}, "images[0]"),
    ("/api/generate", {"prompt": "a", "images": ["red"], "raw": True}, "images[0]"),
    ("/api/v1/generate", {"prompt": "a", "images": ["red"]}, "images[0]"),
    (
        "/completion",
        {"prompt": {"prompt_string": "<__media__>", "multimodal_data": ["red"]}},
        "prompt.multimodal_data[0]",
    ),
    (
        "/tokenize",
        {"content": {"prompt_string": "<__media__>", "multimodal_data": ["red"]}},
        "content.multimodal_data[0]",
    ),
    ("/tokenize", {"messages": [user(image("red"))]}, "messages[0].content[0].image_url"),
    ("/apply-template", {"messages": [user(image("red"))]}, "messages[0].content[0].image_url"),
]


@pytest.mark.parametrize(("path", "body", "param"), WAYS)
async def test_without_a_projector_images_are_refused_in_words_that_help(
    path: str, body: dict[str, Any], param: str
) -> None:
    async with running() as api:
        response = await api.post(path, body)
        assert api.engine.requests == []
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert "--mmproj FILE" in error["message"]


async def test_a_request_of_very_many_images_is_refused() -> None:
    images = FakeImages()
    async with running(images=images) as api:
        error = await api.refused(CHAT, {"messages": [user(*[image("red")] * 501)]})
    assert error["param"] == "messages[0].content[500].image_url"
    assert images.loaded == []


async def test_a_prompt_that_does_not_fit_costs_no_encoding() -> None:
    images = FakeImages()
    async with running(engine=FakeEngine(n_ctx=64), images=images) as api:
        error = await api.refused(CHAT, {"messages": [user(*[image("red")] * 12)]})
        assert api.engine.requests == []
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "messages"
    assert images.encoded == []
