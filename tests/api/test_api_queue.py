"""The queue over HTTP: who sees what, places told in a stream, and requests that have only so much time."""

from __future__ import annotations

from typing import Any

import pytest

from ggufd.engine.messages.events import Turn
from ggufd.engine.messages.reports import QueueEntry
from ggufd.errors import QueueTimeout
from ggufd.keys.principal import Principal
from ggufd.keys.ring import Key, KeyRing, Role, digest_of
from tests.support.fakes.api_client import running
from tests.support.fakes.fake_engine import FakeEngine

KEYS = KeyRing([Key("alice", digest_of("a")), Key("bob", digest_of("b")), Key("root", digest_of("r"), Role.ADMIN)])


def entry(request_id: int, key: str, turn: Turn | None = None) -> QueueEntry:
    return QueueEntry(request_id, Principal(key, key), -1, 12.34, 100, 7, turn, 1.61)


def with_queue() -> FakeEngine:
    engine = FakeEngine()
    engine.queue = (entry(3, "alice"), entry(4, "bob", Turn(1, 3.21)), entry(5, "alice", Turn(2, 9.0)))
    return engine


@pytest.mark.parametrize(("key", "ids"), [("a", [3, 5]), ("b", [4]), ("r", [3, 4, 5])])
async def test_everybody_sees_what_is_his_own_and_an_admin_sees_all(key: str, ids: list[int]) -> None:
    async with running(with_queue(), keys=KEYS) as api:
        answer = await api.http.get("/v1/queue", headers={"x-api-key": key})
    found = answer.json()
    assert [one["id"] for one in found["data"]] == ids
    assert (found["slots"], found["running"], found["waiting"]) == (4, 1, 2)


async def test_an_entry_says_where_it_stands() -> None:
    async with running(with_queue()) as api:
        for path in ("/v1/queue", "/queue"):
            first, second, _ = (await api.http.get(path)).json()["data"]
            assert first == {
                "id": 3,
                "model": "fake-model",
                "object": "queue.request",
                "status": "running",
                "key": "alice",
                "priority": -1,
                "age_s": 12.3,
                "prompt_tokens": 100,
                "completion_tokens": 7,
            }
            assert (second["status"], second["position"], second["eta_s"]) == ("waiting", 1, 3.2)
            assert second["may_be_passed_s"] == 1.6


async def test_without_a_key_nobody_is_shown_anything() -> None:
    async with running(with_queue(), keys=KEYS) as api:
        assert (await api.http.get("/v1/queue")).status_code == 401


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"prompt": "x"}),
        ("/completion", {"prompt": "x"}),
        ("/api/extra/generate/stream", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 20}),
    ],
)
async def test_places_are_told_as_comments_to_who_asks(path: str, body: dict[str, Any]) -> None:
    engine = FakeEngine()
    for asks in (True, False):
        engine.turns = [Turn(3, 12.04), Turn(1, 0.0)]
        async with running(engine) as api:
            answer = await api.http.post(path, json=body | {"stream": True, "report_queue": asks})
        comments = [line for line in answer.text.splitlines() if line.startswith(": queue")]
        expected = [": queue position=3 eta_s=12.0", ": queue position=1 eta_s=0.0"] if asks else []
        assert comments == expected
        assert answer.text.count("event:") + answer.text.count("data:") > len("Hello world")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_request_that_comes_too_late_is_refused_before_the_headers(stream: bool) -> None:
    engine = FakeEngine()
    engine.late_refusal = QueueTimeout("due in about 40 s", param="timeout", retry_after_s=35.5)
    async with running(engine) as api:
        answer = await api.http.post("/v1/completions", json={"prompt": ["x", "y"], "timeout": 5, "stream": stream})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "36")
    assert answer.json()["error"]["param"] == "timeout"
    assert len(engine.aborted) == 2


async def test_a_timeout_reaches_the_engine() -> None:
    async with running() as api:
        answer = await api.http.post("/v1/completions", json={"prompt": "x", "timeout": 2.5})
        assert answer.status_code == 200
        assert api.engine.requests[-1].timeout_s == 2.5


@pytest.mark.parametrize("seconds", [0, -1, "soon", 1e300, True])
async def test_a_timeout_that_cannot_be_is_a_400_that_names_it(seconds: Any) -> None:
    async with running() as api:
        answer = await api.http.post("/v1/completions", json={"prompt": "x", "timeout": seconds})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "timeout"
