"""Chat renderer: OpenAI's messages to a prompt, through a model's chat template and the repairs that it needs.

Templates differ in what they take: some know no system role, some want strict turns, some silently drop what they do
not expect. What this one needs is found once, by rendering small probes at load; a normal request then costs one
rendering. A conversation that is still refused, or of which a text is missing in the result, climbs the ladder in
`repair`. Knows no tokens.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ggufd.chat.content import text_of
from ggufd.chat.images import IMAGE, NO_IMAGES, ImageMarkers
from ggufd.chat.prompt import ChatPrompt, Message
from ggufd.chat.rendering.repair import LADDER, PLACEHOLDER, Messages, apply, attempts
from ggufd.chat.rendering.template import Template, TemplateError, TemplateOverflowError
from ggufd.errors import InvalidRequest

CONTINUE_AFTER_PROMPT = "continue_after_generation_prompt"
PLAIN_TOOLS = "plain_tools"
"""Schemas of tools are told in fewer words than they have, and with those that a template does not do without."""

_MARK = "ggufdContinuesHere0x5f3759df"
"""Stands for the message that is continued, so that its place is found whatever the template does to texts."""

_EMPTY_THINKING = re.compile(r"<think>\s*</think>\s*\Z")
_TOOL_CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "probe_function", "arguments": '{"probe": 7381}'},
}
_SECOND_CALL = {
    "id": "call_of_any_length",
    "type": "function",
    "function": {"name": "second_function", "arguments": '{"probe": 9257}'},
}

_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "probe_function",
        "description": "Looks.",
        "parameters": {
            "type": "object",
            "properties": {"probe": {"type": "integer", "description": "How deep."}},
            "required": ["probe"],
        },
    },
}


@dataclass(frozen=True, slots=True)
class _Probe:
    """Probe: roles to try, and the repairs one of which may be needed, least invasive first."""

    roles: str
    candidates: tuple[str, ...]


_ROLE_OF = {
    "X": "narrator",
    "S": "system",
    "D": "developer",
    "U": "user",
    "A": "assistant",
    "C": "assistant",
    "T": "tool",
    "L": "assistant",
    "R": "tool",
    "B": "assistant",
    "P": "assistant",
}
_PROBES = (
    _Probe("SU", ("fold_system",)),
    _Probe("DU", ("developer_to_system",)),
    _Probe("UU", ("merge_same_role",)),
    _Probe("UAAU", ("merge_same_role",)),
    _Probe("SSU", ("merge_system",)),
    _Probe("SUASU", ("system_to_user",)),
    _Probe("AU", ("user_first",)),
    _Probe("SAU", ("user_first",)),
    _Probe("S", ("user_first",)),
    _Probe("XU", ("unknown_to_user",)),
    _Probe("UCT", ("tool_to_user",)),
    _Probe("ULR", ("short_call_ids",)),
)
_CALL_PROBES = (_Probe("UPTR", ("split_calls",)), _Probe("UBT", ("content_before_calls",)))
"""For templates that write calls: several at once, and with something said beside one."""


class ChatRenderer:
    """Renderer with one template. `variables` are the template's own, as `bos_token`.

    `needs` names the repairs that the probes found; `takes_parts` says that contents must be lists of parts;
    `knows_tools` that tools are written into the prompt, `carries_calls` that earlier calls are. `image_placeholder` is
    what the template writes for an image, "" where it knows none.
    """

    def __init__(self, template: Template, variables: Mapping[str, str]) -> None:
        self._template = template
        self._variables = dict(variables)
        self._without_tools: dict[str, Any] = {"tools": None}
        self.takes_parts = False
        self.takes_arguments_as_text = False
        self._leaves_content_out = False
        self.needs: frozenset[str] = frozenset()
        self._probe(_PROBES)
        self.image_placeholder = self._find_image_placeholder()
        self.knows_tools = self._writes_tools()
        self.carries_calls = self._writes_calls()
        if self.carries_calls:
            self._find_content_beside_calls()
            self._probe(_CALL_PROBES)

    @property
    def source(self) -> str:
        """The template's text."""
        return self._template.source

    @property
    def tells_time(self) -> bool:
        """Whether the prompt may contain the current time."""
        return "strftime_now" in self.source

    def render(self, chat: ChatPrompt) -> tuple[str, tuple[str, ...]]:
        """Prompt, and the names of the repairs.

        Raises InvalidRequest with the template's message when it refuses the conversation in every form.
        """
        messages = [_plain(message) for message in chat.messages]
        if not messages:
            raise InvalidRequest("There are no messages; at least one is needed.", param="messages")
        variables, images = self._request_variables(chat), ImageMarkers(chat.markers)
        if _continues(chat, messages[-1]):
            return self._render_continued(messages, variables, images)
        opens = True if chat.add_generation_prompt is None else chat.add_generation_prompt
        return self._render_repaired(messages, variables | {"add_generation_prompt": opens}, images)

    def _render_continued(
        self, messages: Messages, variables: dict[str, Any], images: ImageMarkers
    ) -> tuple[str, tuple[str, ...]]:
        """Prompt up to a placeholder for the last message, then that message's text unchanged."""
        *earlier, last = messages
        marked = [*earlier, {**last, "content": _MARK}]
        with contextlib.suppress(InvalidRequest):
            text, repairs = self._render_repaired(marked, variables | {"add_generation_prompt": False}, images)
            if _MARK in text:
                return _joined(text[: text.rindex(_MARK)], last["content"]), repairs
        # A template that does not write a last answer still opens one.
        earlier = earlier or [{"role": "user", "content": PLACEHOLDER}]
        text, repairs = self._render_repaired(earlier, variables | {"add_generation_prompt": True}, images)
        return _joined(text, last["content"]), (*repairs, CONTINUE_AFTER_PROMPT)

    def _render_repaired(
        self, messages: Messages, variables: dict[str, Any], images: ImageMarkers
    ) -> tuple[str, tuple[str, ...]]:
        """Text and repairs of the first attempt that keeps every message's text, else of the first that succeeds."""
        refusal: TemplateError | None = None
        lossy: tuple[str, tuple[str, ...]] | None = None
        for repaired, repairs in attempts(messages, self.needs):
            try:
                text = self._render(repaired, variables, images)
            except TemplateOverflowError as failure:
                raise InvalidRequest(str(failure), param="messages") from None
            except TemplateError as failure:
                refusal = refusal or failure
                continue
            if _has_all(text, repaired, images):
                return text, repairs
            lossy = lossy or (text, repairs)
        if lossy is not None:
            return lossy
        plain = _with_plain_tools(variables)
        if plain != variables:
            text, repairs = self._render_repaired(messages, plain, images)
            return text, (*repairs, PLAIN_TOOLS)
        raise InvalidRequest(
            f"The model's chat template refuses this conversation: {refusal}", param="messages"
        ) from None

    def _render(self, messages: Messages, variables: Mapping[str, Any], images: ImageMarkers = NO_IMAGES) -> str:
        """Rendered text with the marker of each image, which is a text to templates that know no images."""
        if images and self.image_placeholder:
            with contextlib.suppress(TemplateError):
                written = self._write(messages, variables, images)
                text = images.without_placeholders(written, self.image_placeholder)
                if text is not None and _has_all(text, messages, images):
                    return text
        return self._write(messages, variables, NO_IMAGES)

    def _write(self, messages: Messages, variables: Mapping[str, Any], images: ImageMarkers) -> str:
        shaped = [self._shaped(message, images) for message in messages]
        return self._template.render({**variables, "messages": shaped})

    def _shaped(self, message: dict[str, Any], images: ImageMarkers) -> dict[str, Any]:
        """Message with content and arguments in the form that this template reads."""
        if images.indexes(message["content"]):
            message = {**message, "content": images.as_parts(message["content"])}
        elif self.takes_parts:
            message = {**message, "content": [{"type": "text", "text": message["content"]}]}
        if self._leaves_content_out and message.get("tool_calls") and not message["content"]:
            message = {**message, "content": None}
        if message.get("tool_calls") and not self.takes_arguments_as_text:
            message = {**message, "tool_calls": [_with_mapping(call) for call in message["tool_calls"]]}
        return message

    def _request_variables(self, chat: ChatPrompt) -> dict[str, Any]:
        tools = self._with_tools([_plain_value(tool) for tool in chat.tools]) if chat.tools else self._without_tools
        documents = [_plain_value(document) for document in chat.documents] or None
        return {**self._variables, "documents": documents, **_switches(chat.template_kwargs), **tools}

    def _with_tools(self, tools: list[Any]) -> dict[str, Any]:
        """Template variables for tools; older templates take them as a text."""
        if "functions" not in self._without_tools:
            return {"tools": tools}
        functions = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
        return {**self._without_tools, "tools": tools, "functions": functions}

    # --- what this template needs -------------------------------------------------------------------------------

    def _probe(self, probes: Sequence[_Probe]) -> None:
        """Find the repairs; a template that refuses everything does so at each request."""
        if not self._find_form():
            return
        for probe in probes:
            if not self._takes(probe.roles, self.needs):
                self._learn(probe)

    def _find_form(self) -> bool:
        for self._without_tools, self.takes_parts in itertools.product(_no_tools(), (False, True)):
            if self._takes("U", self.needs):
                return True
        self._without_tools, self.takes_parts = {"tools": None}, False
        return False

    def _find_image_placeholder(self) -> str:
        """What the template writes between two texts for an image, and does not write without one; "" is nothing."""
        between = [self._written_between(parts) for parts in ([], [{"type": IMAGE}])]
        return "" if between[0] is None or between[0].strip() else (between[1] or "").strip()

    def _written_between(self, parts: Sequence[Mapping[str, str]]) -> str | None:
        """What stands in the prompt between two texts with these parts between them; None where it takes none."""
        before, behind = ({"type": "text", "text": f"probe{i}text"} for i in range(2))
        variables = {**self._variables, "documents": None, **self._without_tools, "add_generation_prompt": True}
        try:
            text = self._template.render(
                {**variables, "messages": [{"role": "user", "content": [before, *parts, behind]}]}
            )
        except TemplateError:
            return None
        start, end = text.find(before["text"]), text.find(behind["text"])
        return text[start + len(before["text"]) : end] if 0 <= start < end else None

    def _writes_tools(self) -> bool:
        """Whether the template writes tools into the prompt."""
        messages, _ = apply(list(_probe_messages("U")), self.needs)
        variables = {**self._variables, "documents": None, **self._with_tools([_TOOL]), "add_generation_prompt": True}
        try:
            return str(_TOOL["function"]["name"]) in self._render(messages, variables)
        except TemplateError:
            return False

    def _writes_calls(self) -> bool:
        """Whether the template writes calls of earlier answers, arguments included."""
        return "tool_to_user" not in self.needs and "7381" in self._call_probe()

    def _find_content_beside_calls(self) -> None:
        """Find whether calls need a message without any content, even an empty one."""
        written = self._call_probe()
        self._leaves_content_out = True
        bare = self._call_probe()
        self._leaves_content_out = "7381" in bare and "None" not in bare and len(bare) < len(written)

    def _call_probe(self) -> str:
        """Rendered conversation with a call; "" when it is refused."""
        messages, _ = apply(list(_probe_messages("UCT")), self.needs)
        variables = {**self._variables, "documents": None, **self._with_tools([_TOOL]), "add_generation_prompt": True}
        try:
            return self._render(messages, variables)
        except TemplateError:
            return ""

    def _learn(self, probe: _Probe) -> None:
        if "C" in probe.roles:
            self.takes_arguments_as_text = self._takes_text(probe)
            if self.takes_arguments_as_text:
                return
        for candidate in probe.candidates:
            needs = self.needs | {candidate}
            if self._takes(probe.roles, needs):
                self.needs = needs
                return

    def _takes_text(self, probe: _Probe) -> bool:
        self.takes_arguments_as_text = True
        return self._takes(probe.roles, self.needs)

    def _takes(self, roles: str, needs: frozenset[str]) -> bool:
        """Whether a conversation of these roles is rendered with all its texts."""
        messages, _ = apply(list(_probe_messages(roles)), needs)
        variables = {**self._variables, "documents": None, **self._without_tools, "add_generation_prompt": True}
        try:
            text = self._render(messages, variables)
        except TemplateError:
            return False
        return _has_all(text, messages) and all(part in text for part in _expected_of_calls(roles))


def _no_tools() -> tuple[dict[str, Any], ...]:
    """Variables for "no tools": as in transformers, an empty list, and for older templates."""
    now = datetime.now(UTC).strftime("%b %d %Y %H:%M:%S GMT")
    return {"tools": None}, {"tools": []}, {"tools": [], "functions": "", "datetime": now}


def needed(renderer: ChatRenderer) -> tuple[str, ...]:
    """Repairs that the template needs, least invasive first."""
    return tuple(name for name in LADDER if name in renderer.needs)


def _switches(template_kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Template variables; `enable_thinking` is `thinking` in DeepSeek's and other templates.

    It is true where nobody says otherwise, as llama-server has it: there are templates that take an undefined one for
    false, and then a model that was trained to think is given empty thoughts.
    """
    if "enable_thinking" in template_kwargs:
        return {"thinking": template_kwargs["enable_thinking"], **template_kwargs}
    return template_kwargs if "thinking" in template_kwargs else {"enable_thinking": True, **template_kwargs}


def begun_answer(chat: ChatPrompt) -> str:
    """Text of the last message when it is continued; the prompt ends with it."""
    last = _plain(chat.messages[-1])
    return str(last["content"]) if _continues(chat, last) else ""


def _probe_messages(roles: str) -> Iterator[dict[str, Any]]:
    for i, letter in enumerate(roles):
        message: dict[str, Any] = {"role": _ROLE_OF[letter], "content": f"probe{i}text"}
        call = _TOOL_CALL if letter in "CTB" else {**_TOOL_CALL, "id": "call_of_any_length"}
        if letter in "CLBP":
            message["tool_calls"] = [_TOOL_CALL, _SECOND_CALL] if letter == "P" else [call]
        if letter in "CLP":
            message["content"] = ""
        if letter in "TR":
            message |= {"tool_call_id": call["id"], "name": "probe_function"}
        yield message


def _expected_of_calls(roles: str) -> tuple[str, ...]:
    """Arguments that must be in the prompt where there are several calls, or content beside a call."""
    return ("7381", "9257") if "P" in roles else ("7381",) if "B" in roles else ()


def _with_plain_tools(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Template variables with simplified tool schemas, for templates that expect certain keys."""
    tools = [
        {**tool, "function": {**tool["function"], "parameters": _plain_schema(tool["function"].get("parameters"))}}
        for tool in variables.get("tools") or ()
    ]
    return {**variables, "tools": tools} if tools else dict(variables)


def _plain_schema(schema: Any) -> dict[str, Any]:
    """One type, a description, properties and items where these belong."""
    plain = dict(schema) if isinstance(schema, dict) else {}
    kinds = plain.get("type", "object" if "properties" in plain else "string")
    kind = next((one for one in kinds if one != "null"), "string") if isinstance(kinds, list) else kinds
    plain |= {"type": kind, "description": plain.get("description", "")}
    if kind == "object":
        properties = plain.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        plain["properties"] = {name: _plain_schema(value) for name, value in properties.items()}
        plain["additionalProperties"] = _plain_schema(plain.get("additionalProperties"))
    if kind == "array":
        plain["items"] = _plain_schema(plain.get("items"))
    return plain


def _has_all(text: str, messages: Messages, images: ImageMarkers = NO_IMAGES) -> bool:
    """Whether each message's text is in the prompt, raw or as JSON, and each image; reasoning may be left out."""
    contents = [m["content"].rpartition("</think>")[2] for m in messages]
    return all(_has(text, piece.strip()) for content in contents for piece in images.split(content))


def _has(text: str, content: str) -> bool:
    return content in text or json.dumps(content, ensure_ascii=False)[1:-1] in text


def _joined(before: str, content: str) -> str:
    """Opened turn and its begun text; one that begins with reasoning replaces an empty reasoning block."""
    if content.lstrip().startswith("<think>"):
        before = _EMPTY_THINKING.sub("", before)
    return before + content


def _continues(chat: ChatPrompt, last: Mapping[str, Any]) -> bool:
    if chat.continue_final_message and chat.add_generation_prompt:
        raise InvalidRequest(
            "continue_final_message and add_generation_prompt exclude each other; set one of them.",
            param="continue_final_message",
        )
    if chat.continue_final_message is not None:
        return chat.continue_final_message
    is_begun = last["role"] == "assistant" and not last.get("tool_calls")
    return is_begun and not chat.add_generation_prompt


def _plain(message: Message) -> dict[str, Any]:
    """Message with a string as content, and without null values."""
    plain = {name: _plain_value(value) for name, value in message.items() if value is not None}
    if not isinstance(plain.get("role"), str):
        raise InvalidRequest("Every message needs a role, as 'user' or 'assistant'.", param="messages")
    plain["content"] = text_of(plain.get("content", ""))
    return _with_reasoning(plain)


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Message with its reasoning under the names that templates use."""
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if not reasoning:
        return message
    # gpt-oss's template refuses both reasoning and content beside calls.
    more = {} if message["content"] else {"thinking": reasoning}
    return {**message, "reasoning_content": reasoning, **more}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_value(item) for item in value]
    return value


def _with_mapping(call: Any) -> Any:
    """Call with arguments as a mapping: OpenAI sends JSON text, most templates write the JSON themselves."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}}
