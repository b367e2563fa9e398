"""Questions and slot actions: who gets which answer, what is held back, what is told when no answer comes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ggufd.engine.client.questions import Questions, act_on_nothing
from ggufd.engine.messages.reports import SlotDone, Steps
from ggufd.engine.messages.requests import ActOnSlot, GetSteps, SlotAction
from ggufd.errors import EngineDown, InvalidRequest, Unavailable


def erase(slot: int) -> ActOnSlot:
    return ActOnSlot(slot, SlotAction.ERASE)


async def test_one_answer_is_for_all_who_asked_that() -> None:
    sent: list[Any] = []
    questions = Questions(sent.append)
    asking = [asyncio.ensure_future(questions.ask(GetSteps(), Steps)) for _ in range(2)]
    await asyncio.sleep(0)
    assert sent == [GetSteps(), GetSteps()]
    assert questions.is_answer_due
    asking[0].cancel()
    questions.answer(Steps(()))
    assert await asking[1] == Steps(())
    assert not questions.is_answer_due


async def test_the_first_to_act_on_a_slot_is_the_first_to_be_answered() -> None:
    questions = Questions(lambda command: None)
    first, other, second = (questions.act(erase(slot)) for slot in (0, 1, 0))
    questions.answer_action(SlotDone(0, 5))
    assert (await first).n_tokens == 5
    assert not other.done()
    questions.answer_action(SlotDone(0, None))
    with pytest.raises(Unavailable, match="slot 0 is in use"):
        await second
    questions.answer_action(SlotDone(1, 0, failure="no saved slot x"))
    with pytest.raises(InvalidRequest, match="no saved slot x") as refusal:
        await other
    assert refusal.value.param == "filename"
    assert not questions.is_answer_due
    assert not questions.is_slot_used


async def test_what_is_held_is_sent_at_the_release() -> None:
    sent: list[Any] = []
    questions = Questions(sent.append)
    held = questions.hold(erase(3))
    assert (sent, questions.is_slot_used, questions.is_answer_due) == ([], True, False)
    questions.release()
    questions.release()
    assert sent == [erase(3)]
    questions.answer_action(SlotDone(3, 7))
    assert (await held).n_tokens == 7


async def test_without_an_answer_everybody_gets_the_error() -> None:
    questions = Questions(lambda command: None)
    asking = asyncio.ensure_future(questions.ask(GetSteps(), Steps))
    acting, held = questions.act(erase(0)), questions.hold(erase(0))
    await asyncio.sleep(0)
    questions.fail_sent(EngineDown("it died"))
    for one in (asking, acting):
        with pytest.raises(EngineDown, match="it died"):
            await one
    assert not held.done()
    questions.fail_held(EngineDown("it does not load"))
    with pytest.raises(EngineDown, match="it does not load"):
        await held
    assert not questions.is_slot_used


def test_where_nothing_is_loaded_there_is_nothing_to_erase_and_nothing_to_save() -> None:
    assert act_on_nothing(erase(2)) == SlotDone(2, 0)
    with pytest.raises(InvalidRequest, match="slot 2 keeps nothing that could be saved"):
        act_on_nothing(ActOnSlot(2, SlotAction.SAVE, "chat"))
