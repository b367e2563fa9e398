"""Questions and slot actions under way: their askers, their answers, and what is held until the engine is ready.

Knows neither the engine's process nor its state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from ggufd.engine.messages.reports import ChatsSaved, LiveState, QueueState, SlotDone, Stats, Steps
from ggufd.engine.messages.requests import ActOnSlot, Command, SlotAction
from ggufd.errors import GgufdError, InvalidRequest, Unavailable

_Answer = TypeVar("_Answer", Stats, QueueState, Steps, LiveState, ChatsSaved)
Answer = Stats | QueueState | Steps | LiveState | ChatsSaved
"""Answer to a question; one of a kind is for all who asked for it."""


class Questions:
    """Questions that wait for the engine's answer. `send` sends a command to it."""

    def __init__(self, send: Callable[[Command], None]) -> None:
        self._send = send
        self._askers: dict[type[Answer], list[asyncio.Future[Any]]] = {}
        self._acting: dict[int, list[asyncio.Future[SlotDone]]] = {}
        self._held: list[tuple[ActOnSlot, asyncio.Future[SlotDone]]] = []

    @property
    def is_answer_due(self) -> bool:
        """Whether the engine was asked something and has not answered."""
        return bool(self._askers or self._acting)

    @property
    def is_slot_used(self) -> bool:
        """Whether a slot action is under way, or held back."""
        return bool(self._acting or self._held)

    async def ask(self, question: Command, kind: type[_Answer]) -> _Answer:
        """Send a question; an answer of a kind is for all who asked for one of that kind."""
        future: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._askers.setdefault(kind, []).append(future)
        self._send(question)
        return await future

    def answer(self, answer: Answer) -> None:
        """The engine's answer to a question."""
        for future in self._askers.pop(type(answer), []):
            if not future.done():
                future.set_result(answer)

    def act(self, command: ActOnSlot) -> asyncio.Future[SlotDone]:
        """Send a slot action; the future gets what comes of it."""
        future: asyncio.Future[SlotDone] = asyncio.get_running_loop().create_future()
        self._send_action(command, future)
        return future

    def hold(self, command: ActOnSlot) -> asyncio.Future[SlotDone]:
        """The same at the next `release`."""
        future: asyncio.Future[SlotDone] = asyncio.get_running_loop().create_future()
        self._held.append((command, future))
        return future

    def release(self) -> None:
        """Send what is held back: the engine is ready."""
        held, self._held = self._held, []
        for command, future in held:
            self._send_action(command, future)

    def _send_action(self, command: ActOnSlot, future: asyncio.Future[SlotDone]) -> None:
        self._acting.setdefault(command.slot, []).append(future)
        self._send(command)

    def answer_action(self, done: SlotDone) -> None:
        """The engine's answer to a slot action: for the first who waits for one of that slot."""
        waiting = self._acting.get(done.slot, [])
        future = waiting.pop(0) if waiting else None
        if not waiting:
            self._acting.pop(done.slot, None)
        if future is None or future.done():
            return
        if done.n_tokens is None:
            future.set_exception(Unavailable(f"slot {done.slot} is in use now; try again later"))
        elif done.failure:
            future.set_exception(InvalidRequest(done.failure, param="filename"))
        else:
            future.set_result(done)

    def fail_sent(self, error: GgufdError) -> None:
        """Raise `error` for all who wait for an answer to what was sent: none will come."""
        sent = [future for waiting in (*self._askers.values(), *self._acting.values()) for future in waiting]
        self._askers.clear()
        self._acting.clear()
        _fail(sent, error)

    def fail_held(self, error: GgufdError) -> None:
        """The same for what is held back."""
        held, self._held = self._held, []
        _fail([future for _, future in held], error)


def _fail(futures: list[asyncio.Future[Any]], error: GgufdError) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)


def act_on_nothing(command: ActOnSlot) -> SlotDone:
    """Result of a slot action where no model is loaded: nothing to erase. Raises InvalidRequest for a save."""
    if command.action is SlotAction.SAVE:
        raise InvalidRequest(
            f"slot {command.slot} keeps nothing that could be saved: the model is unloaded while nobody uses it, and "
            "what its slots held went with it (--cache-disk keeps chats over that); save a slot before it sleeps"
        )
    return SlotDone(command.slot, 0)
