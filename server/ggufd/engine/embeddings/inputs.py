"""Embedding requests and their inputs while they wait and are computed. Data and derived properties only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ggufd.engine.embeddings.pooling import Pool
from ggufd.engine.messages.events import Turn
from ggufd.engine.messages.reports import QueueEntry
from ggufd.engine.messages.requests import EmbedRequest, Scales


@dataclass(slots=True, eq=False)
class InputList:
    """One embedding request: inputs `[0, n_begun)` are or were computed, `n_done` of them are answered.

    Seconds of the embedder's clock. `is_open` from when its inputs may be computed, in turns with others.
    """

    request: EmbedRequest
    arrival_s: float
    serial: int = 0
    is_open: bool = False
    n_begun: int = 0
    n_done: int = 0

    priority: ClassVar[int] = 0

    @property
    def is_first(self) -> bool:
        return not self.is_open

    @property
    def has_more(self) -> bool:
        """Whether there are inputs whose computation has not begun."""
        return self.n_begun < self.request.n

    @property
    def account(self) -> str:
        return self.request.principal.account

    @property
    def adapters(self) -> Scales:
        return self.request.adapters

    @property
    def next_input(self) -> tuple[int, ...]:
        return self.request.inputs[self.n_begun]

    @property
    def n_tokens_left(self) -> int:
        """Tokens of the inputs that have not begun."""
        return sum(map(len, self.request.inputs[self.n_begun :]))

    def entry(self, now_s: float, turn: Turn | None) -> QueueEntry:
        request = self.request
        return QueueEntry(
            request_id=request.request_id,
            principal=request.principal,
            priority=self.priority,
            age_s=now_s - self.arrival_s,
            prompt_tokens=sum(map(len, request.inputs)),
            generated_tokens=0,
            turn=turn,
        )


@dataclass(slots=True, eq=False)
class ActiveInput:
    """One input that is being computed as sequence `sequence`: its first `n_past` tokens are. Scores have no pool."""

    owner: InputList
    index: int
    sequence: int
    pool: Pool | None
    n_past: int = 0

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.owner.request.inputs[self.index]

    @property
    def n_left(self) -> int:
        return len(self.tokens) - self.n_past
