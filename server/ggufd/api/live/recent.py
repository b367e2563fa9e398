"""Rings of what happened lately: requests that ended, refusals by account, and events of the server. No text of any."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ggufd.api.http.record import RequestRecord
from ggufd.api.live.history import SECONDS

_MAX_REQUESTS = 50
_MAX_EVENTS = 100
_MAX_REFUSALS = 2000
_REFUSED = (429, 503)


@dataclass(frozen=True, slots=True)
class EndedRequest:
    """Request that has ended: numbers, and whose it was. `number` counts from 0; `at_s` is of `time.monotonic`."""

    number: int
    person: str
    at_s: float
    record: RequestRecord

    def as_json(self, epoch_s: float) -> dict[str, Any]:
        """For the view; `epoch_s` is the Unix time at which the clock began.

        Neither the id, which its client chose, nor anything that was said.
        """
        record = self.record
        return {
            "number": self.number,
            "time": round(epoch_s + self.at_s, 2),
            "owner": self.person or None,
            "path": record.path[:40],
            "status": record.status,
            "reason": record.reason,
            "prompt_tokens": record.prompt_tokens,
            "cached_tokens": record.cached_tokens,
            "completion_tokens": record.completion_tokens,
            "cache": record.cache_class or None,
            "queue_s": _rounded(record.queue_s),
            "first_s": _rounded(record.first_s),
            "took_s": _rounded(record.took_s),
            "tokens_per_s": _rounded(record.tokens_per_s),
        }


@dataclass(frozen=True, slots=True)
class LiveEvent:
    """Event of the server, for a mark in the plots: of all to all, so it names nobody."""

    number: int
    at_s: float
    kind: str
    text: str

    def as_json(self, epoch_s: float) -> dict[str, Any]:
        """For the view; `epoch_s` is the Unix time at which the clock began."""
        return {"number": self.number, "time": round(epoch_s + self.at_s, 2), "kind": self.kind, "text": self.text}


class Recent:
    """The last requests, refusals and events."""

    def __init__(self) -> None:
        self._requests: deque[EndedRequest] = deque(maxlen=_MAX_REQUESTS)
        self._refusals: deque[tuple[float, str]] = deque(maxlen=_MAX_REFUSALS)
        self._events: deque[LiveEvent] = deque(maxlen=_MAX_EVENTS)
        self.n_requests = 0
        self.n_events = 0
        self.n_refused = 0

    def note_request(self, record: RequestRecord) -> None:
        """A request has ended. A probe that is told of a server that is not ready was not refused: it has no code."""
        person = record.key or record.address
        if record.status in _REFUSED and record.reason:
            self._refusals.append((time.monotonic(), person))
            self.n_refused += 1
        elif record.is_work:
            self._requests.append(EndedRequest(self.n_requests, person, time.monotonic(), record))
            self.n_requests += 1

    def note_event(self, kind: str, text: str) -> None:
        """Something happened to the server."""
        self._events.append(LiveEvent(self.n_events, time.monotonic(), kind, text))
        self.n_events += 1

    def requests(self, since: int) -> Iterator[EndedRequest]:
        """Those from that number on that are still there."""
        return (one for one in self._requests if one.number >= since)

    def events(self, since: int, now_s: float) -> Iterator[LiveEvent]:
        """Those from that number on, of the time of the history."""
        return (one for one in self._events if one.number >= since and now_s - one.at_s <= SECONDS)

    def refusals(self, now_s: float) -> Counter[str]:
        """How often each person was refused in the time of the history."""
        return Counter(person for at_s, person in self._refusals if now_s - at_s <= SECONDS)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
