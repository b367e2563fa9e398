"""What one step has to say, in order, until it is taken."""

from __future__ import annotations

import dataclasses

from ggufd.engine.messages.events import Finish, Output, Progress
from ggufd.engine.messages.reports import Event
from ggufd.engine.sequence.sequence import SequenceState
from ggufd.engine.step.token_step import StepOutput


class EventBuffer:
    """Events on their way out. An output of a sequence joins one that was said just before: one a step."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def __bool__(self) -> bool:
        return bool(self._events)

    def take(self) -> list[Event]:
        """All of it; nothing is left."""
        events, self._events = self._events, []
        return events

    def put(self, *events: Event) -> None:
        self._events += events

    def put_text(self, sequence: SequenceState, said: StepOutput, finish: Finish | None = None) -> None:
        """What a sequence said; the tokens of a guess that came true go together."""
        output = _output(sequence, said, finish)
        last = self._events[-1] if self._events else None
        if isinstance(last, Output) and (last.request_id, last.index) == (output.request_id, output.index):
            self._events[-1] = _joined(last, output)
        else:
            self._events.append(output)

    def put_progress(self, sequence: SequenceState, now_s: float) -> None:
        """How far its prefill is, if that is wanted."""
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


def _output(sequence: SequenceState, said: StepOutput, finish: Finish | None) -> Output:
    tokens = tuple([item.token for item in said.items])
    logprobs = () if sequence.logprobs is None else tuple([item.logprob for item in said.items if item.logprob])
    parts = tuple(said.parts) if len(said.parts) > 1 else ()
    return Output(sequence.request.request_id, sequence.index, said.text, tokens, logprobs, finish, parts)


def _joined(first: Output, second: Output) -> Output:
    return dataclasses.replace(
        second,
        text=first.text + second.text,
        tokens=first.tokens + second.tokens,
        logprobs=first.logprobs + second.logprobs,
        parts=tuple((len(text), n_tokens) for output in (first, second) for text, n_tokens in output.pieces()),
    )
