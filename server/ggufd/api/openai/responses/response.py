"""Response object, built from an answer as it is generated: events while it grows, and the object at its end.

Knows no HTTP: `stream` sends what comes out here.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from ggufd.api.answer.blocks import Event
from ggufd.api.answer.reader import AnswerReader
from ggufd.api.answer.usage import images_json
from ggufd.api.openai.responses.output import ResponseItems
from ggufd.api.openai.responses.schemas import ResponseRequest
from ggufd.engine.messages import events
from ggufd.engine.messages.events import FinishReason, Usage
from ggufd.engine.messages.sampling import SamplingParams
from ggufd.errors import GgufdError

ResponseObject = dict[str, Any]


def new_response_id() -> str:
    """A new id such as `resp_0123...`."""
    return f"resp_{uuid.uuid4().hex}"


def settings_json(fields: ResponseRequest, sampling: SamplingParams, parallel_tool_calls: bool) -> dict[str, Any]:
    """Settings of the request, with the defaults of those that it leaves out."""
    asked_for = fields.parallel_tool_calls
    told_back = {"type": "text"} if fields.text.get("format") is None else fields.text["format"]
    return {
        "instructions": fields.instructions,
        "max_output_tokens": fields.max_output_tokens,
        "max_tool_calls": fields.max_tool_calls,
        "metadata": fields.metadata,
        "parallel_tool_calls": parallel_tool_calls if asked_for is None else asked_for,
        "previous_response_id": fields.previous_response_id,
        "prompt_cache_key": fields.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None, **fields.reasoning},
        "safety_identifier": fields.safety_identifier,
        "service_tier": "default",
        "store": fields.store,
        "temperature": sampling.temperature,
        "text": {"verbosity": "medium", **fields.text, "format": told_back},
        "tool_choice": fields.tool_choice,
        "tools": [{"strict": False, "description": None, **tool} for tool in fields.tools],
        "top_logprobs": fields.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": fields.truncation,
        "user": fields.user,
    }


def usage_json(usage: Usage, reasoning_tokens: int, image_tokens: int) -> dict[str, Any]:
    """Usage in this API's words. Writing to the cache costs nothing."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": 0,
            **images_json(image_tokens),
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


class ResponseWriter:
    """Writer of one response. `head` is what every state of the object has; `image_tokens` of the prompt are images."""

    def __init__(self, head: Mapping[str, Any], reader: AnswerReader, *, image_tokens: int = 0) -> None:
        self._image_tokens = image_tokens
        self._head = head
        self._reader = reader
        self._output = ResponseItems()

    @property
    def response_id(self) -> str:
        response_id: str = self._head["id"]
        return response_id

    def feed(self, output: events.Output) -> list[Event]:
        """The events for what the engine said."""
        logprobs = self._reader.logprobs(output)
        events: list[Event] = []
        for delta in self._reader.feed(output):
            events += self._output.feed(delta, logprobs)
            logprobs = []
        if output.finish is not None:
            events += self._output.finish(is_cut=self._is_cut)
        return events

    @property
    def _is_cut(self) -> bool:
        return self._reader.finish.reason is not FinishReason.STOP

    def started(self) -> ResponseObject:
        """The object before there is any output."""
        return self._object("in_progress")

    def finished(self) -> ResponseObject:
        """The object at the end. Raises EngineFailure when there was none."""
        usage = usage_json(self._reader.finish.usage, self._reader.reasoning_tokens, self._image_tokens)
        if self._is_cut:
            details = {"reason": "max_output_tokens"}
            return self._object("incomplete", output=self._output.blocks, usage=usage, incomplete_details=details)
        return self._object("completed", output=self._output.blocks, usage=usage, completed_at=int(time.time()))

    def failed(self, error: GgufdError) -> ResponseObject:
        """The object after an error, with what there was before it."""
        self._output.close(is_cut=True)
        shown = {"code": "server_error", "message": error.message}
        return self._object("failed", output=self._output.blocks, error=shown)

    def _object(self, status: str, **more: Any) -> ResponseObject:
        nothing = {"completed_at": None, "error": None, "incomplete_details": None, "usage": None}
        return {**self._head, "status": status, **nothing, "output": [], **more}
