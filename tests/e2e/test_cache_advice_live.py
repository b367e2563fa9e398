"""Cache advice by the real server: what it says of real chats, whose answers the demo model writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.chat.advice.chats import RULES
from tests.support.limits import ANSWER_S
from tests.support.programs.live_server import LiveServer, live_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

QUESTIONS = [f"And what did captain number {number} find on the island?" for number in range(12)]


@pytest.fixture
def server() -> Iterator[LiveServer]:
    with live_server("--ctx-size", "4096", "--temp", "0") as running:
        yield running


def chat(server: LiveServer, systems: list[str]) -> list[int]:
    """A chat by OpenAI's client, with these system texts turn after turn; the tokens that each turn computed."""
    messages: list[Any] = []
    computed = []
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        for turn, system in enumerate(systems):
            messages.append({"role": "user", "content": QUESTIONS[turn]})
            everything: list[Any] = [{"role": "system", "content": system}, *messages]
            answer = client.chat.completions.create(model="any", messages=everything, max_tokens=24)
            messages.append({"role": "assistant", "content": answer.choices[0].message.content})
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            computed.append(answer.usage.prompt_tokens - (answer.usage.prompt_tokens_details.cached_tokens or 0))
    return computed


def story(server: LiveServer, *, n_kept: int, n_turns: int = 9) -> None:
    """A chat by text completion, whose frontend sends the last few lines only."""
    lines: list[str] = []
    for turn in range(n_turns):
        lines.append(f"Bob: {QUESTIONS[turn]}")
        prompt = "\n".join([RULES, *lines[-n_kept:], "Alice:"])
        body = {"prompt": prompt, "n_predict": 24, "stop": ["\n"], "temperature": 0}
        answer = httpx.post(f"{server.url}/completion", json=body, timeout=120).json()
        lines.append(f"Alice:{answer['content'].rstrip()}")


def findings(server: LiveServer) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = httpx.get(f"{server.url}/v1/cache/advice", timeout=ANSWER_S).json()["data"]
    return data


@pytest.mark.long
def test_a_clock_in_the_system_prompt_is_found_and_its_cost_is_what_was_computed(server: LiveServer) -> None:
    chat(server, [RULES] * 5)
    assert findings(server) == [], "a chat that grows"
    computed = chat(server, [f"It is 12:3{minute}. {RULES}" for minute in range(5)])
    (found,) = findings(server)
    assert (found["class"], found["turns"], found["role"]) == ("date_or_time", 4, "system")
    assert found["position"] < 20
    assert found["tokens_per_turn"] > 300
    # The new question and the last answer would have been computed in any case.
    assert sum(computed[1:]) / 4 - 100 < found["tokens_per_turn"] <= sum(computed[1:]) / 4
    assert found["seconds_per_turn"] > 0
    assert "12:33" in found["quote"]["before"]
    assert "12:34" in found["quote"]["now"]
    (line,) = [line for line in server.log if "GET /v1/cache/advice" in line]
    assert "date_or_time" in line
    assert "12:3" not in line


def test_a_frontend_that_trims_its_history_is_found(server: LiveServer) -> None:
    story(server, n_kept=40)
    assert findings(server) == []
    story(server, n_kept=9)
    (found,) = findings(server)
    assert found["class"] == "history_trimmed"
    assert found["turns"] >= 3
    assert (found["message"], found["role"]) == (None, None)
