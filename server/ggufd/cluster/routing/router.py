"""Router: replicas for a request, best first. One for each ingress process; not thread-safe.

The home of a conversation, the first replica of its rendezvous order, keeps its computed prompt. The load guard decides
when to leave it, by what either costs in seconds of waiting or computing:

    at home      wait(home)                        the prompt is there, but for its last message
    elsewhere    wait(other) + 3 * recompute       recompute = tokens of the prompt / prefill rate of the other

Three times, since a prompt is computed anew for the request itself; for the conversation that the other replica evicts
to keep this one; and for one that the home evicts while it keeps the copy left behind. The least cost is taken. Among
equals it is the least loaded of the first four of the order: there is the conversation's new place, and one with room
will not have to be left again. It stays there, remembered by this ingress and told to the others (`moved_chats`): else
it would leave and come back for a prompt that is never where it goes. An ingress that does not know sends it home,
which costs what the conversation has grown since. Nothing is known of whether a home still has the prompt.

A conversation that begins has nothing anywhere yet. So where its home is crowded, with half of the slots in use and a
quarter more requests than the replicas have in the mean, it begins at the least loaded of the first four, for the price
of remembering that. This is what evens out the load before anybody has to wait.

wait(replica) is 0 while it has a free slot. Else it is that of all who are before the request, each the time in which
one slot becomes free: the replica's own forecast `wait_s` for those it knew of, divided by their number; without a
forecast the mean duration of this ingress' generations, divided by the slots. Who is before the request is what the
replica told with its last beat, and what this ingress sent since (`open_counts`).

A replica that does not know its prefill rate yet is taken for the mean of those that do. Draining replicas come last:
they refuse, but so would nobody at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ggufd.cluster.replicas import Replica
from ggufd.cluster.routing.hints import RouteHint
from ggufd.cluster.routing.moved_chats import MovedChats, Moves
from ggufd.cluster.routing.open_counts import OpenCounts
from ggufd.cluster.routing.rendezvous import Rendezvous

BYTES_PER_TOKEN = 4.0
"""Of English text. Others have fewer, so leaving home is taken for cheaper than it is there, by half at most."""

_FIRST_PREFILL_TOK_S = 500.0
"""Prefill rate while no replica has measured one."""


TIMES_COMPUTED = 3
"""So many prompts are computed anew when a conversation leaves its home."""

N_NEAR = 4
"""Of so many replicas of the order the least loaded is a conversation's new place."""


CROWDED = 1.25
"""By so much a crowded replica has more requests than the mean."""


def is_crowded(n_there: int, n_slots: int, mean: Callable[[], float]) -> bool:
    """Whether a replica has so many requests that new conversations should begin elsewhere."""
    return 2 * n_there >= n_slots and n_there > CROWDED * mean()


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


def leaving_s(n_prompt_bytes: int, prefill_tok_s: float) -> float:
    """What it costs to leave a home: the time to compute the prompt anew, for all that have to because of it."""
    return TIMES_COMPUTED * n_prompt_bytes / BYTES_PER_TOKEN / prefill_tok_s


def _head(hint: RouteHint) -> bytes:
    """What tells conversations apart, also those with one home. It is the chat itself in a first turn."""
    return hint.head or hint.chat


@dataclass(frozen=True, slots=True)
class _Ranked:
    """A replica with what it costs, and its place among those that cost the same."""

    replica: Replica
    cost_s: float
    place: int
    n_there: int = 0

    @property
    def key(self) -> tuple[bool, float, float, int]:
        n_there = self.n_there if self.place <= N_NEAR else math.inf
        return self.replica.load.is_draining, self.cost_s, n_there, self.place


def _best_first(ranked: Iterable[_Ranked], avoid: Collection[str]) -> list[Replica]:
    return [one.replica for one in sorted(ranked, key=lambda one: one.key) if one.replica.id not in avoid]


class Router:
    """Choice of replicas by conversation and load, and this ingress' counters of open requests."""

    def __init__(self) -> None:
        self._open = OpenCounts()
        self._rendezvous = Rendezvous()
        self._moved = MovedChats()
        self._n_ranked = 0
        self._seen: Sequence[Replica] = ()
        self._mean_tok_s = self._fastest_tok_s = _FIRST_PREFILL_TOK_S

    def opened(self, replica_id: str) -> None:
        """Count a request that is sent to a replica. Each needs one `closed`, however it ends."""
        self._open.opened(replica_id)

    def closed(self, replica_id: str, generation_s: float | None = None) -> None:
        """Count the end of a request at a replica, and how long it took if it generated."""
        self._open.closed(replica_id, generation_s)

    def best(self, hint: RouteHint | None, replicas: Sequence[Replica], avoid: Collection[str] = ()) -> Replica | None:
        """The first of `rank`; None where none is left.

        Of a thousand replicas only those are looked at that can be it. Where the conversation is there is a free slot
        for most requests, and nobody costs less. Else nobody beyond the first few does who costs no more than to leave.
        """
        self._see(replicas)
        if hint is None:
            return next(iter(self.rank(hint, replicas, avoid)), None)
        home = self.home(hint.chat, replicas)
        place = self._place(hint, home, replicas)
        is_free = place is not None and place.id not in avoid and not self._wait_s(place)
        is_anywhere = self._begins_elsewhere(hint, place, replicas)
        if is_anywhere or not is_free:
            least_s = 0.0 if is_anywhere else leaving_s(hint.n_prompt_bytes, self._fastest_tok_s)
            place = self._cheapest(self._by_chat(hint, home, replicas), avoid, least_s)
        if place is not None:
            self._note_place(hint, "" if place is home else place.id)
        return place

    @staticmethod
    def _cheapest(ranked: Iterable[_Ranked], avoid: Collection[str], least_s: float) -> Replica | None:
        """The best of all by cost. Beyond the first few nobody is better who costs `least_s`, as nobody costs less."""
        best: _Ranked | None = None
        for one in ranked:
            if best is not None and one.place > N_NEAR and best.cost_s <= least_s and not best.replica.load.is_draining:
                break
            if one.replica.id not in avoid and (best is None or one.key < best.key):
                best = one
        return None if best is None else best.replica

    def _see(self, replicas: Sequence[Replica]) -> None:
        """Take up what replicas told, once for each list of them: from then on the own requests are counted."""
        if replicas is self._seen:
            return
        self._seen = replicas
        self._open.forget_but([one.id for one in replicas])
        for one in replicas:
            self._open.n_there(one)
        known = [one.load.prefill_tok_s for one in replicas if one.load.prefill_tok_s > 0]
        self._mean_tok_s = sum(known) / len(known) if known else _FIRST_PREFILL_TOK_S
        self._fastest_tok_s = max(known, default=_FIRST_PREFILL_TOK_S)

    def rank(self, hint: RouteHint | None, replicas: Sequence[Replica], avoid: Collection[str] = ()) -> list[Replica]:
        """Replicas to try, best first, without those to `avoid`: they have failed or refused this request already.

        The home stays the home where it is avoided: nobody else has the conversation then. The first of what is
        returned is remembered as where the conversation is.
        """
        self._see(replicas)
        if hint is None:
            return _best_first(self._any(replicas), avoid)
        home = self.home(hint.chat, replicas)
        best_first = _best_first(self._by_chat(hint, home, replicas), avoid)
        if best_first:
            self._note_place(hint, "" if best_first[0] is home else best_first[0].id)
        return best_first

    def take_moves(self) -> dict[bytes, str]:
        """What the other ingresses should know: conversations that were sent elsewhere since the last time."""
        return self._moved.take_news()

    def learn_moves(self, moves: Moves) -> None:
        """Take what the other ingresses told."""
        self._moved.learn(moves)

    def home(self, chat: bytes, replicas: Iterable[Replica]) -> Replica | None:
        """Where a conversation is at home now: the first of its order that does not drain."""
        staying = [replica for replica in replicas if not replica.load.is_draining]
        return staying[self._rendezvous.first(chat, [one.id for one in staying])] if staying else None

    def _any(self, replicas: Sequence[Replica]) -> list[_Ranked]:
        """The least loaded first, in turns where they are alike."""
        self._n_ranked += 1
        turn = self._n_ranked.to_bytes(16, "little")
        order = [replicas[index] for index in self._rendezvous.order(turn, [one.id for one in replicas])]
        return [_Ranked(one, self._wait_s(one) + self._used(one), place) for place, one in enumerate(order)]

    def _by_chat(self, hint: RouteHint, home: Replica | None, replicas: Sequence[Replica]) -> Iterator[_Ranked]:
        """Where the conversation is, then its home, then others in the order of its head: see `RouteHint.head`."""
        place_of_chat = self._place(hint, home, replicas)
        is_anywhere = self._begins_elsewhere(hint, place_of_chat, replicas)
        if place_of_chat is not None and not is_anywhere:
            yield _Ranked(place_of_chat, self._wait_s(place_of_chat), 0)
        order = [replicas[index] for index in self._rendezvous.order(_head(hint), [one.id for one in replicas])]
        order.sort(key=lambda one: one is not home)
        for place, one in enumerate(order, 1):
            if is_anywhere:
                yield _Ranked(one, self._wait_s(one), place, self._open.n_there(one))
            elif one is not place_of_chat:
                recompute_s = leaving_s(hint.n_prompt_bytes, one.load.prefill_tok_s or self._mean_tok_s)
                yield _Ranked(one, self._wait_s(one) + recompute_s, place, self._open.n_there(one))

    def _begins_elsewhere(self, hint: RouteHint, place: Replica | None, replicas: Sequence[Replica]) -> bool:
        """Whether a conversation is new, and its place crowded."""

        def mean() -> float:
            staying = [self._open.n_there(one) for one in replicas if not one.load.is_draining]
            return sum(staying) / len(staying)

        if place is None or not hint.is_new:
            return False
        return is_crowded(self._open.n_there(place), place.load.n_slots, mean)

    def _place(self, hint: RouteHint, home: Replica | None, replicas: Sequence[Replica]) -> Replica | None:
        """Where a conversation was sent last, if that was elsewhere and is still there; else its home."""
        moved_to = self._moved.find(_head(hint)) or self._moved.find(hint.chat)
        if moved_to is not None:
            for one in replicas:
                if one.id == moved_to and not one.load.is_draining:
                    return one
        return home

    def _note_place(self, hint: RouteHint, replica_id: str) -> None:
        """Where the conversation is from now on. If that is its home, what its first turn noted is over too."""
        self._moved.note(_head(hint), replica_id)
        if not replica_id:
            self._moved.note(hint.chat, "")

    def _wait_s(self, replica: Replica) -> float:
        load = replica.load
        n_told = load.running + load.waiting
        return wait_s(self._open.n_there(replica), load.n_slots, load.wait_s, n_told, self._open.mean_duration_s)

    def _used(self, replica: Replica) -> float:
        """Share of a replica's slots that is used."""
        return self._open.n_there(replica) / max(1, replica.load.n_slots)
