"""Router: replicas for a request, best first. One for each ingress process; not thread-safe.

The home of a conversation, the first replica of its rendezvous order, keeps its computed prompt. The load guard decides
when to leave it, by what either costs the request in seconds until its first token:

    at home      wait(home)                        the prompt is there, but for its last message
    elsewhere    wait(other) + recompute           recompute = tokens of the prompt / prefill rate of the other

The least cost is taken, and among equals the first of the order, which is the same in each turn: so a conversation that
leaves its home leaves it for one other. Nothing is known of whether the home still has the prompt. For a first turn it
has not; but the next turn comes back to the home, where the prompt would then be missing, so leaving costs the same.

wait(replica) is 0 while it has a free slot. Else it is that of all who are before the request, each the time in which
one slot becomes free: the replica's own forecast `wait_s` for those it knew of, divided by their number; without a
forecast the mean duration of this ingress' requests, divided by the slots. Who is before the request is what the
replica told with its last beat, and what this ingress sent since (`open_counts`).

A replica that does not know its prefill rate yet is taken for the mean of those that do. Draining replicas come last:
they refuse, but so would nobody at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from ggufd.cluster.replicas import Replica
from ggufd.cluster.routing.hints import RouteHint
from ggufd.cluster.routing.open_counts import OpenCounts
from ggufd.cluster.routing.rendezvous import Rendezvous

BYTES_PER_TOKEN = 4.0
"""Of English text. Others have fewer, so leaving home is taken for cheaper than it is there, by half at most."""

_FIRST_PREFILL_TOK_S = 500.0
"""Prefill rate while no replica has measured one."""


def wait_s(n_there: int, n_slots: int, told_wait_s: float, n_told: int, duration_s: float) -> float:
    """Expected wait for a slot at a replica with so many requests, of which it told `n_told` and its forecast.

    Grows with each request from 0 on, and by the same time for each: it does not jump when the replica tells again.
    """
    n_slots = max(1, n_slots)
    place = n_there - n_slots + 1
    if place <= 0:
        return 0.0
    told_place = n_told - n_slots + 1
    if told_place > 0 and told_wait_s > 0:
        return place * told_wait_s / told_place
    return place * duration_s / n_slots


def recompute_s(n_prompt_bytes: int, prefill_tok_s: float) -> float:
    """Time to compute a prompt of which nothing is cached."""
    return n_prompt_bytes / BYTES_PER_TOKEN / prefill_tok_s


@dataclass(frozen=True, slots=True)
class _Ranked:
    """A replica with what it costs, and its place among those that cost the same."""

    replica: Replica
    cost_s: float
    place: int

    @property
    def key(self) -> tuple[bool, float, int]:
        return self.replica.load.is_draining, self.cost_s, self.place


class Router:
    """Choice of replicas by conversation and load, and this ingress' counters of open requests."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._open = OpenCounts(clock)
        self._rendezvous = Rendezvous()
        self._n_ranked = 0

    def opened(self, replica_id: str) -> None:
        """Count a request that is sent to a replica. Each needs one `closed`, however it ends."""
        self._open.opened(replica_id)

    def closed(self, replica_id: str) -> None:
        """Count the end of a request at a replica."""
        self._open.closed(replica_id)

    def rank(self, hint: RouteHint | None, replicas: Sequence[Replica], avoid: Collection[str] = ()) -> list[Replica]:
        """Replicas to try, best first, without those to `avoid`: they have failed or refused this request already.

        The home stays the home where it is avoided: nobody else has the conversation then.
        """
        self._open.forget_but([replica.id for replica in replicas])
        ranked = self._any(replicas) if hint is None else self._by_chat(hint, replicas)
        return [one.replica for one in sorted(ranked, key=lambda one: one.key) if one.replica.id not in avoid]

    def home(self, chat: bytes, replicas: Iterable[Replica]) -> Replica | None:
        """Where a conversation is at home now: the first of its order that does not drain."""
        staying = [replica for replica in replicas if not replica.load.is_draining]
        return max(staying, key=lambda one: self._rendezvous.weight(chat, one.id), default=None)

    def _any(self, replicas: Sequence[Replica]) -> list[_Ranked]:
        """The least loaded first, in turns where they are alike."""
        self._n_ranked += 1
        turn = self._n_ranked.to_bytes(16, "little")
        order = sorted(replicas, key=lambda one: self._rendezvous.weight(turn, one.id))
        return [_Ranked(one, self._wait_s(one) + self._used(one), place) for place, one in enumerate(order)]

    def _by_chat(self, hint: RouteHint, replicas: Sequence[Replica]) -> list[_Ranked]:
        """The home by the chat, others in the order of the conversation's head: see `RouteHint.head`."""
        home = self.home(hint.chat, replicas)
        head = hint.head or hint.chat
        order = sorted(replicas, key=lambda one: self._rendezvous.weight(head, one.id), reverse=True)
        known = [one.load.prefill_tok_s for one in replicas if one.load.prefill_tok_s > 0]
        default_tok_s = sum(known) / len(known) if known else _FIRST_PREFILL_TOK_S
        ranked = []
        for place, one in enumerate(order, 1):
            cost_s = self._wait_s(one)
            if one is home:
                ranked.append(_Ranked(one, cost_s, 0))
            else:
                cost_s += recompute_s(hint.n_prompt_bytes, one.load.prefill_tok_s or default_tok_s)
                ranked.append(_Ranked(one, cost_s, place))
        return ranked

    def _wait_s(self, replica: Replica) -> float:
        load = replica.load
        n_told = load.running + load.waiting
        return wait_s(self._open.n_there(replica), load.n_slots, load.wait_s, n_told, self._open.mean_duration_s)

    def _used(self, replica: Replica) -> float:
        """Share of a replica's slots that is used."""
        return self._open.n_there(replica) / max(1, replica.load.n_slots)
