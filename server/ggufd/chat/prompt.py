"""Messages to and from the text process: plain frozen data.

Knows no HTTP, no Jinja and no llama_cpp.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ggufd.engine.messages.sampling import ReasoningBudget
from ggufd.llama.params import ModelParams

Message = Mapping[str, Any]
"""One message in OpenAI's shape: `role`, `content` (string, None or list of parts), and what else it carries."""


class ToolMode(enum.Enum):
    """Whether tools may, must or must not be called."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Tool choice of a request; no `names` means all tools."""

    mode: ToolMode = ToolMode.AUTO
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Conversation to be rendered. `tools` are in OpenAI's shape, checked.

    `continue_final_message` None means: continue the last message when it is the assistant's and calls no tool.
    `add_generation_prompt` None means: open an assistant turn, unless the last message is continued.
    `parallel_tool_calls` None means: several where the template tells the model of tools itself, else one.
    `template_kwargs` become variables of the template, as in `chat_template_kwargs` of other servers.
    `markers` are those of the images in the messages, which are parts such as `{"type": "image", "marker": "..."}`.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool | None = None
    documents: tuple[Mapping[str, Any], ...] = ()
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    markers: tuple[str, ...] = ()


class ImagePlace(NamedTuple):
    """Place of an image in a prompt: image number `image` stands before token `position`."""

    position: int
    image: int


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """Format in which an answer is parsed.

    `tool_format` is the name of the format of tool calls, "" when there can be none. Reasoning stands between
    `opening` and `closing`, both "" without reasoning; `opened` is the part of it that the prompt ends with, or "".
    `text_arguments` are the string arguments of each tool, for formats that do not mark them.
    """

    tool_format: str = ""
    opening: str = ""
    closing: str = ""
    opened: str = ""
    text_arguments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """Prompt as text and as tokens, BOS once at most.

    `repairs` names what was changed in the conversation because the template refuses or drops its shape;
    `is_fallback` says that the model has no template and ChatML was used. `form` is the format of the answer, in
    which the special tokens `shown` must be written out. `grammar` is Lark of the whole answer, None when it is free;
    `frame` is the same around content with a grammar of its own, `@body`. `reasoning` holds its tags and how to end
    it, without a limit yet. `parallel_tool_calls` says whether the answer may have several calls. `images` are the
    places of images among the tokens, in order; in the text their markers stand there.
    """

    text: str
    tokens: tuple[int, ...]
    repairs: tuple[str, ...] = ()
    is_fallback: bool = False
    form: AnswerFormat = AnswerFormat()
    shown: tuple[int, ...] = ()
    grammar: str | None = None
    frame: str | None = None
    reasoning: ReasoningBudget | None = None
    parallel_tool_calls: bool = True
    images: tuple[ImagePlace, ...] = ()


def any_arguments(tool: str) -> str:
    """Repair name of a tool whose schema can be enforced in part only."""
    return f"any_arguments:{tool}"


@dataclass(frozen=True, slots=True)
class TextParams:
    """Parameters of the text process.

    `chat_template` replaces the file's template, `tool_format` overrides the detected format of tool calls.
    `budget_message` is written at the end of reasoning that reached its budget. With `spm_infill` the suffix of an
    infill prompt comes first.
    `header_digest` is the `TextInfo.header_digest` of the first load; None accepts any file.
    """

    model: ModelParams
    chat_template: str | None = None
    tool_format: str | None = None
    header_digest: str | None = None
    budget_message: str = ""
    spm_infill: bool = False


@dataclass(frozen=True, slots=True)
class TextInfo:
    """Facts of the vocabulary and the template.

    `chat_template` is the text that is rendered, byte for byte; "" when the file has none and ChatML stands in
    (`is_fallback`). `template_error` says why the file's own template cannot be used at all, or is None.
    `template_needs` names the repairs that this template needs, see `chat.rendering.repair`. `tool_format` is the
    format of tool calls; `has_thinking` says that the template has reasoning, `tells_time` that it may write the
    time. `header_digest` tells this model file from others.
    """

    chat_template: str
    is_fallback: bool
    template_error: str | None
    template_needs: tuple[str, ...]
    bos_token: int | None
    eos_token: int | None
    bos_piece: str
    eos_piece: str
    n_vocab: int
    adds_bos: bool
    has_infill: bool
    tool_format: str = ""
    has_thinking: bool = False
    tells_time: bool = False
    header_digest: str = ""
