"""The live stream over HTTP: what is in a message, who is shown which rows, and when it ends."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ggufd.api.live.collector import INTERVAL_S
from ggufd.engine.messages.events import Turn
from ggufd.engine.messages.reports import LiveSlot, LiveState, QueueEntry, SlotState, Spread, Stats
from ggufd.errors import EngineDown
from ggufd.keys.principal import Principal
from ggufd.keys.ring import Key, KeyRing, Limits, Role, digest_of
from tests.support.fakes.api_server import Served, serving, wait_until
from tests.support.fakes.fake_engine import FakeEngine, FakeState
from tests.support.limits import ANSWER_S

SECRET = "the prompt that nobody else may read"


def keys() -> KeyRing:
    return KeyRing(
        [
            Key("alice", digest_of("a"), limits=Limits(weight=3.0, max_running=2)),
            Key("bob", digest_of("b")),
            Key("root", digest_of("r"), Role.ADMIN),
        ]
    )


def entry(request_id: int, key: str, turn: Turn | None = None) -> QueueEntry:
    return QueueEntry(request_id, Principal(key, key, key), 0, 2.5, 100, 7, turn)


def state(steps: int = 0, generated: int = 0) -> LiveState:
    """Alice reads and Bob writes; a slot keeps what Bob had, one is empty. Bob and Alice wait."""
    slots = (
        LiveSlot(0, "alice", 1, 100, 20, 60, 0, 2.0),
        LiveSlot(1, "bob", 2, 50, 0, 59, 10, 5.0),
        LiveSlot(2, "bob", None, 0, 0, 77, 0, 30.0),
        LiveSlot(3, "", None, 0, 0, 0, 0, 0.0),
    )
    stats = Stats(
        waiting=2,
        running=2,
        steps=steps,
        computed_tokens=steps * 4,
        cached_tokens=20,
        generated_tokens=generated,
        step_s=0.0,
        step_gap_s=0.0,
        slots=tuple(SlotState(one.slot, one.request_id, one.n_past, one.n_past) for one in slots),
        evictions=3,
        token_gap_seconds=Spread((0.1, 0.2), (generated, 0, 0), 0.0),
    )
    queue = (entry(1, "alice"), entry(2, "bob"), entry(3, "bob", Turn(1, 4.0)), entry(4, "alice", Turn(2, 9.0)))
    return LiveState(stats, slots, queue, (("alice", 30.0), ("bob", 10.0)), 80)


@pytest.fixture(autouse=True)
def interval_s(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds between two looks at the engine: fewer than in the product, unless a test asks for its own."""
    seconds: float = getattr(request, "param", 0.1)
    monkeypatch.setattr("ggufd.api.live.collector.INTERVAL_S", seconds)
    return seconds


@pytest.fixture
def served(interval_s: float) -> Iterator[Served]:
    engine = FakeEngine()
    engine.live = state()
    with serving(engine, keys=keys()) as one:
        yield one


@contextmanager
def looking(served: Served, key: str = "r") -> Iterator[Iterator[dict[str, Any]]]:
    """The messages that a key is sent."""
    with httpx.stream(
        "GET", f"{served.url}/v1/live", headers={"x-api-key": key}, trust_env=False, timeout=ANSWER_S
    ) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield (json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: "))


def first(served: Served, key: str = "r") -> dict[str, Any]:
    with looking(served, key) as messages:
        return next(messages)


@pytest.mark.parametrize("interval_s", [INTERVAL_S], indirect=True)
def test_a_snapshot_comes_first_and_then_a_message_a_second(served: Served) -> None:
    with looking(served) as messages:
        found = [(one["object"], time.monotonic()) for one, _ in zip(messages, range(3), strict=False)]
    assert [kind for kind, _ in found] == ["live.snapshot", "live.update", "live.update"]
    assert all(0.9 < later - sooner < 2.5 for (_, sooner), (_, later) in itertools.pairwise(found))


def test_a_slot_says_what_it_does_or_keeps(served: Served) -> None:
    reading, writing, kept, empty = first(served)["slots"]
    assert (reading["state"], reading["owner"], reading["request"]) == ("reading", "alice", 1)
    assert (reading["computed_tokens"], reading["prompt_tokens"], reading["cached_tokens"]) == (60, 100, 20)
    assert reading["tokens_per_s"] == 20.0
    assert (writing["state"], writing["completion_tokens"], writing["tokens_per_s"]) == ("writing", 10, 2.0)
    assert (kept["state"], kept["tokens"], kept["seconds"], "request" in kept) == ("idle", 77, 30.0, False)
    assert (empty["state"], empty["owner"]) == ("empty", None)


@pytest.mark.parametrize(
    ("key", "slots", "queue", "names"),
    [("a", [0], [4], ["alice"]), ("b", [1, 2], [3], ["bob"]), ("r", [0, 1, 2, 3], [3, 4], ["alice", "bob", "root"])],
)
def test_a_key_sees_its_own_rows_and_an_admin_all(
    served: Served, key: str, slots: list[int], queue: list[int], names: list[str]
) -> None:
    found = first(served, key)
    assert [one["id"] for one in found["slots"]] == slots
    assert [one["request"] for one in found["queue"]] == queue
    assert [one["name"] for one in found["keys"]] == names
    # The totals are of all.
    assert found["totals"] == {"running": 0, "waiting": 0, "slots": 4, "reading": 1, "writing": 1, "keeping": 1}
    assert (found["server"]["sees"], found["server"]["is_admin"]) == (("all", True) if key == "r" else ("own", False))


def test_a_batch_that_has_not_ended_is_shown_to_its_key_and_to_admins(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.live = state()
    line = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {"prompt": SECRET}}
    with serving(engine, keys=keys(), batch_dir=tmp_path / "batches") as served:
        with httpx.Client(base_url=served.url, headers={"x-api-key": "a"}, trust_env=False, timeout=ANSWER_S) as client:
            lines = "\n".join(json.dumps({**line, "custom_id": str(number)}) for number in range(3))
            sent = client.post("/v1/files", files={"file": ("x.jsonl", lines)}, data={"purpose": "batch"}).json()
            order = {"input_file_id": sent["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
            batch = client.post("/v1/batches", json=order).json()
        shown = {key: first(served, key)["batches"] for key in "abr"}
        told = json.dumps(first(served, "b"))
    (one,) = shown["a"]
    assert (one["id"], one["owner"], one["endpoint"]) == (batch["id"], "alice", "/v1/completions")
    assert one["state"] in ("validating", "in_progress")
    assert (shown["r"], shown["b"]) == (shown["a"], [])
    assert "alice" not in told
    assert batch["id"] not in told


def test_without_batches_there_are_none(served: Served) -> None:
    assert first(served)["batches"] == []


def test_nobody_is_named_to_somebody_else(served: Served) -> None:
    for model in ("fake-model", "bob's"):
        _ask(served, "b", model)
    told = json.dumps(first(served, "a"))
    assert "bob" not in told
    assert "root" not in told


def test_keys_have_their_shares_and_limits(served: Served) -> None:
    with looking(served) as messages:
        alice, bob, root = next(messages)["keys"]
    assert (alice["weight"], alice["max_running"], alice["running"], alice["waiting"]) == (3.0, 2, 1, 1)
    assert (alice["served"], alice["share"], alice["fair_share"]) == (30.0, 0.75, 0.75)
    assert (bob["served"], bob["share"], bob["fair_share"]) == (10.0, 0.25, 0.25)
    assert (root["served"], root["fair_share"]) == (0.0, None)


def _ask(served: Served, key: str, model: str = "fake-model") -> None:
    body = {"prompt": SECRET, "model": model, "user": SECRET}
    headers = {"x-api-key": key, "x-request-id": "the-prompt-that-nobody"}
    httpx.post(f"{served.url}/v1/completions", json=body, headers=headers, trust_env=False, timeout=ANSWER_S)


def test_requests_that_ended_are_shown_without_a_word_of_them(served: Served) -> None:
    _ask(served, "a")
    _ask(served, "b")
    for key, owners in (("a", ["alice"]), ("b", ["bob"]), ("r", ["alice", "bob"])):
        found = first(served, key)
        assert [one["owner"] for one in found["requests"]] == owners
        told = json.dumps(found)
        assert not any(word in told for word in ("prompt that", "the-prompt", "Hello world"))
    (one,) = first(served, "a")["requests"]
    assert (one["prompt_tokens"], one["completion_tokens"], one["reason"]) == (len(SECRET), 11, "stop")
    assert one["path"] == "/v1/completions"


def test_lists_that_grow_are_sent_once(served: Served) -> None:
    _ask(served, "a")
    with looking(served) as messages:
        snapshot = next(messages)
        _ask(served, "b")
        update = next(one for one in messages if one["requests"])
    assert [one["owner"] for one in snapshot["requests"]] == ["alice"]
    assert [one["owner"] for one in update["requests"]] == ["bob"]
    assert len(snapshot["history"]["rows"]) >= 1
    assert 1 <= len(update["history"]["rows"]) <= 2
    assert snapshot["history"]["columns"][:3] == ["time", "read", "written"]


def test_the_history_has_rates_and_percentiles(served: Served, interval_s: float) -> None:
    with looking(served) as messages:
        next(messages)
        served.engine.live = state(steps=10, generated=50)
        rows = [
            dict(zip(one["history"]["columns"], row, strict=True))
            for one in _some(messages, 3)
            for row in one["history"]["rows"]
        ]
    (row,) = [row for row in rows if row["written"]]
    # Of 50 tokens; a busy machine looks later.
    assert 0 < row["written"] <= 1.2 * 50 / interval_s
    assert row["batch"] == 4.0
    assert row["gap_p50"] == pytest.approx(0.05)
    assert row["gap_p95"] == pytest.approx(0.095)


def _some(messages: Iterator[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    return [one for one, _ in zip(messages, range(n), strict=False)]


def test_an_engine_that_is_away_is_told_and_so_is_its_return(served: Served) -> None:
    engine = served.engine
    with looking(served) as messages:
        assert next(messages)["slots"]
        engine.trouble = "the engine process ended unexpectedly"
        engine.live_error = EngineDown("gone")
        served.in_loop(lambda: engine.enter(FakeState.LOADING))
        gone = next(one for one in messages if not one["slots"])
        assert (gone["server"]["state"], gone["server"]["trouble"]) == ("loading", engine.trouble)
        assert gone["cache"] is None
        engine.trouble, engine.live_error = "", None
        served.in_loop(lambda: engine.enter(FakeState.READY))
        back = next(one for one in messages if one["slots"])
    assert back["server"]["state"] == "ready"
    assert [one["kind"] for one in first(served)["events"]] == ["ready"]


def test_a_key_that_is_revoked_sees_no_more() -> None:
    engine, ring = FakeEngine(), keys()
    engine.live = state()
    with serving(engine, keys=ring) as served, looking(served, "a") as messages:
        next(messages)
        served.in_loop(lambda: ring.replace([Key("bob", digest_of("b"))]))
        last = list(messages)[-1]
    assert last["error"]["code"] == "invalid_api_key"


def test_nobody_looks_without_a_key(served: Served) -> None:
    assert httpx.get(f"{served.url}/v1/live", trust_env=False, timeout=ANSWER_S).status_code == 401


def test_nothing_is_asked_of_the_engine_while_nobody_looks_and_nothing_runs(interval_s: float) -> None:
    engine = FakeEngine()
    engine.live = state()
    asked: list[float] = []
    ask = engine.live_state

    async def counted() -> LiveState:
        asked.append(time.monotonic())
        return await ask()

    engine.live_state = counted  # type: ignore[method-assign]
    with serving(engine, keys=keys()) as served:
        time.sleep(3 * interval_s)
        assert not asked
        first(served)
        assert asked
        wait_until(lambda: time.monotonic() - asked[-1] > 5 * interval_s, timeout_s=ANSWER_S)


def test_three_who_may_see_alike_cost_one_message(served: Served) -> None:
    with looking(served) as one, looking(served) as two:
        next(one)
        next(two)
        a, b = next(one), next(two)
    assert a.keys() == b.keys()


def test_a_server_that_ends_keeps_no_viewer(served: Served) -> None:
    """Another engine may take the place of one that stopped; where none does, the stream ends by itself."""
    with looking(served) as messages:
        next(messages)
        started_s = time.monotonic()
        served.in_loop(lambda: served.engine.enter(FakeState.STOPPED))
        assert all("error" not in one for one in messages)
    assert time.monotonic() - started_s < 5
