"""Timeouts of requests, in the queue and while they run, and notices about when a waiting one has its turn."""

from __future__ import annotations

from collections.abc import Callable

from ggufd.engine.messages.events import Failed, FinishReason
from ggufd.engine.queueing.announcer import Announcer
from ggufd.engine.queueing.waiting_list import waited_too_long
from ggufd.engine.step.lifecycle import Lifecycle
from ggufd.engine.step.token_step import StepOutput
from ggufd.errors import QueueTimeout


class Deadlines:
    """Enforces time limits on the sequences of `lifecycle`; times come from `clock`, in seconds."""

    def __init__(self, lifecycle: Lifecycle, announcer: Announcer, clock: Callable[[], float]) -> None:
        self._lifecycle = lifecycle
        self._announcer = announcer
        self._clock = clock

    def expire(self) -> None:
        """Fail requests that waited longer than the queue allows; end those whose own timeout has passed."""
        lifecycle, now_s = self._lifecycle, self._clock()
        for sequence in lifecycle.queue.expired(now_s):
            error = waited_too_long(sequence, now_s, self._announcer.longest_wait_s(lifecycle.running))
            lifecycle.fail_request(sequence.request.request_id, error)
        for request_id in {one.request.request_id for one in lifecycle.all() if one.is_overdue(now_s)}:
            self._time_out(request_id)

    def _time_out(self, request_id: int) -> None:
        """End a request at its own timeout: with what was generated, or failed where nothing was.

        A deterministic one fails: how far it came by then depends on who else was served.
        """
        sequences = self._lifecycle.of_request(request_id)
        request = sequences[0].request
        if len(sequences) == request.n and not any(sequence.n_generated for sequence in sequences):
            message = f"the timeout of {request.timeout_s:g} s that the request asks for passed before its first token"
            self._lifecycle.fail_request(request_id, QueueTimeout(message, param="timeout"))
            return
        if request.is_deterministic:
            message = (
                f"the timeout of {request.timeout_s:g} s passed before the end of the answer, and a deterministic "
                "one is whole or none; give it more time, or fewer tokens"
            )
            self._lifecycle.fail_request(request_id, QueueTimeout(message, param="timeout"))
            return
        for sequence in sequences:
            self._lifecycle.finish(sequence, StepOutput(), FinishReason.LENGTH)

    def announce(self) -> None:
        """Report their place to waiting requests that asked for it; end those that cannot start in time."""
        for notice in self._announcer.notices(self._lifecycle.running, self._clock()):
            if isinstance(notice, Failed):
                self._lifecycle.abort(notice.request_id)
            self._lifecycle.events.put(notice)
