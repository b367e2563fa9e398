"""One simulated server: slots, a queue in order of arrival, and kept chats, the least recently used evicted first."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

N_SLOTS, N_KEPT = 16, 100

PREFILL_TOK_S = 400.0

DECODE_TOK_S = 3.5
"""Of each stream of a slow server: 100,000 chats then take about three quarters of the slots of 1,000 of them."""


@dataclass(slots=True)
class SimulatedRequest:
    """A turn under way: whose, what it repeats, what is new, and where it is."""

    chat: int
    conversation: int
    n_turns: int
    history: int
    n_new: int
    n_answer: int
    arrival_s: float
    ingress: int
    is_lost: bool = False
    n_cached: int = 0
    start_s: float = 0.0


@dataclass(slots=True)
class SimulatedServer:
    """State of a server. `busy_s` is slot time that was used in the measured part of the run."""

    n_slots: int = N_SLOTS
    n_kept: int = N_KEPT
    decode_tok_s: float = DECODE_TOK_S
    kept: OrderedDict[int, int] = field(default_factory=OrderedDict)
    queue: deque[SimulatedRequest] = field(default_factory=deque)
    running: dict[int, SimulatedRequest] = field(default_factory=dict)
    busy_s: float = 0.0

    @property
    def n_there(self) -> int:
        """Requests that run or wait."""
        return len(self.running) + len(self.queue)

    def next_start(self) -> SimulatedRequest | None:
        """The request that gets a slot now; None where none waits, or no slot is free."""
        if not self.queue or len(self.running) >= self.n_slots:
            return None
        request = self.queue.popleft()
        self.running[request.chat] = request
        return request

    def begin(self, request: SimulatedRequest, now_s: float) -> float:
        """Start a request with what is kept of its conversation; returns how long it takes."""
        request.start_s = now_s
        request.n_cached = min(self.kept.get(request.conversation, 0), request.history)
        if request.conversation in self.kept:
            self.kept.move_to_end(request.conversation)
        n_prefill = request.history + request.n_new - request.n_cached
        return n_prefill / PREFILL_TOK_S + request.n_answer / self.decode_tok_s

    def end(self, request: SimulatedRequest) -> None:
        """Free the slot, and keep the conversation as it is now."""
        del self.running[request.chat]
        self.keep(request.conversation, request.history + request.n_new + request.n_answer)

    def keep(self, conversation: int, n_tokens: int) -> None:
        """Put a conversation in the cache; the one that was not used for longest leaves it."""
        self.kept[conversation] = n_tokens
        self.kept.move_to_end(conversation)
        if len(self.kept) > self.n_kept:
            self.kept.popitem(last=False)
