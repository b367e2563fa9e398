"""Request body of `POST /v1/responses`: types and ranges of its own fields; samplers are the chat request's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, WithJsonSchema

from ggufd.api.openai.responses.items import Item, read_input
from ggufd.api.request.fields import Aliases
from ggufd.api.request.requests import MAX_LOGPROBS
from ggufd.api.request.sampling import Bool, Int
from ggufd.api.request.validation import Body
from ggufd.errors import InvalidRequest, Unsupported

Text = Annotated[str, Strict()]

INCLUDABLE = (
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)
"""What OpenAI knows. Only the first one can be in an answer of ours; clients ask for all they can read."""

_OTHERS = {
    "background": "Answers are made while the client waits",
    "conversation": "There are no stored conversations, use 'previous_response_id'",
    "prompt": "There are no stored prompts, send 'input' and 'instructions'",
    "moderation": "Nothing is moderated here",
    "context_management": "Nothing is compacted here, see 'truncation'",
}
"""Fields that would change the answer, and what there is instead."""


def refuse_others(body: Mapping[str, Any]) -> None:
    """Raises Unsupported for what this server has not."""
    for name, why in _OTHERS.items():
        if body.get(name):
            raise Unsupported(f"'{name}': {why}. Leave it out.", param=name)


def _read_metadata(value: Any) -> Any:
    if not isinstance(value, Mapping) or len(value) > 16:
        raise ValueError("expected an object of at most 16 texts")
    for key, text in value.items():
        if len(key) > 64 or not isinstance(text, str) or len(text) > 512:
            raise ValueError("expected names of at most 64 characters, and texts of at most 512")
    return value


def _read_include(value: Any) -> Any:
    if not isinstance(value, list):
        raise ValueError("expected an array")
    for index, item in enumerate(value):
        if item not in INCLUDABLE:
            path = f"include[{index}]"
            raise InvalidRequest(f"'{path}': expected one of {', '.join(INCLUDABLE)}.", param=path)
    return tuple(value)


Input = Annotated[
    Any,
    BeforeValidator(lambda value: tuple(read_input(value))),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}),
]
_Object = Annotated[Mapping[str, Any], WithJsonSchema({"type": "object"})]


class ResponseRequest(Body):
    """`input` is kept as items, checked. What is only told back is not looked into."""

    input: Input = ()
    instructions: Text | None = None
    previous_response_id: Text | None = None
    store: Bool = True
    stream: Bool = False
    max_output_tokens: Annotated[Int, Field(ge=1)] | None = None
    tools: Annotated[list[Any], WithJsonSchema({"type": "array", "items": {"type": "object"}})] = Field(
        default_factory=list
    )
    tool_choice: Annotated[Any, WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]})] = "auto"
    parallel_tool_calls: Bool | None = None
    text: _Object = Field(default_factory=dict)
    reasoning: _Object = Field(default_factory=dict)
    truncation: Literal["auto", "disabled"] = "disabled"
    top_logprobs: Annotated[Int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    include: Annotated[
        Any, BeforeValidator(_read_include), WithJsonSchema({"type": "array", "items": {"type": "string"}})
    ] = ()
    metadata: Annotated[Any, BeforeValidator(_read_metadata), WithJsonSchema({"type": "object"})] = Field(
        default_factory=dict
    )
    max_tool_calls: Annotated[Int, Field(ge=1)] | None = None
    user: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None

    @property
    def items(self) -> tuple[Item, ...]:
        """The input as items."""
        items: tuple[Item, ...] = self.input
        return items

    @property
    def has_logprobs(self) -> bool:
        return bool(self.top_logprobs) or "message.output_text.logprobs" in self.include


RESPONSES: Aliases = {
    **{name: (name,) for name in ResponseRequest.model_fields},
    "max_output_tokens": ("max_output_tokens", "max_completion_tokens", "max_tokens"),
}
"""Every field has its own name only, but for the limit, which many know from the other APIs; null is unset."""
