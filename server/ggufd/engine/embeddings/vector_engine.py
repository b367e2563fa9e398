"""Engine for an embedding or reranking model, which refuses requests for text."""

from __future__ import annotations

from collections.abc import Sequence

from ggufd.engine.embeddings.embedding import MAX_OPEN, Embedder
from ggufd.engine.messages.events import Failed
from ggufd.engine.messages.reports import (
    ChatsSaved,
    Event,
    LiveSlot,
    LiveState,
    QueueState,
    SlotDone,
    SlotState,
    Stats,
    Steps,
)
from ggufd.engine.messages.requests import ActOnSlot, AdoptChat, EmbedRequest, EngineRequest, SlotAction
from ggufd.errors import GgufdError, Unsupported


class VectorEngine:
    """Engine over an `Embedder` alone. Its slots are the open requests; they keep nothing."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._n_steps = 0
        self._events: list[Event] = []

    @property
    def has_work(self) -> bool:
        return self._embedder.has_work or bool(self._events)

    @property
    def is_preparing(self) -> bool:
        """Whether all there is to do is to wait for other servers of a cluster."""
        return self._embedder.is_held and not self._events

    @property
    def next_text_s(self) -> float | None:
        """None: no text is generated."""
        return None

    def add(self, request: EngineRequest | EmbedRequest) -> None:
        """Queue an embedding request; answer `Failed` to any other, and to one too many."""
        try:
            if isinstance(request, EngineRequest):
                raise Unsupported("this is an embedding model: it generates no text")
            self._embedder.add(request)
        except GgufdError as error:
            self._events.append(Failed.by(request.request_id, error))

    def abort(self, request_id: int) -> None:
        self._embedder.abort(request_id)

    def finish(self, request_id: int, index: int) -> None:
        """There are no sequences."""

    def charge_elsewhere(self, costs: Sequence[tuple[str, float]]) -> None:
        """Charge accounts what other servers of a cluster served them, by their weights."""
        self._embedder.accounts.charge_elsewhere(costs)

    def hold_elsewhere(self, held: Sequence[tuple[str, int]]) -> None:
        """Count what accounts hold at other servers of a cluster; whoever is not named holds nothing there."""
        self._embedder.accounts.hold_elsewhere(held)

    def step(self) -> list[Event]:
        """Compute one batch of inputs; returns what happened."""
        self._n_steps += 1
        events = [*self._events, *self._embedder.step()]
        self._events = []
        return events

    def run_idle_maintenance(self) -> bool:
        """No idle maintenance."""
        return False

    def queue_state(self) -> QueueState:
        """Every request under way."""
        return QueueState(tuple(self._embedder.entries()))

    def act_on_slot(self, command: ActOnSlot) -> SlotDone:
        failure = "" if command.action is SlotAction.ERASE else "a model of vectors keeps nothing in its slots"
        return SlotDone(command.slot, 0, failure=failure)

    def save_chats(self) -> ChatsSaved:
        """Nothing is kept."""
        return ChatsSaved(0)

    def adopt_chat(self, chat: AdoptChat) -> None:
        """There is no cache for it."""

    def stats(self) -> Stats:
        running = [request.request_id for request in self._embedder.running]
        idle = [None] * (MAX_OPEN - len(running))
        return Stats(
            waiting=self._embedder.n_waiting,
            running=len(running),
            steps=self._n_steps,
            computed_tokens=0,
            cached_tokens=0,
            generated_tokens=0,
            step_s=0.0,
            step_gap_s=0.0,
            embedded_tokens=self._embedder.n_tokens,
            slots=tuple(SlotState(place, request_id, 0, 0) for place, request_id in enumerate([*running, *idle])),
        )

    def live_state(self) -> LiveState:
        """State for the live view: its slots keep nothing, and what runs is in the queue's entries."""
        entries = self.queue_state().entries
        owners = {entry.request_id: entry.principal.person for entry in entries}
        stats = self.stats()
        slots = tuple(
            LiveSlot(one.slot, owners.get(one.request_id or 0, ""), one.request_id, 0, 0, 0, 0, 0.0)
            for one in stats.slots
        )
        accounts = self._embedder.accounts
        return LiveState(stats, slots, entries, tuple(accounts.served.items()), accounts.standing)

    def steps(self) -> Steps:
        """No records: its steps have one phase."""
        return Steps(())

    def close(self, timeout_s: float) -> None:
        """Nothing has to be saved."""

    def note_sent(self, seconds: float) -> None:
        """No record either."""

    def check_integrity(self) -> None:
        """Raise `EngineFailure` unless requests, inputs, sequences and accounts agree."""
        self._embedder.check_integrity()
        self._embedder.accounts.check_integrity(self._embedder.standing)
