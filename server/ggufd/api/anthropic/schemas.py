"""Request bodies of Anthropic's routes: types and ranges of its own fields; samplers are the chat request's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from ggufd.api.request.fields import Aliases
from ggufd.api.request.sampling import Bool, Int
from ggufd.api.request.validation import Body
from ggufd.errors import Unsupported

_OTHERS = {
    "mcp_servers": "This server calls no tools itself",
    "container": "This server runs no code",
    "compaction": "Nothing is compacted here",
}
"""Fields that would change the answer, and why not."""


class ThreadUnsupported(Unsupported):
    """Error for server-side conversations, which are not supported: the client's tool runner goes on without one."""

    code = "thread_unsupported_request"


def refuse_others(body: Mapping[str, Any]) -> None:
    """Raises Unsupported for what this server has not."""
    if body.get("thread") is not None:
        raise ThreadUnsupported("'thread': No conversation is held here. Send all messages.", param="thread")
    for name, why in _OTHERS.items():
        if body.get(name):
            raise Unsupported(f"'{name}': {why}. Leave it out.", param=name)


_Array = Annotated[list[Any], WithJsonSchema({"type": "array", "items": {"type": "object"}})]
_Object = Annotated[Mapping[str, Any], WithJsonSchema({"type": "object"})]
_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}


class PromptRequest(Body):
    """Fields of the prompt: `POST /v1/messages/count_tokens`."""

    messages: _Array
    system: Annotated[Any, WithJsonSchema(_TEXTS)] = None
    tools: _Array = Field(default_factory=list)
    tool_choice: _Object = Field(default_factory=dict)
    thinking: _Object = Field(default_factory=dict)
    output_config: _Object = Field(default_factory=dict)
    output_format: _Object | None = None


class MessagesRequest(PromptRequest):
    """`POST /v1/messages`."""

    max_tokens: Annotated[Int, Field(ge=1)]
    stream: Bool = False


MESSAGES: Aliases = {name: (name,) for name in MessagesRequest.model_fields}
"""Every field has its own name only; null is unset."""
