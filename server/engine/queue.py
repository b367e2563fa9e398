"""The queue in front of the context: who waits, in what order, and how long at most.

A policy object: the scheduler asks for an order and takes whom it can place. First come, first served.
"""

from __future__ import annotations

from collections.abc import Iterator

from server.engine.sequence import Sequence
from server.errors import QueueFull


class RequestQueue:
    """Waiting sequences, at most `max_requests` requests of them, none longer than `max_wait_s` seconds."""

    def __init__(self, max_requests: int, max_wait_s: float) -> None:
        self.max_requests = max_requests
        self.max_wait_s = max_wait_s
        self._waiting: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        """The order of service, over a copy: who is taken may be removed meanwhile."""
        return iter(tuple(self._waiting))

    @property
    def n_requests(self) -> int:
        """Requests none of whose sequences has been admitted."""
        return sum(1 for sequence in self._waiting if sequence.index == 0)

    def push(self, sequences: list[Sequence], *, n_free: int = 0) -> None:
        """Append the sequences of one request. Raises `QueueFull`, and takes none, when too many requests wait.

        The next step takes `n_free` of those that wait into free slots: as many more may wait until then.
        """
        if self.n_requests >= self.max_requests + n_free:
            raise QueueFull(f"{self.max_requests} requests are waiting already; try again later")
        self._waiting.extend(sequences)

    def remove(self, sequence: Sequence) -> None:
        self._waiting.remove(sequence)

    def of_request(self, request_id: int) -> list[Sequence]:
        return [sequence for sequence in self._waiting if sequence.request.request_id == request_id]

    def expired(self, now_s: float) -> list[Sequence]:
        """First sequences that have waited as long as they may; later ones of a request wait for their siblings."""
        return [
            sequence
            for sequence in self._waiting
            if sequence.index == 0 and now_s - sequence.arrival_s > self._max_wait_s(sequence)
        ]

    def _max_wait_s(self, sequence: Sequence) -> float:
        asked = sequence.request.max_queue_wait_s
        return self.max_wait_s if asked is None else min(asked, self.max_wait_s)
