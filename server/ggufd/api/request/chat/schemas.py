"""Request bodies of the two OpenAI routes: types and ranges. What a field does is told where it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict, WithJsonSchema

from ggufd.api.request.chat.messages import read_messages
from ggufd.api.request.chat.tools import read_tool_choice, read_tools
from ggufd.api.request.requests import MAX_LOGPROBS, GenerationFields
from ggufd.api.request.sampling import Bool, Int
from ggufd.chat.prompt import ToolChoice

Prompt = str | tuple[int, ...]


def read_prompts(value: Any) -> tuple[Prompt, ...]:
    """One prompt or several, each a string or token ids. `[1, 2]` is one prompt of two tokens."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise ValueError("expected a string, an array of strings, of token ids, or of arrays of token ids")
    if not value:
        raise ValueError("the prompt is empty. Expected at least one token")
    if all(_is_token(item) for item in value):
        return (tuple(value),)
    return tuple(_read_prompt(position, item) for position, item in enumerate(value))


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_prompt(position: int, value: Any) -> Prompt:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(_is_token(item) for item in value):
        return tuple(value)
    raise ValueError(f"item {position} must be a string or a non-empty array of token ids")


def read_logprobs(value: Any) -> Any:
    """`false` is the same as unset; some clients send `true` where OpenAI counts."""
    return None if value is False else 1 if value is True else value


Prompts = Annotated[
    Any,
    BeforeValidator(read_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
                {"type": "array", "items": {"type": "integer"}},
                {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
            ]
        }
    ),
]
TopCount = Annotated[Int, Field(ge=0, le=MAX_LOGPROBS)]
Messages = Annotated[
    Any,
    BeforeValidator(read_messages),
    WithJsonSchema(
        {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"role": {"type": "string"}, "content": {"type": "string"}},
                "required": ["role"],
            },
        }
    ),
]


_TOOL = {
    "type": "object",
    "properties": {"type": {"type": "string"}, "function": {"type": "object"}},
    "required": ["function"],
}
Tools = Annotated[Any, BeforeValidator(read_tools), WithJsonSchema({"type": "array", "items": _TOOL})]
Choice = Annotated[
    Any,
    BeforeValidator(read_tool_choice),
    WithJsonSchema({"anyOf": [{"enum": ["none", "auto", "required"]}, {"type": "object"}]}),
]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class CompletionRequest(GenerationFields):
    """`POST /v1/completions`. `logprobs` is the number of alternatives besides each token."""

    prompt: Prompts
    logprobs: Annotated[TopCount | None, BeforeValidator(read_logprobs)] = None
    best_of: Annotated[Int, Field(ge=1)] | None = None
    echo: Bool = False
    suffix: Annotated[str, Strict()] | None = None
    add_bos_token: Bool = True


class ChatRequest(GenerationFields):
    """`POST /v1/chat/completions`, and what the other chat routes become. `messages` and `tools` are plain, checked.

    `reasoning_budget` is in tokens, 0 for an answer without thinking, -1 for no limit. `verbose` shows the rendered
    prompt beside the answer.
    """

    messages: Messages
    logprobs: Bool | None = None
    top_logprobs: TopCount | None = None
    template_kwargs: Annotated[Mapping[str, Any], WithJsonSchema({"type": "object"})] = Field(default_factory=dict)
    add_generation_prompt: Bool | None = None
    continue_final_message: Bool | None = None
    tools: Tools = ()
    tool_choice: Choice | None = None
    parallel_tool_calls: Bool | None = None
    reasoning_format: Literal["auto", "deepseek", "none"] | None = None
    reasoning_effort: Effort | None = None
    reasoning_budget: Annotated[Int, Field(ge=-1)] | None = None
    verbose: Bool = False

    @property
    def choice(self) -> ToolChoice:
        """Whether tools may be called; without a word they may."""
        return ToolChoice() if self.tool_choice is None else self.tool_choice
