"""Message object, built from an answer as it is generated: events while it grows, and the object at its end."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any

from ggufd.api.answer.blocks import Event
from ggufd.api.answer.explain import CacheExplainer
from ggufd.api.answer.reader import AnswerReader
from ggufd.api.anthropic.output import ContentBlocks
from ggufd.engine.messages.events import FinishReason, Output

Message = dict[str, Any]


class MessageWriter:
    """Writer of one message. `max_tokens` and `stop` are what the client set; `explainer` tells what else it wants."""

    def __init__(
        self,
        model: str,
        reader: AnswerReader,
        explainer: CacheExplainer,
        *,
        prompt_tokens: int,
        max_tokens: int,
        stop: Collection[str],
    ) -> None:
        self._explainer = explainer
        self._reader = reader
        self._content = ContentBlocks()
        self._prompt_tokens = prompt_tokens
        self._max_tokens = max_tokens
        self._stop = stop
        self._head = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model}

    @property
    def message_id(self) -> str:
        message_id: str = self._head["id"]
        return message_id

    def begin(self) -> list[Event]:
        """The event before anything is there. What came from the cache is not known yet, so nothing is said to."""
        usage = _usage(self._prompt_tokens, 0, 0)
        return [{"type": "message_start", "message": self._object([], {**_NOT_STOPPED, "usage": usage})}]

    def feed(self, output: Output) -> list[Event]:
        """The events for what the engine said."""
        events = [event for delta in self._reader.feed(output) for event in self._content.feed(delta)]
        return events if output.finish is None else [*events, *self._content.close()]

    def end(self) -> list[Event]:
        """The last two events. Raises EngineFailure when there was no end."""
        delta = {"type": "message_delta", "delta": self._stopped(), "usage": self._used(), **self._explainer.of(0)}
        return [delta, {"type": "message_stop"}]

    def finished(self) -> Message:
        """The whole message. Raises EngineFailure when there was no end."""
        return self._object(self._content.blocks, {**self._stopped(), "usage": self._used(), **self._explainer.of(0)})

    def _object(self, content: list[Any], more: dict[str, Any]) -> Message:
        return {**self._head, "content": content, **more}

    def _stopped(self) -> dict[str, Any]:
        """Why it ended, and by which of the client's stop sequences."""
        finish = self._reader.finish
        if finish.reason is not FinishReason.STOP:
            is_full = finish.usage.completion_tokens < self._max_tokens and finish.reason is FinishReason.LENGTH
            return {**_NOT_STOPPED, "stop_reason": "model_context_window_exceeded" if is_full else "max_tokens"}
        if self._reader.has_whole_calls:
            return {**_NOT_STOPPED, "stop_reason": "tool_use"}
        if finish.stop is not None and finish.stop in self._stop:
            return {"stop_reason": "stop_sequence", "stop_sequence": finish.stop}
        return {**_NOT_STOPPED, "stop_reason": "end_turn"}

    def _used(self) -> dict[str, Any]:
        usage = self._reader.finish.usage
        thinking = {"output_tokens_details": {"thinking_tokens": self._reader.reasoning_tokens}}
        return _usage(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) | thinking


_NOT_STOPPED: dict[str, Any] = {"stop_reason": None, "stop_sequence": None}


def _usage(prompt: int, cached: int, completion: int) -> dict[str, Any]:
    """Anthropic counts what came from the cache apart. Nothing is charged for what is put there."""
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": completion,
    }
