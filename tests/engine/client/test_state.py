"""Condition of an engine: what users are told in each state, and who hears of a change."""

from __future__ import annotations

import pytest

from ggufd.engine.client.state import TAKES_REQUESTS, Condition, EngineState
from ggufd.engine.messages.config import EngineConfig
from ggufd.errors import EngineDown
from ggufd.llama.params import ContextParams, ModelParams


@pytest.fixture
def condition() -> Condition:
    model = ModelParams(path="/models/of/mine/m.gguf", loras=("/secret/l.gguf",))
    return Condition(EngineConfig(model=model, context=ContextParams(n_ctx=256, n_slots=4)))


def refusal(condition: Condition) -> EngineDown:
    with pytest.raises(EngineDown) as caught:
        condition.require(set())
    return caught.value


def test_every_change_is_told_and_a_jump_is_not_made(condition: Condition) -> None:
    heard: list[EngineState] = []
    condition.watch(heard.append)
    condition.enter(EngineState.READY)
    condition.enter(EngineState.SLEEPING)
    with pytest.raises(AssertionError, match="cannot become FAILED from SLEEPING"):
        condition.enter(EngineState.FAILED)
    assert heard == [EngineState.READY, EngineState.SLEEPING]
    condition.require(TAKES_REQUESTS)


def test_what_is_said_of_trouble_names_no_folder(condition: Condition) -> None:
    condition.enter(EngineState.FAILED, "no memory for /models/of/mine/m.gguf beside /secret/l.gguf")
    assert condition.trouble == "no memory for m.gguf beside l.gguf"
    assert str(refusal(condition)) == "the engine was given up: no memory for m.gguf beside l.gguf"
    assert "/secret" not in str(condition.lost("it read /secret/l.gguf"))


def test_a_client_is_told_to_come_back_when_the_model_may_be_loaded(condition: Condition) -> None:
    assert refusal(condition).retry_after_s == 2
    condition.load_s = 7.4
    condition.enter(EngineState.READY)
    condition.enter(EngineState.RESTARTING, "signal 11")
    assert str(refusal(condition)) == "the engine is being started again; try again in 8 s: signal 11"
    assert refusal(condition).retry_after_s == 7.4
    condition.enter(EngineState.READY, "")
    assert condition.trouble == ""
    condition.enter(EngineState.STOPPED)
    assert str(refusal(condition)) == str(condition.stopped())
