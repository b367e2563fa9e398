"""`explain_cache` on every generating route, over the fakes: a byte is a token, a message is a line of the prompt."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from ggufd.engine.messages.events import CacheDifference, CacheReport, CacheSource
from ggufd.errors import EngineDown
from tests.support.fakes.api_client import parse_events, ring_of, running
from tests.support.fakes.fake_engine import FakeEngine, FakeText

CHAT = "/v1/chat/completions"
MESSAGES = [
    {"role": "system", "content": "You are a pirate."},
    {"role": "user", "content": "  Where is the treasure?"},
    {"role": "assistant", "content": "Here."},
    {"role": "user", "content": "Thanks."},
]
PROMPT = "system: You are a pirate.\nuser:   Where is the treasure?\nassistant: Here.\nuser: Thanks.\nassistant: "
TREASURE = PROMPT.index("treasure")


def engine_with(
    token: int, held: bytes | None = b"rum?", source: CacheSource | None = CacheSource.COPIED
) -> FakeEngine:
    """An engine whose cache held something else from `token` on."""
    engine = FakeEngine()
    engine.cached_tokens = token
    engine.cache = CacheReport(source, CacheDifference(token, None if held is None else tuple(held)))
    return engine


async def first_difference(token: int, **body: Any) -> Any:
    """What a chat is told when the cache held something else from `token` on."""
    async with running(engine_with(token)) as api:
        answer = await api.ok(CHAT, messages=MESSAGES, explain_cache=True, **body)
    return answer["cache"]["first_difference"]


async def test_an_answer_says_what_was_reused_and_where_the_prompt_differs() -> None:
    async with running(engine_with(TREASURE)) as api:
        answer = await api.ok(CHAT, messages=MESSAGES, explain_cache=True)
        assert bytes(api.engine.requests[0].prompt).decode() == PROMPT
    assert answer["cache"] == {
        "reused": TREASURE,
        "of": len(PROMPT),
        "from": "copied",
        "computed_s": 0.02,
        "first_difference": {
            "token": TREASURE,
            "character": len("  Where is the "),
            "message": 1,
            "role": "user",
            "prompt": " is the treasure?\nassist",
            "cached": " is the rum?",
        },
    }


@pytest.mark.parametrize(
    ("token", "place"),
    [
        (0, (0, "system", 0)),
        (len("system: You"), (0, "system", 3)),
        (PROMPT.index("\nuser"), (1, "user", 2)),
        (PROMPT.index("Here."), (2, "assistant", 0)),
        (PROMPT.index("Thanks.") + 6, (3, "user", 6)),
        (len(PROMPT) - 2, (None, None, len(PROMPT) - 2)),
    ],
    ids=["the beginning", "a system message", "before a message", "an answer", "a last character", "behind all"],
)
async def test_the_message_is_named(token: int, place: tuple[Any, ...]) -> None:
    first = await first_difference(token)
    assert (first["message"], first["role"], first["character"]) == place


@pytest.mark.parametrize("inside", [0, 1, 2, 3])
async def test_a_difference_within_a_character_is_at_that_character(inside: int) -> None:
    async with running(engine_with(len("user: ab") + inside)) as api:
        answer = await api.ok(CHAT, messages=[{"role": "user", "content": "ab\U0001f600cd"}], explain_cache=True)
    assert answer["cache"]["first_difference"]["character"] == 2


async def test_the_last_chunk_of_each_choice_says_it() -> None:
    async with running(engine_with(5)) as api:
        events = await api.events(CHAT, messages=MESSAGES, n=2, explain_cache=True)
    told = [event for event in events[:-1] if "cache" in event]
    assert [event["choices"][0]["index"] for event in told] == [0, 1]
    assert all("timings" in event and event["choices"][0]["finish_reason"] for event in told)
    assert told[0]["cache"]["first_difference"]["token"] == 5


async def test_a_prompt_that_goes_on_where_the_cache_ended_differs_nowhere() -> None:
    engine = FakeEngine()
    engine.cache = CacheReport(CacheSource.SAME_SLOT)
    async with running(engine) as api:
        cache = (await api.ok(CHAT, messages=MESSAGES, explain_cache=True))["cache"]
    assert (cache["from"], cache["first_difference"]) == ("same_slot", None)


async def test_anothers_text_is_not_told() -> None:
    async with running(engine_with(TREASURE, None)) as api:
        answer = await api.ok(CHAT, messages=MESSAGES, explain_cache=True)
    first = answer["cache"]["first_difference"]
    assert first["cached"] is None
    assert first["message"] == 1


@pytest.mark.parametrize(("keys", "person"), [((), "127.0.0.1"), (("secret",), None)], ids=["address", "key"])
async def test_a_person_is_a_key_or_else_an_address(keys: tuple[str, ...], person: str | None) -> None:
    async with running(keys=ring_of(*keys) if keys else None) as api:
        headers = {"authorization": "Bearer secret"}
        await api.post(CHAT, {"messages": MESSAGES}, headers=headers)
        (request,) = api.engine.requests
    assert request.principal.person == (request.principal.name if person is None else person)
    assert request.principal.person
    assert not request.explain_cache


ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "abcdefgh"}),
    ("/v1/completions", {"prompt": list(b"abcdefgh")}),
    ("/completion", {"prompt": "abcdefgh"}),
    ("/completion", {"prompt": ["abcd", *b"efgh"]}),
    ("/api/v1/generate", {"prompt": "efgh", "memory": "abcd"}),
    ("/api/generate", {"prompt": "abcdefgh", "raw": True, "stream": False}),
]


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_every_text_route_explains(path: str, body: dict[str, Any]) -> None:
    async with running(engine_with(4)) as api:
        answers = [await api.ok(path, **body, **more) for more in ({"explain_cache": True}, {})]
    told, untold = [answer["results"][0] if "results" in answer else answer for answer in answers]
    first = {"token": 4, "character": 4, "message": None, "role": None, "prompt": "abcdefgh", "cached": "abcdrum?"}
    assert told["cache"]["first_difference"] == first
    assert "cache" not in untold


@pytest.mark.parametrize("path", ["/v1/completions", "/completion", "/api/extra/generate/stream", "/api/generate"])
async def test_every_text_stream_explains_at_its_end(path: str) -> None:
    async with running(engine_with(4)) as api:
        response = await api.post(path, {"prompt": "abcdefgh", "stream": True, "raw": True, "explain_cache": True})
    text = response.text.replace("event: message\n", "")
    lines = path == "/api/generate"
    events = [json.loads(line) for line in text.splitlines()] if lines else parse_events(text)
    events = [event for event in events if event != "[DONE]"]
    assert ["cache" in event for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["cache"]["first_difference"]["cached"] == "abcdrum?"


async def test_ollamas_chat_names_the_message() -> None:
    async with running(engine_with(TREASURE)) as api:
        answer = await api.ok("/api/chat", messages=MESSAGES, stream=False, explain_cache=True)
    assert answer["cache"]["first_difference"]["message"] == 1


async def test_a_bos_that_the_text_does_not_show_shifts_no_character() -> None:
    async with running(engine_with(5), FakeText(adds_bos=True)) as api:
        answer = await api.ok("/v1/completions", prompt="abcdefgh", explain_cache=True)
    first = answer["cache"]["first_difference"]
    assert (first["token"], first["character"]) == (5, 4)


class ForgetfulText(FakeText):
    """A vocabulary that drops line ends, as some do beside special tokens."""

    async def decode(self, tokens: Sequence[int]) -> str:
        return (await super().decode(tokens)).replace("\n", "")


@pytest.mark.parametrize("token", [TREASURE - 1, TREASURE, PROMPT.index("Here.")])
async def test_blanks_that_tokens_do_not_give_back_shift_no_character(token: int) -> None:
    async with running(engine_with(token), ForgetfulText()) as api:
        answer = await api.ok(CHAT, messages=MESSAGES, explain_cache=True)
    first, exact = answer["cache"]["first_difference"], await first_difference(token)
    assert (first["message"], first["character"]) == (exact["message"], exact["character"])


async def test_an_answer_does_not_depend_on_its_explanation(monkeypatch: pytest.MonkeyPatch) -> None:
    async def down(*_: Any) -> str:
        raise EngineDown("the text process is being started again")

    async with running(engine_with(4)) as api:
        monkeypatch.setattr(api.text, "decode", down)
        answer = await api.ok(CHAT, messages=MESSAGES, explain_cache=True)
    assert answer["choices"][0]["message"]["content"] == "Hello world"
    assert "cache" not in answer


async def test_the_log_says_it_in_a_line_at_debug_whoever_asks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "ggufd.api.answer.explain")
    async with running(engine_with(TREASURE), logs_cache=True) as api:
        answer = await api.ok(CHAT, messages=MESSAGES)
    assert "cache" not in answer
    (record,) = [record for record in caplog.records if record.name == "ggufd.api.answer.explain"]
    assert record.levelno == logging.DEBUG
    message = record.getMessage()
    assert "\n" not in message
    assert f"reused {TREASURE} of {len(PROMPT)} prompt tokens (copied)" in message
    assert f"token {TREASURE}, character 15 of message 1 (user)" in message
    assert "' is the rum?'" in message


async def test_no_text_is_logged_above_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running(engine_with(TREASURE)) as api:
        await api.ok(CHAT, messages=MESSAGES, explain_cache=True)
    assert "treasure" not in caplog.text
