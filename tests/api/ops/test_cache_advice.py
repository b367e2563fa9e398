"""`GET /v1/cache/advice` over the fakes: what is said, to whom, and what the log and the metrics get of it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from ggufd.api.services.settings import ApiConfig
from ggufd.keys.ring import Key, KeyRing, Role, digest_of
from tests.chat.advice.chats import RULES, answer, chatml, talk
from tests.support.fakes.api_client import Api, FakeModels, running
from tests.support.fakes.fake_engine import FakeEngine, FakeText

PATH = "/v1/cache/advice"
ADA, BOB, EVE = ({"authorization": f"Bearer {name}"} for name in ("ada", "bob", "eve"))


def ring() -> KeyRing:
    """Two users and an admin."""
    roles = {"ada": Role.USER, "bob": Role.USER, "eve": Role.ADMIN}
    return KeyRing(Key(name, digest_of(name), role) for name, role in roles.items())


def engine() -> FakeEngine:
    """An engine whose slots hold these chats."""
    return FakeEngine(n_ctx=8192)


def answer_next(api: Api, turn: int) -> None:
    """Let the model answer what `messages_of` has as its answer a turn later."""
    api.engine.answers = [answer(turn - 1).encode()]


def messages_of(turn: int, system: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in [("system", system), *talk(turn)]]


async def chat(api: Api, n_turns: int = 3, system: str = "Ahoy canary! It is 12:0{}. ", **options: Any) -> None:
    """A chat with a clock in its system text."""
    for turn in range(n_turns):
        messages = messages_of(turn + 2, system.format(turn) + RULES)
        answer_next(api, turn + 2)
        response = await api.post("/v1/chat/completions", {"messages": messages}, **options)
        assert response.status_code == 200, response.text


async def advice(api: Api, **options: Any) -> list[dict[str, Any]]:
    response = await api.http.get(PATH, **options)
    assert response.status_code == 200, response.text
    body = response.json()
    assert body["object"] == "list"
    data: list[dict[str, Any]] = body["data"]
    return data


async def test_nothing_is_said_before_anything_was_seen() -> None:
    async with running(engine()) as api:
        response = await api.http.get(PATH)
    assert response.json() == {"object": "list", "enabled": True, "repairs": ["billing_header"], "data": []}


async def test_a_clock_near_the_top_is_found_with_its_words_place_and_cost() -> None:
    async with running(engine()) as api:
        await chat(api, 4)
        (found,) = await advice(api)
        prompt = len(api.engine.requests[-1].prompt)
    assert found.pop("advice").startswith("A date or a time is in the prompt")
    since, last = found.pop("since"), found.pop("last")
    assert 0 < last - since + 1 < 60
    position = len("system: Ahoy canary! It is 12:0")
    tokens, seconds = found.pop("tokens_per_turn"), found.pop("seconds_per_turn")
    assert len(RULES) < tokens <= prompt - position
    # The fake engine takes 0.02 s for each prompt, and part of each is new.
    assert 0 < seconds < 0.02
    assert found == {
        "object": "cache.advice",
        "class": "date_or_time",
        "position": position,
        "prompt_tokens": prompt,
        "share": round(position / prompt, 4),
        "message": 0,
        "role": "system",
        "turns": 3,
        "key": None,
        "own": True,
        "quote": {name: f" Ahoy canary! It is 12:0{n}. {RULES}"[:80] for name, n in (("before", 2), ("now", 3))},
    }


@pytest.mark.parametrize(
    ("path", "field"),
    [("/v1/completions", "prompt"), ("/completion", "prompt"), ("/api/v1/generate", "prompt"), ("/v1/messages", "")],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_every_way_to_send_a_prompt_is_looked_at(path: str, field: str, stream: bool) -> None:
    async with running(engine()) as api:
        for turn in range(3):
            system = f"It is 12:0{turn}. {RULES}"
            answer_next(api, turn + 2)
            body: dict[str, Any] = {field: chatml([("system", system), *talk(turn + 2)])}
            if not field:
                body = {"system": system, "messages": messages_of(turn + 2, "")[1:], "max_tokens": 9}
            assert (await api.post(path, {**body, "stream": stream})).status_code == 200
        (found,) = await advice(api)
    assert (found["class"], found["turns"]) == ("date_or_time", 2)


async def test_the_order_of_tools_is_seen() -> None:
    tools = [
        {"type": "function", "function": {"name": name, "description": f"To {name} a file.", "parameters": {}}}
        for name in ("read", "write", "edit")
    ]
    async with running(engine()) as api:
        for turn in range(3):
            answer_next(api, turn + 2)
            turned = tools[turn:] + tools[:turn]
            told = "\n".join(tool["function"]["description"] for tool in turned)
            await api.ok("/v1/chat/completions", messages=messages_of(turn + 2, f"{told}\n{RULES}"), tools=turned)
        (found,) = await advice(api)
    assert found["class"] == "tools_order"


async def test_tokens_without_a_text_are_not_looked_at() -> None:
    async with running(engine()) as api:
        for turn in range(4):
            answer_next(api, turn + 2)
            text = chatml([("system", f"It is 12:0{turn}. {RULES}"), *talk(turn + 2)])
            await api.ok("/v1/completions", prompt=list(text.encode()))
        assert await advice(api) == []


async def test_words_are_the_owners_alone() -> None:
    async with running(engine(), keys=ring()) as api:
        await chat(api, headers=ADA)
        (own,) = await advice(api, headers=ADA)
        assert await advice(api, headers=BOB) == []
        (seen,) = await advice(api, headers=EVE)
        assert (await api.http.get(PATH)).status_code == 401
    assert (own["own"], own["key"]) == (True, "ada")
    assert "12:02" in own["quote"]["now"]
    assert seen == {**own, "own": False, "quote": None}


async def test_what_was_kept_of_a_key_goes_with_it() -> None:
    keys = ring()
    async with running(engine(), keys=keys) as api:
        await chat(api, headers=ADA)
        await chat(api, headers=BOB)
        renewed = [Key("ada", digest_of("new")), *(key for key in keys if key.name != "ada")]
        keys.replace(renewed)
        assert await advice(api, headers={"authorization": "Bearer new"}) == []
        assert [found["key"] for found in await advice(api, headers=EVE)] == ["bob"]


async def test_prompts_go_with_their_model_and_findings_stay() -> None:
    models = FakeModels()
    async with running(engine(), models=models) as api:
        await chat(api)
        models.show(engine(), FakeText(), ApiConfig(model_id="another"))
        services = api.http._transport.app.state.services  # type: ignore[attr-defined]
        assert not list(services.advisor.chats())
        assert [found["class"] for found in await advice(api)] == ["date_or_time"]


async def test_where_it_is_switched_off_nothing_is_kept() -> None:
    async with running(engine(), cache_advice=False) as api:
        await chat(api, 5)
        response = await api.http.get(PATH)
        assert not api.http._transport.app.state.services.advisor.owners  # type: ignore[attr-defined]
    assert (response.json()["enabled"], response.json()["data"]) == (False, [])


async def test_the_log_gets_cause_and_place_and_no_words(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ggufd")
    async with running(engine(), keys=ring()) as api:
        await chat(api, 5, headers=ADA)
    lines = [record.getMessage() for record in caplog.records if "/v1/cache/advice" in record.getMessage()]
    assert len(lines) == 1, "a finding is told once"
    assert lines[0].startswith("ada: cache: date_or_time at token 31 of ")
    assert "canary" not in caplog.text
    assert "12:0" not in caplog.text


async def test_the_metrics_count_causes_and_places() -> None:
    async with running(engine(), keys=ring()) as api:
        await chat(api, 4, headers=ADA)
        text = (await api.http.get("/metrics", headers=EVE)).text
    assert 'ggufd_lost_prefixes_total{cause="date_or_time",place="top"} 3.0' in text
    (tokens,) = [line for line in text.splitlines() if line.startswith("ggufd_lost_prefix_tokens_total{")]
    assert float(tokens.split()[-1]) > 3 * len(RULES)
    assert "canary" not in text


async def test_an_ordinary_chat_leaves_no_trace() -> None:
    async with running(engine()) as api:
        await chat(api, 6, system="Ahoy! ")
        text = (await api.http.get("/metrics")).text
        assert await advice(api) == []
    assert "ggufd_lost_prefixes_total{" not in text
