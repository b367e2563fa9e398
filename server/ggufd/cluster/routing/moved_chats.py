"""Memory of conversations that were sent elsewhere than to their home: where they have what was computed last.

Every ingress has its own, and tells the others once a second what changed in it. What is not told, or lost, costs one
prompt that is computed anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

MAX_MOVED = 1 << 16
"""So many conversations are remembered, those that were looked for last: about 15 MB."""

Moves = Mapping[bytes, str]
"""Replica of each conversation that went elsewhere; "" of one that is at home again."""


class MovedChats:
    """Replica of each conversation that is away from home, bounded. Who is not in it is at home."""

    def __init__(self, max_moved: int = MAX_MOVED) -> None:
        self._max_moved = max_moved
        self._replicas: OrderedDict[bytes, str] = OrderedDict()
        self._news: OrderedDict[bytes, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._replicas)

    def find(self, chat: bytes) -> str | None:
        """Where a conversation was sent last; None where that was its home."""
        found = self._replicas.get(chat)
        if found is not None:
            self._replicas.move_to_end(chat)
        return found

    def note(self, chat: bytes, replica_id: str) -> None:
        """Remember that a conversation is away; "" that it is at home."""
        if replica_id != (self.find(chat) or ""):
            self._set(chat, replica_id)
            _put(self._news, chat, replica_id, self._max_moved)

    def _set(self, chat: bytes, replica_id: str) -> None:
        if replica_id:
            _put(self._replicas, chat, replica_id, self._max_moved)
        else:
            self._replicas.pop(chat, None)

    def take_news(self) -> dict[bytes, str]:
        """What was noted here since the last time."""
        news, self._news = dict(self._news), OrderedDict()
        return news

    def learn(self, moves: Moves) -> None:
        """Take what others noted. What was noted here meanwhile is newer."""
        for chat, replica_id in moves.items():
            if chat not in self._news:
                self._set(chat, replica_id)


def _put(bounded: OrderedDict[bytes, str], chat: bytes, replica_id: str, most: int) -> None:
    bounded[chat] = replica_id
    bounded.move_to_end(chat)
    if len(bounded) > most:
        bounded.popitem(last=False)
