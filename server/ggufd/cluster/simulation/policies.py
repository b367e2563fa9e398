"""Routing policies that are compared: this project's, and four others.

Each chooses a replica by what an ingress can know: loads as they were told with the last beat, and its own requests
since. Several ingresses do not know of each other's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ggufd.cluster.directory.moves import MoveExchange
from ggufd.cluster.routing.moved_chats import MovedChats
from ggufd.cluster.routing.router import BYTES_PER_TOKEN, N_NEAR, is_crowded, leaving_s, wait_s
from ggufd.cluster.simulation.machine import N_SLOTS, PREFILL_TOK_S, SimulatedRequest
from ggufd.cluster.simulation.orders import Orders, digest_of_conversation
from ggufd.cluster.simulation.workload import ChatWorkload


class LoadView:
    """What an ingress knows of the load: the last beat, and how its own open requests have changed since.

    The twin of `routing.open_counts.OpenCounts`, for all replicas at once.
    """

    def __init__(self, n_replicas: int) -> None:
        self.told = np.zeros(n_replicas, dtype=np.int64)
        self.own = np.zeros(n_replicas, dtype=np.int64)
        self._own_at_beat = np.zeros(n_replicas, dtype=np.int64)
        self.told_wait_s = np.zeros(n_replicas)
        self.mean_duration_s = 5.0
        self._n_ended = 0

    def beat(self, told: NDArray[np.int64], told_wait_s: NDArray[np.float64]) -> None:
        """What all replicas tell; where one says the same as before, its count goes on."""
        changed = (told != self.told) | (told_wait_s != self.told_wait_s)
        self.told, self.told_wait_s = told.copy(), told_wait_s.copy()
        self._own_at_beat[changed] = self.own[changed]

    def ended(self, replica: int, duration_s: float) -> None:
        """An own request that ended."""
        self.own[replica] -= 1
        self._n_ended = min(self._n_ended + 1, 32)
        self.mean_duration_s += (duration_s - self.mean_duration_s) / self._n_ended

    def n_there(self, replica: int) -> int:
        """Requests at a replica, as well as the ingress can know."""
        own, told = int(self.own[replica]), int(self.told[replica])
        return max(own, told + own - int(self._own_at_beat[replica]), 0)

    def all_there(self) -> NDArray[np.int64]:
        """`n_there` of all."""
        there: NDArray[np.int64] = np.maximum(np.maximum(self.own, self.told + self.own - self._own_at_beat), 0)
        return there

    def wait_s(self, replica: int) -> float:
        """Expected wait at a replica."""
        told = int(self.told[replica])
        return wait_s(self.n_there(replica), N_SLOTS, float(self.told_wait_s[replica]), told, self.mean_duration_s)


class RoutingPolicy(Protocol):
    """A choice of a replica for a request."""

    name: str

    def choose(self, request: SimulatedRequest, view: LoadView, alive: Sequence[bool]) -> int:
        """Index of the replica."""

    def sent(self, request: SimulatedRequest, replica: int) -> None:
        """A request was sent there."""

    def beat(self) -> None:
        """A second has passed."""


def alive_in_order(orders: Orders, conversation: int, alive: Sequence[bool]) -> Iterator[int]:
    """The order of a conversation without those that are gone. Only as much is computed as is asked for."""
    first = orders.first(conversation)
    yield from (index for index in first if alive[index])
    yield from (index for index in orders.all(conversation)[len(first) :] if alive[index])


class AffinePolicy:
    """`routing.router.Router`: where the conversation is, unless waiting there costs more than to leave.

    Each ingress remembers who is away from home; with `tells` it tells the others, each second.
    """

    def __init__(self, orders: Orders, n_ingresses: int, *, tells: bool = True) -> None:
        self.name = "ggufd"
        self._orders = orders
        self._moved = [MovedChats() for _ in range(n_ingresses)]
        self._exchange = MoveExchange()
        self._tells = tells

    def choose(self, request: SimulatedRequest, view: LoadView, alive: Sequence[bool]) -> int:
        """The least cost, and of equals the least loaded of the first. Only what can matter is looked at."""
        moved, digest = self._moved[request.ingress], digest_of_conversation(request.conversation)
        home = next(alive_in_order(self._orders, request.conversation, alive))
        found = moved.find(digest)
        place = home if found is None or not alive[int(found)] else int(found)
        best = self._best(request, view, alive, place)
        moved.note(digest, "" if best == home else str(best))
        return best

    def _best(self, request: SimulatedRequest, view: LoadView, alive: Sequence[bool], place: int) -> int:
        if request.n_turns == 0 and self._is_crowded(view, alive, place):
            return self._least_loaded(request, view, alive)
        here_s = view.wait_s(place)
        leaving = leaving_s(int((request.history + request.n_new) * BYTES_PER_TOKEN), PREFILL_TOK_S)
        if here_s <= leaving:
            return place
        best = (here_s, 0.0, 0, place)
        for number, other in enumerate(alive_in_order(self._orders, request.conversation, alive), 1):
            # Who has a free slot costs no more than to leave: beyond the first few nobody is better then.
            if number > N_NEAR and best[0] <= leaving:
                break
            if other != place:
                n_there = view.n_there(other) if number <= N_NEAR else math.inf
                best = min(best, (view.wait_s(other) + leaving, n_there, number, other))
        return best[3]

    @staticmethod
    def _is_crowded(view: LoadView, alive: Sequence[bool], place: int) -> bool:
        return is_crowded(view.n_there(place), N_SLOTS, lambda: int(view.all_there().sum()) / sum(alive))

    def _least_loaded(self, request: SimulatedRequest, view: LoadView, alive: Sequence[bool]) -> int:
        """A new conversation's place, where its own is crowded."""
        best = (math.inf, math.inf, 0, 0)
        for number, one in enumerate(alive_in_order(self._orders, request.conversation, alive), 1):
            if number > N_NEAR and best[0] == 0:
                break
            n_there = view.n_there(one) if number <= N_NEAR else math.inf
            best = min(best, (view.wait_s(one), n_there, number, one))
        return best[3]

    def sent(self, request: SimulatedRequest, replica: int) -> None:
        """Nothing is kept."""

    def beat(self) -> None:
        """The ingresses tell each other who is away."""
        if self._tells:
            for index, moved in enumerate(self._moved):
                moved.learn(self._exchange.exchange(str(index), moved.take_news()))


class HashPolicy:
    """Consistent hashing of the conversation, whatever the load."""

    name = "consistent hashing"

    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    def choose(self, request: SimulatedRequest, view: LoadView, alive: Sequence[bool]) -> int:
        """The first of the order that is there."""
        return next(alive_in_order(self._orders, request.conversation, alive))

    def sent(self, request: SimulatedRequest, replica: int) -> None:
        """Nothing is kept."""

    def beat(self) -> None:
        """Nothing is told."""


def less_loaded_of_two(workload: ChatWorkload, view: LoadView, some: Sequence[int]) -> int:
    """The less loaded of two at random."""
    one, other = (some[int(workload.uniform() * len(some))] for _ in range(2))
    return one if view.n_there(one) <= view.n_there(other) else other


class TwoChoicesPolicy:
    """Power of two choices: the less loaded of two at random. Serve's own."""

    name = "power of two"

    def __init__(self, workload: ChatWorkload, n_replicas: int) -> None:
        self._workload = workload
        self._all = range(n_replicas)

    def choose(self, request: SimulatedRequest, view: LoadView, alive: Sequence[bool]) -> int:
        """One of two that are there."""
        while True:
            chosen = less_loaded_of_two(self._workload, view, self._all)
            if alive[chosen]:
                return chosen

    def sent(self, request: SimulatedRequest, replica: int) -> None:
        """Nothing is kept."""

    def beat(self) -> None:
        """Nothing is told."""


class PrefixTreePolicy:
    """Ray's PrefixCacheAffinityRouter by its documentation: a tree of what each replica was sent.

    While the longest and the shortest queue differ by less than `imbalanced_threshold`, a prompt of which a tenth or
    more is in the tree goes to a replica with the longest match, another to the one with the smallest tree. Else it is
    power of two. The tree of a replica is bounded; it keeps what was sent, not what the replica kept.
    """

    def __init__(self, workload: ChatWorkload, n_replicas: int, imbalanced_threshold: float, max_tokens: int) -> None:
        self.name = f"prefix tree, imbalance {imbalanced_threshold:g}"
        self._two = TwoChoicesPolicy(workload, n_replicas)
        self._threshold = imbalanced_threshold
        self._max_tokens = max_tokens
        self._homes: dict[int, dict[int, int]] = {}
        self._sizes = np.zeros(n_replicas)
        self._sent: list[dict[int, int]] = [{} for _ in range(n_replicas)]

    def choose(self, request: SimulatedRequest, view: LoadView, alive: Sequence[bool]) -> int:
        """By the tree where the load is even, by two choices where it is not."""
        if not self._is_even(view, alive):
            return self._two.choose(request, view, alive)
        matches = {index: n for index, n in self._homes.get(request.conversation, {}).items() if alive[index]}
        longest = max(matches.values(), default=0)
        if longest >= 0.1 * (request.history + request.n_new):
            return next(index for index, n in matches.items() if n == longest)
        return int(np.argmin(np.where(alive, self._sizes, np.inf)))

    def _is_even(self, view: LoadView, alive: Sequence[bool]) -> bool:
        if self._threshold == np.inf:
            return True
        loads = view.all_there()[np.asarray(alive)]
        return int(loads.max() - loads.min()) < self._threshold

    def sent(self, request: SimulatedRequest, replica: int) -> None:
        """Insert a prompt; the conversation that was sent least recently leaves a tree that is full."""
        n_tokens = request.history + request.n_new
        sent = self._sent[replica]
        self._sizes[replica] += n_tokens - sent.pop(request.conversation, 0)
        sent[request.conversation] = n_tokens
        self._homes.setdefault(request.conversation, {})[replica] = n_tokens
        while self._sizes[replica] > self._max_tokens and len(sent) > 1:
            oldest = next(iter(sent))
            self._sizes[replica] -= sent.pop(oldest)
            self._homes[oldest].pop(replica)
            if not self._homes[oldest]:
                del self._homes[oldest]

    def beat(self) -> None:
        """The tree is one for all ingresses."""
