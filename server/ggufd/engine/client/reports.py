"""Reports of the engine to who asks for them, and actions on its slots.

An engine that sleeps has nothing under way, and is not woken by a question.
"""

from __future__ import annotations

from ggufd.engine.client.intake import Intake
from ggufd.engine.client.questions import Questions, act_on_nothing
from ggufd.engine.client.state import ASLEEP, TAKES_REQUESTS, EngineState
from ggufd.engine.client.supervisor import EngineSupervisor
from ggufd.engine.messages.reports import ChatsSaved, LiveState, QueueState, SlotDone, Stats, Steps
from ggufd.engine.messages.requests import (
    ActOnSlot,
    AdoptChat,
    GetLive,
    GetQueue,
    GetStats,
    GetSteps,
    SaveChats,
    SlotAction,
)


class EngineReports:
    """Questions to the engine of `supervisor`."""

    def __init__(self, supervisor: EngineSupervisor, questions: Questions, intake: Intake) -> None:
        self._supervisor = supervisor
        self._questions = questions
        self._intake = intake

    async def stats(self) -> Stats:
        """A snapshot of the engine. Raises EngineDown when there is none to ask."""
        self._supervisor.condition.require({EngineState.READY})
        return await self._questions.ask(GetStats(), Stats)

    async def steps(self) -> Steps:
        """The last steps of the engine; none of one that sleeps. Raises EngineDown when there is none to ask."""
        self._supervisor.condition.require(TAKES_REQUESTS)
        return Steps(()) if self._supervisor.condition.state in ASLEEP else await self._questions.ask(GetSteps(), Steps)

    async def queue_state(self) -> QueueState:
        """Every request under way; none of one that sleeps. Raises EngineDown when there is none to ask."""
        self._supervisor.condition.require(TAKES_REQUESTS)
        return (
            QueueState(())
            if self._supervisor.condition.state in ASLEEP
            else await self._questions.ask(GetQueue(), QueueState)
        )

    async def live_state(self) -> LiveState:
        """State for the live view. Raises EngineDown when there is no engine to ask."""
        self._supervisor.condition.require({EngineState.READY})
        return await self._questions.ask(GetLive(), LiveState)

    async def save_chats(self) -> ChatsSaved:
        """Begin to write kept states to disk, as many as it takes at once; nothing is left of one that sleeps.

        Raises EngineDown when there is none to ask.
        """
        self._supervisor.condition.require(TAKES_REQUESTS)
        is_asleep = self._supervisor.condition.state in ASLEEP
        return ChatsSaved(0) if is_asleep else await self._questions.ask(SaveChats(), ChatsSaved)

    def adopt_chat(self, chat: AdoptChat) -> None:
        """Take up a file that was put into the disk cache's folder; an engine that is not there finds it at its start.

        A request that is submitted later finds the chat.
        """
        if self._supervisor.condition.state is EngineState.READY:
            self._supervisor.send(chat)

    async def act_on_slot(self, command: ActOnSlot) -> SlotDone:
        """Erase, save or restore what an idle slot keeps; to restore wakes a sleeping engine, whose slots are empty.

        Raises Unavailable while the slot is running, InvalidRequest when that cannot be done.
        """
        self._supervisor.condition.require(TAKES_REQUESTS)
        is_asleep = self._supervisor.condition.state in ASLEEP
        if is_asleep and command.action is not SlotAction.RESTORE:
            return act_on_nothing(command)
        if is_asleep:
            self._intake.check()
        answer = self._questions.hold(command) if is_asleep else self._questions.act(command)
        self._supervisor.use()
        return await answer
