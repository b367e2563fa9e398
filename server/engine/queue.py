"""The queue in front of the context: who waits, in what order, and how long at most.

A policy object: the engine asks for an order, takes whom it can place, and says what that one computed.

    between accounts   the one that was served least, by its weight (`fairness`)
    within an account  by priority, then first come, first served; `aging_s` seconds of waiting make up for one
                       step of priority, so nothing starves

With one account and one priority that is first come, first served.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Iterator

from server.engine.fairness import Accounts, Standing, TokenCounters
from server.engine.sequence import Sequence, Status
from server.errors import EngineFailure, QueueFull


class RequestQueue:
    """Waiting sequences, at most `max_requests` requests of them, none longer than `max_wait_s` seconds.

    In `accounts` more than these sequences may be counted: what else is computed for somebody counts too.
    """

    def __init__(
        self, max_requests: int, max_wait_s: float, *, accounts: Accounts | None = None, aging_s: float = 30.0
    ) -> None:
        self.max_requests = max_requests
        self.max_wait_s = max_wait_s
        self.accounts = accounts or Accounts()
        self._aging_s = aging_s
        self._waiting: dict[str, list[Sequence]] = {}
        self._n_pushed = 0

    def __len__(self) -> int:
        return sum(len(sequences) for sequences in self._waiting.values())

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        """The order of service as things stand at each step of the loop: taking somebody changes who comes next.

        An account that runs as much as it may is left out.
        """
        rest = {account: deque(sequences) for account, sequences in self._waiting.items()}
        while able := [account for account, sequences in rest.items() if sequences and self._may_run(sequences[0])]:
            yield rest[self.counters.least(able)].popleft()

    @property
    def counters(self) -> TokenCounters:
        return self.accounts.counters

    @property
    def n_requests(self) -> int:
        """Requests none of whose sequences has been admitted."""
        return sum(1 for sequence in self.waiting() if sequence.is_first)

    def foreseen(self, expected_tokens: Callable[[Sequence], float]) -> Iterator[Sequence]:
        """The order of service if nobody else comes, and every answer is as long as expected."""
        counters = {account: self.counters[account] for account in self._waiting}
        rest = {account: deque(sequences) for account, sequences in self._waiting.items()}
        while rest:
            account = min(rest, key=counters.__getitem__)
            sequence = rest[account].popleft()
            yield sequence
            cost = self.accounts.prompt_cost * sequence.n_prompt_uncomputed + expected_tokens(sequence)
            counters[account] += cost / sequence.request.limits.weight
            if not rest[account]:
                del rest[account]

    def heads(self) -> Iterator[Sequence]:
        """The first of every account that may run more, the account that was served least first."""
        for account in sorted(self._waiting, key=self.counters.__getitem__):
            sequences = self._waiting.get(account)
            if sequences and self._may_run(sequences[0]):
                yield sequences[0]

    def served(self, sequence: Sequence) -> float:
        """What a sequence's account was served so far."""
        return self.counters[sequence.request.account]

    def n_running(self, account: str) -> int:
        """Slots that an account holds, and lists of texts that become vectors."""
        return self.accounts.running[account]

    def waiting(self) -> Iterator[Sequence]:
        """All that wait, in no order that means anything."""
        for sequences in self._waiting.values():
            yield from sequences

    def rank(self, sequence: Sequence) -> tuple[float, int]:
        """What orders an account's sequences, lowest first: seconds, and the order of arrival among equals."""
        return sequence.arrival_s + sequence.request.priority * self._aging_s, sequence.serial

    # --- transitions ------------------------------------------------------------------------------------------------

    def push(self, sequences: list[Sequence], *, n_free: int = 0) -> None:
        """Let the sequences of one request wait. Raises `QueueFull`, and takes none, when too many requests wait.

        The next step takes `n_free` of those that wait into free slots: as many more may wait until then.
        """
        if self.n_requests >= self.max_requests + n_free:
            raise QueueFull(f"{self.max_requests} requests are waiting already; try again later")
        for sequence in sequences:
            self._n_pushed += 1
            sequence.serial = self._n_pushed
            self._insert(sequence)

    def take(self, sequence: Sequence) -> None:
        """Waiting to running: the sequence gets a slot."""
        self._drop(sequence)
        self.accounts.run(sequence.request.account)

    def put_back(self, sequence: Sequence) -> None:
        """Running to waiting: the sequence was preempted, and keeps its place in the order of its account."""
        self.accounts.rest(sequence.request.account)
        self._insert(sequence)

    def remove(self, sequence: Sequence) -> None:
        """The sequence waits no more, and will not run."""
        self._drop(sequence)
        if sequence.is_preempted:
            self._refund(sequence)

    def release(self, sequence: Sequence) -> None:
        """The sequence runs no more."""
        self.accounts.rest(sequence.request.account)
        self._refund(sequence)

    # --- charges ----------------------------------------------------------------------------------------------------

    def charge_prompt(self, sequence: Sequence) -> None:
        """Charge what is left to compute of a prompt that was just admitted."""
        self._charge_prompt(sequence, sequence.n_prompt_uncomputed)

    def charge_token(self, sequence: Sequence) -> None:
        """Charge one generated token."""
        self.accounts.charge(sequence.request.account, 1.0, sequence.request.limits)

    def _refund(self, sequence: Sequence) -> None:
        """What was charged of the prompt and never computed is given back."""
        if sequence.n_prompt_uncomputed and sequence.admit_s:
            self._charge_prompt(sequence, -sequence.n_prompt_uncomputed)

    def _charge_prompt(self, sequence: Sequence, n_tokens: int) -> None:
        self.accounts.charge_prompt(sequence.request.account, n_tokens, sequence.request.limits)

    # --- who is waiting ---------------------------------------------------------------------------------------------

    def of_request(self, request_id: int) -> list[Sequence]:
        return [sequence for sequence in self.waiting() if sequence.request.request_id == request_id]

    def expired(self, now_s: float) -> list[Sequence]:
        """First sequences that have waited as long as they may; later ones of a request wait for their siblings."""
        return [
            sequence
            for sequence in self.waiting()
            if sequence.is_first and now_s - sequence.arrival_s > self._max_wait_s(sequence)
        ]

    def _max_wait_s(self, sequence: Sequence) -> float:
        asked = sequence.request.max_queue_wait_s
        return self.max_wait_s if asked is None else min(asked, self.max_wait_s)

    def _may_run(self, sequence: Sequence) -> bool:
        return self.accounts.may_run(sequence.request.account, sequence.request.limits)

    # --- keeping the books ------------------------------------------------------------------------------------------

    def _insert(self, sequence: Sequence) -> None:
        account = sequence.request.account
        self.accounts.wait(account)
        insort(self._waiting.setdefault(account, []), sequence, key=self.rank)

    def _drop(self, sequence: Sequence) -> None:
        account = sequence.request.account
        self._waiting[account].remove(sequence)
        if not self._waiting[account]:
            del self._waiting[account]
        self.accounts.settle(account)

    def check_integrity(self, running: list[Sequence], beside: Standing | None = None) -> None:
        """Raise `EngineFailure` unless the books agree with each other and with who runs; `beside` is no sequence."""
        n_waiting = Counter({account: len(sequences) for account, sequences in self._waiting.items()})
        n_running = Counter(sequence.request.account for sequence in running)
        self.accounts.check_integrity(Standing(n_waiting, n_running), beside or Standing())
        for account, sequences in self._waiting.items():
            if not sequences or sequences != sorted(sequences, key=self.rank):
                raise EngineFailure(f"the queue of {account!r} is empty or out of order")
            if any(sequence.status is not Status.WAITING for sequence in sequences):
                raise EngineFailure("a sequence waits without being in the waiting state")
