"""Supervision of the engine over fake processes: states, what users are told, sleep, and what ends when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ggufd.engine.client import supervisor as supervisor_module
from ggufd.engine.client.idle_timer import IdleTimer
from ggufd.engine.client.state import EngineState, may_follow
from ggufd.engine.client.supervisor import EngineSupervisor
from ggufd.engine.messages.config import EngineConfig
from ggufd.engine.messages.reports import LoadFailed, SlotDone
from ggufd.engine.messages.requests import Shutdown
from ggufd.errors import EngineDown, ModelError
from ggufd.llama.params import ContextParams, ModelParams
from tests.processes.test_supervisor import FakeLink
from tests.support.fakes.fake_llama import FakeDecoder, fake_ready

WAIT_S = 60.0
READY = fake_ready(FakeDecoder())


class User:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.is_answer_due = self.keeps_awake = False

    def receive(self, event: Any) -> None:
        self.told.append(event)

    def engine_ready(self, send: Callable[[Any], None]) -> None:
        self.told.append("ready")

    def engine_ended(self, error: EngineDown) -> None:
        self.told.append(f"ended: {error.message}")

    def engine_lost(self, error: EngineDown) -> None:
        self.told.append(f"lost: {error.message}")


class Supervised:
    """A supervisor of fake processes, and its user."""

    def __init__(self, **changes: Any) -> None:
        self.links: list[FakeLink] = []
        self.user = User()
        config = EngineConfig(ModelParams("fake.gguf"), ContextParams(n_ctx=256, n_slots=4), **changes)
        self.engine = EngineSupervisor(config, self.user, spawn=self._spawn)
        self.engine.start()

    def _spawn(self, on_message: Callable[[Any], None], on_exit: Callable[[int, str], None], /) -> FakeLink:
        self.links.append(FakeLink(on_message, on_exit))
        return self.links[-1]

    async def until(self, state: EngineState, n_links: int | None = None) -> None:
        async with asyncio.timeout(WAIT_S):
            while self.engine.condition.state is not state or (n_links or len(self.links)) != len(self.links):  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    def refusal(self) -> str:
        with pytest.raises(EngineDown) as down:
            self.engine.condition.require(set())
        return down.value.message


@pytest.fixture(autouse=True)
def _restart_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "RESTARTS", replace(supervisor_module.RESTARTS, first_s=0.0))


async def test_what_is_refused_follows_the_state() -> None:
    one = Supervised(sleep_idle_s=0.001)
    assert "still being loaded" in one.refusal()
    one.links[0].say([READY])
    one.engine.condition.require({EngineState.READY})
    assert (await one.engine.wait_ready()) is READY
    await one.until(EngineState.SLEEPING)
    assert "a request loads it" in one.refusal()
    stopping = asyncio.ensure_future(one.engine.stop())
    await asyncio.sleep(0)
    one.links[0].exit(0, "")
    await stopping
    assert "has stopped" in one.refusal()


async def test_an_exit_is_told_and_the_next_process_serves() -> None:
    one = Supervised()
    one.links[0].say([READY])
    one.links[0].exit(-11, "GGML_ASSERT(ok) failed")
    assert one.engine.condition.state is EngineState.RESTARTING
    assert "is being started again" in one.refusal()
    assert one.engine.condition.trouble == "the engine process ended unexpectedly (signal 11)"
    await one.until(EngineState.RESTARTING, 2)
    one.links[1].say([READY])
    assert (one.engine.condition.state, one.engine.condition.trouble) == (EngineState.READY, "")
    lost = "lost: the engine process ended unexpectedly (signal 11); the request is lost. It is being started again"
    assert one.user.told == ["ready", lost, "ready"]


async def test_too_many_exits_in_a_row_are_the_end_and_name_the_last_reason() -> None:
    one = Supervised()
    one.links[0].say([READY])
    for n in range(1, 7):
        one.links[-1].say([LoadFailed("no memory")] if n > 1 else [])
        one.links[-1].exit(0 if n > 1 else -9, "")
        if n < 6:
            await one.until(EngineState.RESTARTING, n + 1)
    assert one.engine.condition.state is EngineState.FAILED
    assert one.refusal() == "the engine was given up: no memory 6 times in a row"


async def test_a_model_that_does_not_load_at_the_start_is_a_model_error_and_its_exit_nothing_more() -> None:
    one = Supervised()
    one.links[0].say([LoadFailed("no such file")])
    with pytest.raises(ModelError, match="no such file"):
        await one.engine.wait_ready()
    one.links[0].exit(0, "")
    assert one.engine.condition.state is EngineState.FAILED
    await asyncio.sleep(0.01)
    assert len(one.links) == 1


async def test_a_process_that_cannot_be_started_is_a_model_error_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: object) -> FakeLink:
        raise OSError(24, "Too many open files")

    config = EngineConfig(ModelParams("fake.gguf"), ContextParams(n_ctx=256, n_slots=4))
    engine = EngineSupervisor(config, User(), spawn=refuse)
    engine.start()
    with pytest.raises(
        ModelError, match=r"^the engine process could not be started \(.*Too many open files\) while loading"
    ):
        await engine.wait_ready()
    assert engine.condition.state is EngineState.FAILED
    await engine.stop()
    assert "Traceback" not in caplog.text


async def test_it_wakes_when_the_process_before_is_gone_and_sleeps_on_where_it_cannot() -> None:
    one = Supervised(sleep_idle_s=0.001)
    one.links[0].say([READY])
    await one.until(EngineState.SLEEPING)
    assert one.links[0].sent == [Shutdown()]
    one.engine.use()
    await asyncio.sleep(0.01)
    assert (one.engine.condition.state, len(one.links)) == (EngineState.WAKING, 1)
    one.links[0].exit(0, "")
    await one.until(EngineState.WAKING, 2)
    one.links[1].say([LoadFailed("no memory")])
    assert one.engine.condition.state is EngineState.SLEEPING
    assert one.engine.condition.trouble == "the model could not be loaded again: no memory"
    # The next request comes before that process is gone: its exit is no failure of the next one.
    one.engine.use()
    one.links[1].exit(0, "")
    await one.until(EngineState.WAKING, 3)
    one.links[2].say([READY])
    assert one.engine.condition.state is EngineState.READY
    assert [told for told in one.user.told if told.startswith("lost")] == [
        "lost: the model could not be loaded again: no memory"
    ]


async def test_one_that_dies_while_idle_is_not_put_to_sleep_while_it_restarts() -> None:
    one = Supervised(sleep_idle_s=0.03)
    one.links[0].say([READY])
    one.links[0].exit(-9, "")
    await asyncio.sleep(0.06)
    assert one.engine.condition.state is EngineState.RESTARTING
    one.links[1].say([READY])
    assert one.engine.condition.state is EngineState.READY
    await one.until(EngineState.SLEEPING)


async def test_answers_to_questions_do_not_keep_it_awake_and_users_do() -> None:
    one = Supervised(sleep_idle_s=0.05)
    one.user.keeps_awake = True
    one.links[0].say([READY])
    await asyncio.sleep(0.1)
    assert one.engine.condition.state is EngineState.READY
    one.user.keeps_awake = False
    for _ in range(1000):
        # As when its metrics are read all the time.
        one.links[0].say([SlotDone(0, 0)])
        await asyncio.sleep(0.005)
        if one.engine.condition.state is EngineState.SLEEPING:
            break
    assert one.engine.condition.state is EngineState.SLEEPING


async def test_after_the_stop_nothing_is_loaded_whatever_was_on_its_way() -> None:
    one = Supervised()
    stopping = asyncio.ensure_future(one.engine.stop())
    await asyncio.sleep(0)
    one.links[0].say([READY])
    one.links[0].say([LoadFailed("no such file")])
    await stopping
    assert one.links[0].sent == ["kill"]
    assert one.engine.condition.state is EngineState.STOPPED
    assert one.engine.ready is None
    assert one.user.told == ["ended: the engine has stopped; try again soon"]


def test_transitions_are_those_of_the_drawing() -> None:
    arrows = {(a, b) for a in EngineState for b in EngineState if may_follow(a, b) and b is not EngineState.STOPPED}
    names = {(a.name, b.name) for a, b in arrows}
    assert names == {
        ("LOADING", "READY"),
        ("LOADING", "FAILED"),
        ("READY", "SLEEPING"),
        ("READY", "RESTARTING"),
        ("SLEEPING", "WAKING"),
        ("WAKING", "READY"),
        ("WAKING", "SLEEPING"),
        ("RESTARTING", "READY"),
        ("RESTARTING", "RESTARTING"),
        ("RESTARTING", "FAILED"),
    }
    drawing = EngineState.__doc__ or ""
    assert all(state.name in drawing for state in EngineState)


async def test_an_idle_timer_calls_once_and_is_not_made_longer() -> None:
    calls: list[float] = []
    timer = IdleTimer(lambda: calls.append(1.0))
    timer.start(0.01)
    timer.start(1000.0)
    assert timer.is_running
    await asyncio.sleep(0.03)
    assert (calls, timer.is_running) == ([1.0], False)
    timer.start(0.01)
    timer.stop()
    timer.stop()
    await asyncio.sleep(0.03)
    assert calls == [1.0]
