"""Event buffer of one step."""

from __future__ import annotations

import dataclasses

from ggufd.engine.messages.events import Finish, Output, Progress
from ggufd.engine.messages.reports import Event
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.step.token_step import StepOutput


class EventBuffer:
    """Events in order, until they are taken. Outputs of a sequence that follow each other are joined: one a step."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def __bool__(self) -> bool:
        return bool(self._events)

    def take(self) -> list[Event]:
        """All events; the buffer is empty then."""
        events, self._events = self._events, []
        return events

    def put(self, *events: Event) -> None:
        self._events += events

    def drop(self, request_id: int) -> None:
        """Drop the events of a request that nobody waits for any more."""
        self._events = [event for event in self._events if getattr(event, "request_id", None) != request_id]

    def put_text(self, sequence: SequenceState, output: StepOutput, finish: Finish | None = None) -> None:
        """Add a step output; the accepted tokens of a draft go together."""
        event = _event(sequence, output, finish)
        last = self._events[-1] if self._events else None
        if isinstance(last, Output) and (last.request_id, last.index) == (event.request_id, event.index):
            self._events[-1] = _joined(last, event)
        else:
            self._events.append(event)

    def put_progress(self, sequence: SequenceState, now_s: float) -> None:
        """Add the progress of a prefill, if the request asks for it."""
        if sequence.request.return_progress:
            self.put(
                Progress(
                    request_id=sequence.request.request_id,
                    index=sequence.index,
                    total=sequence.n_prompt,
                    cached=sequence.n_cached,
                    processed=sequence.n_past,
                    time_s=now_s - sequence.admit_s,
                )
            )


def _event(sequence: SequenceState, output: StepOutput, finish: Finish | None) -> Output:
    tokens = tuple([item.token for item in output.items])
    logprobs = () if sequence.logprobs is None else tuple([item.logprob for item in output.items if item.logprob])
    parts = tuple(output.parts) if len(output.parts) > 1 else ()
    return Output(sequence.request.request_id, sequence.index, output.text, tokens, logprobs, finish, parts)


def _joined(first: Output, second: Output) -> Output:
    return dataclasses.replace(
        second,
        text=first.text + second.text,
        tokens=first.tokens + second.tokens,
        logprobs=first.logprobs + second.logprobs,
        parts=tuple((len(text), n_tokens) for output in (first, second) for text, n_tokens in output.pieces()),
    )
