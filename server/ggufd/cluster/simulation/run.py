"""One run of the simulation: events of chats and servers in time, beats each second, and what was measured."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ggufd.cluster.simulation.machine import (
    DECODE_TOK_S,
    N_KEPT,
    N_SLOTS,
    PREFILL_TOK_S,
    SimulatedRequest,
    SimulatedServer,
)
from ggufd.cluster.simulation.orders import Orders
from ggufd.cluster.simulation.policies import LoadView, RoutingPolicy, alive_in_order
from ggufd.cluster.simulation.workload import ANSWER_TOKENS, MEAN_PAUSE_S, PROMPT_TOKENS, ChatWorkload

BEAT_S = 1.0

SEED = 20240711

Tell = Callable[[float], None]
"""Told with each beat how much of a run is over, 0 to 1."""

TURNS_AFTER = 4
"""So many turns of each chat are looked at after replicas were lost."""


def tell_nobody(share: float) -> None:
    """For who does not want to know how far a run is."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Size of a run. What happens before `warm_s` is not measured; `ends_s` is its end.

    The same `seed` gives the same chats in the same order.
    """

    n_replicas: int = 1000
    n_chats: int = 100_000
    n_ingresses: int = 4
    warm_s: float = 600.0
    ends_s: float = 1500.0
    decode_tok_s: float = DECODE_TOK_S
    seed: int = SEED


def decode_tok_s_for(use: float, n_replicas: int, n_chats: int) -> float:
    """Pace of a stream at which so many chats use that share of the slots, when all of their prompts are cached.

    A chat is in a slot for `d` seconds and pauses for `p`, so `n_chats * d / (d + p)` slots are in use. Raises
    ValueError where the chats are too few for that, or no pace is slow enough.
    """
    used_slots = use * N_SLOTS * n_replicas
    if used_slots >= n_chats:
        raise ValueError(f"{n_chats:,} chats cannot use {used_slots:,.0f} slots at a time")
    decode_s = used_slots * MEAN_PAUSE_S / (n_chats - used_slots) - PROMPT_TOKENS / PREFILL_TOK_S
    if decode_s <= 0:
        raise ValueError(f"{n_chats:,} chats use more than that share of the slots by their prompts alone")
    return ANSWER_TOKENS / decode_s


@dataclass(frozen=True, slots=True)
class Loss:
    """Replicas that go at one moment: killed with what they keep, or drained, when their chats move first."""

    at_s: float
    part: float = 0.1
    is_drained: bool = False


@dataclass(slots=True)
class RunFigures:
    """What a run has shown: tokens of histories and those of them that were cached, first tokens, and use of slots.

    `left_share` is the share of requests that did not go to the home of rendezvous hashing. `after` has tokens of each
    chat's first turns after a loss, by their number.
    """

    n_requests: int = 0
    history: int = 0
    cached: int = 0
    waits_s: list[float] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)
    left_share: float = 0.0
    after: list[list[int]] = field(default_factory=lambda: [[0, 0] for _ in range(TURNS_AFTER)])

    @property
    def cached_share(self) -> float:
        """Share of the histories' tokens that were cached."""
        return self.cached / max(1, self.history)

    def cached_share_after(self, turn: int) -> float:
        """The same of the turns with that number after the loss."""
        cached, history = self.after[turn]
        return cached / max(1, history)

    @property
    def busiest(self) -> float:
        """Slot time of the busiest replica by the mean; 0 where nothing ran."""
        return max(self.busy_s) / self.use if self.use else 0.0

    @property
    def use(self) -> float:
        """Share of the slots that was used."""
        return sum(self.busy_s) / len(self.busy_s)

    def wait_s(self, percentile: float) -> float:
        """A percentile of the time until the first token."""
        return float(np.percentile(self.waits_s, percentile)) if self.waits_s else 0.0


class ClusterRun:
    """Chats over the replicas of a cluster, routed by one policy."""

    def __init__(
        self,
        scale: Scale,
        workload: ChatWorkload,
        policy: RoutingPolicy,
        machines: Sequence[SimulatedServer],
        orders: Orders,
        loss: Loss | None = None,
    ) -> None:
        self._scale = scale
        self._workload = workload
        self._policy = policy
        self._machines = machines
        self._loss = loss
        self._orders = orders
        self._alive = [True] * len(machines)
        self._views = [LoadView(len(machines)) for _ in range(scale.n_ingresses)]
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._now_s = 0.0
        self._turns_after: dict[int, int] = {}
        self._n_routed = self._n_left = 0
        self.measured = RunFigures()

    def run(self, tell: Tell) -> RunFigures:
        """From the first turn to the end."""
        for chat, at_s in enumerate(self._workload.first_turns_s()):
            self._at(float(at_s), lambda chat=chat: self._send(chat))  # type: ignore[misc]
        self._at(BEAT_S, lambda: self._beat(tell))
        if self._loss is not None:
            self._at(self._loss.at_s, self._lose)
        while self._events and self._events[0][0] <= self._scale.ends_s:
            self._now_s, _, action = heapq.heappop(self._events)
            action()
        for machine in self._machines:
            for request in machine.running.values():
                self._note_busy(machine, request, self._scale.ends_s)
        measured_s = self._scale.ends_s - self._scale.warm_s
        self.measured.busy_s = [
            one.busy_s / one.n_slots / measured_s
            for one, alive in zip(self._machines, self._alive, strict=True)
            if alive
        ]
        self.measured.left_share = self._n_left / max(1, self._n_routed)
        return self.measured

    def _at(self, at_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), action))

    # --- a turn -----------------------------------------------------------------------------------------------------

    def _send(self, index: int) -> None:
        """A chat's next turn arrives at one of the ingresses."""
        chat = self._workload.chats[index]
        request = SimulatedRequest(
            index,
            chat.conversation,
            chat.n_turns,
            chat.history,
            self._workload.prompt_tokens(),
            self._workload.answer_tokens(),
            self._now_s,
            int(self._workload.uniform() * len(self._views)),
        )
        self._route(request)

    def _route(self, request: SimulatedRequest) -> None:
        view = self._views[request.ingress]
        replica = self._policy.choose(request, view, self._alive)
        view.own[replica] += 1
        self._policy.sent(request, replica)
        self._n_routed += 1
        self._n_left += replica != next(alive_in_order(self._orders, request.conversation, self._alive))
        machine = self._machines[replica]
        machine.queue.append(request)
        self._fill(replica)

    def _fill(self, replica: int) -> None:
        """Give free slots to who waits."""
        machine = self._machines[replica]
        while (request := machine.next_start()) is not None:
            duration_s = machine.begin(request, self._now_s)
            self._note_start(request)
            self._at(self._now_s + duration_s, lambda one=request: self._end(one, replica))  # type: ignore[misc]

    def _end(self, request: SimulatedRequest, replica: int) -> None:
        """An answer is complete: its chat pauses."""
        if request.is_lost:
            return
        machine = self._machines[replica]
        machine.end(request)
        self._note_busy(machine, request, self._now_s)
        self._views[request.ingress].ended(replica, self._now_s - request.arrival_s)
        chat = self._workload.chats[request.chat]
        self._workload.end_turn(chat, request.n_new + request.n_answer)
        if chat.conversation != request.conversation:
            self._orders.forget(request.conversation)
        self._at(self._now_s + self._workload.pause_s(), lambda: self._send(request.chat))
        self._fill(replica)

    def _note_busy(self, machine: SimulatedServer, request: SimulatedRequest, until_s: float) -> None:
        machine.busy_s += max(0.0, until_s - max(request.start_s, self._scale.warm_s))

    def _note_start(self, request: SimulatedRequest) -> None:
        if self._now_s < self._scale.warm_s:
            return
        measured = self.measured
        turn = self._turns_after.get(request.conversation)
        # What comes after a loss is counted by turn: it is what the loss has changed.
        if turn is not None and request.history:
            self._turns_after[request.conversation] = turn + 1
            if turn < TURNS_AFTER:
                measured.after[turn][0] += request.n_cached
                measured.after[turn][1] += request.history
        if self._loss is not None and self._now_s >= self._loss.at_s:
            return
        measured.n_requests += 1
        measured.history += request.history
        measured.cached += request.n_cached
        n_prefill = request.history + request.n_new - request.n_cached
        measured.waits_s.append(self._now_s - request.arrival_s + n_prefill / PREFILL_TOK_S)

    # --- the cluster ------------------------------------------------------------------------------------------------

    def _beat(self, tell: Tell) -> None:
        """All replicas tell their load, with a forecast of the wait from the mean duration of requests."""
        told = np.array([machine.n_there for machine in self._machines], dtype=np.int64)
        for view in self._views:
            waiting = np.maximum(told - N_SLOTS + 1, 0)
            view.beat(told, waiting * view.mean_duration_s / N_SLOTS)
        self._policy.beat()
        tell(self._now_s / self._scale.ends_s)
        self._at(self._now_s + BEAT_S, lambda: self._beat(tell))

    def _lose(self) -> None:
        """The first replicas go; they are no different from others. Requests there are sent again elsewhere."""
        assert self._loss is not None
        n_lost = int(self._loss.part * len(self._machines))
        self._alive[:n_lost] = [False] * n_lost
        self._turns_after = {chat.conversation: 0 for chat in self._workload.chats if chat.history}
        for replica in range(n_lost):
            machine = self._machines[replica]
            if self._loss.is_drained:
                self._hand_over(machine)
            machine.kept.clear()
            again = [*machine.running.values(), *machine.queue]
            machine.running.clear()
            machine.queue.clear()
            for request in again:
                request.is_lost = True
                self._views[request.ingress].own[replica] -= 1
                self._route(_again(request))

    def _hand_over(self, machine: SimulatedServer) -> None:
        """Kept chats of a draining replica move to where each will be routed next."""
        for conversation, n_tokens in machine.kept.items():
            heir = self._machines[next(alive_in_order(self._orders, conversation, self._alive))]
            if heir.kept.get(conversation, 0) < n_tokens:
                heir.keep(conversation, n_tokens)


def _again(request: SimulatedRequest) -> SimulatedRequest:
    """The same request, which was lost with its replica, sent once more."""
    return SimulatedRequest(
        request.chat,
        request.conversation,
        request.n_turns,
        request.history,
        request.n_new,
        request.n_answer,
        request.arrival_s,
        request.ingress,
    )


def one_machine(scale: Scale) -> SimulatedServer:
    """A machine of the cluster's total capacity."""
    return SimulatedServer(N_SLOTS * scale.n_replicas, N_KEPT * scale.n_replicas, scale.decode_tok_s)
