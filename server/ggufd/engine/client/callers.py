"""Callers of the engine: who gets what it says, and what everybody is told when its process is gone.

The supervisor's view of open requests and questions. Knows neither limits of submission nor the engine's state.
"""

from __future__ import annotations

from collections.abc import Callable

from ggufd.engine.client.open_requests import OpenRequests
from ggufd.engine.client.questions import Questions
from ggufd.engine.client.supervisor import CallerEvent, EngineUser
from ggufd.engine.messages.events import RequestEvent
from ggufd.engine.messages.reports import ChatsSaved, LiveState, QueueState, SlotDone, Stats, Steps
from ggufd.engine.messages.requests import Command, EmbedRequest, EngineRequest
from ggufd.errors import GgufdError

Charge = Callable[[EngineRequest | EmbedRequest, RequestEvent], None]
"""Charges an account for what an event stands for."""


class EngineCallers(EngineUser):
    """Open requests and questions, as users of the engine.

    `charge` is called with every event of a request.
    """

    def __init__(self, requests: OpenRequests, questions: Questions, charge: Charge) -> None:
        self._requests = requests
        self._questions = questions
        self._charge = charge

    @property
    def is_answer_due(self) -> bool:
        return bool(self._requests) or self._questions.is_answer_due

    @property
    def keeps_awake(self) -> bool:
        return bool(self._requests) or self._questions.is_slot_used

    def receive(self, event: CallerEvent) -> None:
        match event:
            case Stats() | QueueState() | Steps() | LiveState() | ChatsSaved():
                self._questions.answer(event)
            case SlotDone():
                self._questions.answer_action(event)
            case _:
                self._deliver(event)

    def _deliver(self, event: RequestEvent) -> None:
        stream = self._requests.get(event.request_id)
        if stream is not None:
            self._charge(stream.request, event)
            self._requests.deliver(stream, event)

    def engine_ready(self, send: Callable[[Command], None]) -> None:
        # Restores come first: the requests profit.
        self._questions.release()
        for stream in self._requests:
            send(stream.request)

    def engine_ended(self, error: GgufdError) -> None:
        self._questions.fail_sent(error)

    def engine_lost(self, error: GgufdError) -> None:
        self._questions.fail_sent(error)
        self.fail_waiting(error)

    def fail_waiting(self, error: GgufdError) -> None:
        """Fail all but questions that were sent: those the engine answers before it ends."""
        self._questions.fail_held(error)
        self._requests.fail(error)
