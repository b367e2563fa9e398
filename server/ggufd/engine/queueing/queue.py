"""Request queue of the engine: sequences that wait for a slot, and what their accounts are charged.

A policy object: the engine asks for an order (`waiting_list`), takes whom it can place, and says what that one
computed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator

from ggufd.engine.queueing.fairness import Standing
from ggufd.engine.queueing.waiting_list import WaitingList
from ggufd.engine.scheduling.shortest_first import ShortestFirst
from ggufd.engine.sequence.sequence import SequenceState, Status
from ggufd.errors import EngineFailure


class RequestQueue(WaitingList[SequenceState]):
    """Waiting sequences, charged when they are admitted and for every token that they generate.

    Within an account they are served by arrival, or as `shortest_first` says, where that is set.
    """

    shortest_first: ShortestFirst | None = None

    def served(self, sequence: SequenceState) -> float:
        """Counter of a sequence's account: what it was served so far."""
        return self.counters[sequence.request.principal.account]

    def n_running(self, account: str) -> int:
        """Slots that an account holds, and embedding requests of it that are being computed."""
        return self.accounts.running[account]

    def foreseen(self, expected_tokens: Callable[[SequenceState], float]) -> Iterator[SequenceState]:
        """The order of service if every answer is as long as expected."""
        prompt_cost = self.accounts.prompt_cost
        return self.foreseen_order(lambda one: prompt_cost * one.n_prompt_uncomputed + expected_tokens(one))

    def _pop(self, entries: deque[SequenceState]) -> SequenceState:
        if self.shortest_first is None:
            return entries.popleft()
        entry = self.shortest_first.pick(entries)
        entries.remove(entry)
        return entry

    # --- transitions ------------------------------------------------------------------------------------------------

    def take(self, entry: SequenceState) -> None:
        if self.shortest_first is not None:
            line = self._waiting[entry.request.principal.account]
            self.shortest_first.charge(line, entry, self.shortest_first.work_s(entry))
        super().take(entry)

    def put_back(self, sequence: SequenceState) -> None:
        """Move a preempted sequence from running to waiting, at its place in the order of its account."""
        self.accounts.rest(sequence.request.principal.account)
        self.insert(sequence)

    def remove(self, sequence: SequenceState) -> None:
        """Remove a waiting sequence that will not run."""
        self.drop(sequence)
        if sequence.is_preempted:
            self._refund(sequence)

    def release(self, sequence: SequenceState) -> None:
        """End a running sequence."""
        self.accounts.rest(sequence.request.principal.account)
        self._refund(sequence)

    # --- charges ----------------------------------------------------------------------------------------------------

    def charge_prompt(self, sequence: SequenceState) -> None:
        """Charge what is left to compute of a prompt that was just admitted."""
        self._charge_prompt(sequence, sequence.n_prompt_uncomputed)

    def charge_token(self, sequence: SequenceState) -> None:
        """Charge one generated token."""
        self.accounts.charge(sequence.request.principal, 1.0)

    def _refund(self, sequence: SequenceState) -> None:
        """Give back what was charged of the prompt and never computed."""
        if sequence.n_prompt_uncomputed and sequence.admit_s:
            self._charge_prompt(sequence, -sequence.n_prompt_uncomputed)

    def _charge_prompt(self, sequence: SequenceState, n_tokens: int) -> None:
        self.accounts.charge_prompt(sequence.request.principal, n_tokens)

    def check_integrity(self, running: list[SequenceState], beside: Standing | None = None) -> None:
        """Raise `EngineFailure` unless all counts agree with each other and with who runs; `beside` is no sequence."""
        n_running = Counter(one.request.principal.account for one in running if not one.is_background)
        self.accounts.check_integrity(Standing(self.count(), n_running), beside or Standing())
        if any(sequence.status is not Status.WAITING for sequence in self.waiting()):
            raise EngineFailure("a sequence waits without being in the waiting state")
