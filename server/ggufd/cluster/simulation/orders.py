"""Rendezvous orders of conversations, kept as long as these are asked for."""

from __future__ import annotations

import hashlib

import numpy as np

from ggufd.cluster.routing.rendezvous import Rendezvous, mixed_all, number_of


def digest_of_conversation(conversation: int) -> bytes:
    """Digest that stands for a conversation in the simulation."""
    return hashlib.blake2b(conversation.to_bytes(8, "little"), digest_size=16).digest()


class Orders:
    """The first replicas of each conversation's order, computed when it is first asked for."""

    def __init__(self, replica_ids: list[str], n_first: int = 16) -> None:
        rendezvous = Rendezvous()
        self._numbers = np.array([rendezvous.number(name) for name in replica_ids], dtype=np.uint64)
        self._n_first = min(n_first, len(replica_ids))
        self._known: dict[int, list[int]] = {}

    def first(self, conversation: int) -> list[int]:
        """Indexes of the replicas that come first for a conversation, its home at the head."""
        found = self._known.get(conversation)
        if found is None:
            found = self._known[conversation] = self.all(conversation, self._n_first)
        return found

    def all(self, conversation: int, n_first: int | None = None) -> list[int]:
        """The whole order, or the first so many of it."""
        weights = mixed_all(self._numbers ^ np.uint64(number_of(digest_of_conversation(conversation))))
        if n_first is None or n_first >= len(weights):
            return [int(index) for index in np.argsort(weights)[::-1]]
        best = np.argpartition(weights, -n_first)[-n_first:]
        return [int(index) for index in best[np.argsort(weights[best])[::-1]]]

    def forget(self, conversation: int) -> None:
        """Drop the order of a conversation that has ended."""
        self._known.pop(conversation, None)
