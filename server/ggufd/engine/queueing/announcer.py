"""Queue notices: place and expected wait of waiting requests, and refusal of those that cannot start in time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ggufd.engine.messages.events import Failed, Queued, Turn
from ggufd.engine.messages.reports import QueueEntry, QueueState
from ggufd.engine.queueing.forecast import Forecast
from ggufd.engine.queueing.queue import RequestQueue
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.slots.matching import PrefixMatcher
from ggufd.engine.slots.slot_table import SlotTable
from ggufd.errors import QueueTimeout

_SOON_S = 0.25
_LATER_S = 1.0
"""Least seconds between two notices: with a new place, and with the same place and another wait."""


class _Told(NamedTuple):
    position: int
    at_s: float


class Announcer:
    """Notices for the requests in `queue` that asked for them, or that have a timeout."""

    def __init__(self, queue: RequestQueue, table: SlotTable, matcher: PrefixMatcher, forecast: Forecast) -> None:
        self._queue = queue
        self._table = table
        self._matcher = matcher
        self._forecast = forecast
        self._told: dict[int, _Told] = {}

    def notices(self, running: list[SequenceState], now_s: float) -> Iterator[Queued | Failed]:
        """Notices since the last call. A request that gets `Failed` cannot start in its time, and is to be ended."""
        if not self._queue and not self._told:
            return
        listeners = self._listeners(now_s)
        turns = self._turns(running) if listeners else {}
        for sequence in listeners:
            request_id = sequence.request.request_id
            turn = turns[request_id]
            error = self._lateness(sequence, turn, now_s) if request_id not in self._told else None
            if error is not None:
                yield Failed.by(request_id, error)
            elif self._is_news(request_id, turn, now_s):
                yield Queued(request_id, turn)

    def state(self, running: list[SequenceState], now_s: float) -> QueueState:
        """Every request under way: running ones, the oldest first, then waiting ones in the expected order."""
        turns = self._turns(running)
        requests: dict[int, list[SequenceState]] = {}
        for sequence in (*self._queue.waiting(), *running):
            requests.setdefault(sequence.request.request_id, []).append(sequence)
        entries = [_entry(sequences, turns, now_s) for sequences in requests.values()]
        return QueueState(tuple(sorted(entries, key=lambda entry: (entry.turn or Turn(0, 0.0), -entry.age_s))))

    def longest_wait_s(self, running: list[SequenceState]) -> float:
        """Expected wait of the last request in the queue: a new one would wait at least as long."""
        return max((turn.wait_s for turn in self._turns(running).values()), default=0.0)

    def next_wait_s(self, running: list[SequenceState]) -> float:
        """Expected wait of one more request."""
        order = self._queue.foreseen(self._forecast.expected_tokens)
        return self._forecast.next_wait_s(order, _lasting(running), self._table.n_free)

    @property
    def prefill_tok_s(self) -> float:
        """Tokens of prompts computed in a second; 0 before that was measured."""
        return self._forecast.prefill_tok_s

    def _turns(self, running: list[SequenceState]) -> dict[int, Turn]:
        order = self._queue.foreseen(self._forecast.expected_tokens)
        return self._forecast.turns(order, _lasting(running), self._table.n_free)

    def _listeners(self, now_s: float) -> list[SequenceState]:
        """Requests for which a notice may be due; forgets those that wait no more."""
        asking = [one for one in self._queue.waiting() if one.is_first and _listens(one)]
        here = {one.request.request_id for one in asking}
        self._told = {request_id: told for request_id, told in self._told.items() if request_id in here}
        return [one for one in asking if self._is_due(one, now_s)]

    def _is_due(self, sequence: SequenceState, now_s: float) -> bool:
        told = self._told.get(sequence.request.request_id)
        return told is None or (sequence.request.report_queue and now_s - told.at_s >= _SOON_S)

    def _is_news(self, request_id: int, turn: Turn, now_s: float) -> bool:
        told = self._told.get(request_id)
        if told is not None and told.position == turn.position and now_s - told.at_s < _LATER_S:
            return False
        self._told[request_id] = _Told(turn.position, now_s)
        return True

    def _lateness(self, sequence: SequenceState, turn: Turn, now_s: float) -> QueueTimeout | None:
        """Error for a request whose timeout would pass before its first token (TTFT)."""
        timeout_s = sequence.request.timeout_s
        if timeout_s is None:
            return None
        n_unread = sequence.n_prompt - self._matcher.longest(sequence)
        first_token_s = now_s - sequence.arrival_s + turn.wait_s + self._forecast.prefill_s(n_unread)
        if first_token_s <= timeout_s:
            return None
        return QueueTimeout(
            f"the request wants its answer within {timeout_s:g} s, but its first token is due in about "
            f"{first_token_s:.1f} s; ask for more time, or try again later",
            param="timeout",
            retry_after_s=first_token_s - timeout_s,
        )


def _lasting(running: list[SequenceState]) -> list[SequenceState]:
    """Those that give up their slot to nobody."""
    return [sequence for sequence in running if not sequence.is_background]


def _listens(sequence: SequenceState) -> bool:
    return sequence.request.report_queue or sequence.request.timeout_s is not None


def _entry(sequences: list[SequenceState], turns: dict[int, Turn], now_s: float) -> QueueEntry:
    first, request = sequences[0], sequences[0].request
    return QueueEntry(
        request_id=request.request_id,
        principal=request.principal,
        priority=request.priority,
        age_s=now_s - first.arrival_s,
        prompt_tokens=first.n_prompt,
        generated_tokens=sum(sequence.n_generated for sequence in sequences),
        turn=turns.get(request.request_id),
        patience_s=first.patience_s or 0.0,
    )
