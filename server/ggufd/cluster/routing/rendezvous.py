"""Rendezvous hashing: for each conversation an order of all replicas that only the two names decide.

Whoever knows the replicas computes the same order, so ingresses need not agree on anything. A replica that leaves gives
its conversations to all others, each to its own second choice; one that comes takes an equal share from each; all other
conversations stay. (Thaler and Ravishankar, "A Name-Based Mapping Scheme for Rendezvous", 1996.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def mixed(value: int) -> int:
    """A number of 64 bits in which every bit depends on all bits of another: the finalizer of SplitMix64.

    A tenth of the time of a cryptographic hash, and numpy can compute it for all replicas at once. Both of its inputs
    are digests already, so nobody can aim at a replica without trying.
    """
    value = ((value ^ (value >> 30)) * _FACTORS[0]) & _MASK
    value = ((value ^ (value >> 27)) * _FACTORS[1]) & _MASK
    return value ^ (value >> 31)


_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_FACTORS_OF_ALL = tuple(np.uint64(factor) for factor in _FACTORS)


def mixed_all(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`mixed` of each."""
    values = (values ^ (values >> _SHIFTS[0])) * _FACTORS_OF_ALL[0]
    values = (values ^ (values >> _SHIFTS[1])) * _FACTORS_OF_ALL[1]
    return values ^ (values >> _SHIFTS[2])


def number_of(digest: bytes) -> int:
    """First 64 bits of a digest."""
    return int.from_bytes(digest[:8], "little")


class Rendezvous:
    """Numbers of the replicas, computed once for each name."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._ids: list[str] = []
        self._of_ids = np.zeros(0, dtype=np.uint64)

    def number(self, replica_id: str) -> int:
        """Number of 64 bits that stands for a replica."""
        found = self._numbers.get(replica_id)
        if found is None:
            if len(self._numbers) >= _MAX_NUMBERS:
                self._numbers.clear()
            raw = replica_id.encode("utf-8", "surrogatepass")
            found = self._numbers[replica_id] = number_of(hashlib.blake2b(raw, digest_size=8).digest())
        return found

    def weight(self, digest: bytes, replica_id: str) -> int:
        """How much a replica is the one for a conversation: of several the one with the most is its home."""
        return mixed(number_of(digest) ^ self.number(replica_id))

    def first(self, digest: bytes, replica_ids: list[str]) -> int:
        """Index of the replica with the most weight; there is one at least."""
        if len(replica_ids) < _MANY:
            return max(range(len(replica_ids)), key=lambda index: self.weight(digest, replica_ids[index]))
        return int(self._weights(digest, replica_ids).argmax())

    def order(self, digest: bytes, replica_ids: list[str]) -> Sequence[int]:
        """Indexes of all replicas, the one with the most weight first."""
        if len(replica_ids) < _MANY:
            weights = [self.weight(digest, replica_id) for replica_id in replica_ids]
            return sorted(range(len(weights)), key=weights.__getitem__, reverse=True)
        order: list[int] = self._weights(digest, replica_ids).argsort()[::-1].tolist()
        return order

    def _weights(self, digest: bytes, replica_ids: list[str]) -> NDArray[np.uint64]:
        if replica_ids != self._ids:
            self._ids = list(replica_ids)
            self._of_ids = np.array([self.number(replica_id) for replica_id in replica_ids], dtype=np.uint64)
        return mixed_all(self._of_ids ^ np.uint64(number_of(digest)))


_MANY = 32
"""From so many replicas on it is quicker to compute all weights at once."""

_MAX_NUMBERS = 1 << 16
"""Replicas get a new name with each start; those of the present are computed again in no time."""
