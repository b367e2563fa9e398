"""Exchange of moves between ingresses: which conversations each sent elsewhere than to their home, for the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

_MAX_MOVES = 1 << 16
"""So many moves are kept for ingresses that have not asked yet."""

_MAX_INGRESSES = 256


class _Move(NamedTuple):
    """One conversation that an ingress sent elsewhere, in the order of their coming."""

    number: int
    ingress_id: str
    chat: bytes
    replica_id: str


class MoveExchange:
    """The latest moves, and up to which each ingress knows them."""

    def __init__(self, max_moves: int = _MAX_MOVES) -> None:
        self._moves: deque[_Move] = deque(maxlen=max_moves)
        self._number = 0
        self._known: dict[str, int] = {}

    def exchange(self, ingress_id: str, moves: Mapping[bytes, str]) -> dict[bytes, str]:
        """Take what an ingress noted, and return what others noted since it asked last; of one chat the latest."""
        known = self._known.pop(ingress_id, self._number)
        others: dict[bytes, str] = {}
        for move in reversed(self._moves):
            if move.number <= known:
                break
            if move.ingress_id != ingress_id:
                others.setdefault(move.chat, move.replica_id)
        for chat, replica_id in moves.items():
            self._number += 1
            self._moves.append(_Move(self._number, ingress_id, chat, replica_id))
        self._known[ingress_id] = self._number
        if len(self._known) > _MAX_INGRESSES:
            del self._known[next(iter(self._known))]
        return others
