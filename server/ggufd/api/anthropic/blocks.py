"""Conversion of Anthropic messages and their content blocks to chat messages.

A tool's result is a message of its own in a chat, and a block of the user's message here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ggufd.api.request.origins import Origins
from ggufd.api.request.validation import invalid_field
from ggufd.errors import Unsupported

Part = dict[str, Any]
Placed = tuple[str, Mapping[str, Any]]
"""A block with its path in the request."""

PlacedPart = tuple[str, Part]
"""A part of a chat message, with the path of the block that it comes from."""

_ROLES = ("user", "assistant", "system")
_TEXTS = ("text", "image", "document")
_USERS = (*_TEXTS, "tool_result")
_ASSISTANTS = ("text", "thinking", "redacted_thinking", "tool_use")


class ChatMessages:
    """Builder of chat messages from Anthropic's, in `messages`; `origins` maps each to the field that it came from."""

    def __init__(self, origins: Origins) -> None:
        self.messages: list[dict[str, Any]] = []
        self._origins = origins

    def add_system(self, system: Any) -> None:
        """Add what stands in `system`: a text or text blocks."""
        if system not in (None, "", []):
            self._append_parts({"role": "system"}, _read_content(system, "system"), "system")

    def add_all(self, messages: Sequence[Any]) -> None:
        """Add all messages. Raises InvalidRequest that names the place."""
        for index, message in enumerate(messages):
            self._add(message, f"messages[{index}]")

    def _add(self, message: Any, path: str) -> None:
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in _ROLES:
            raise invalid_field(f"{path}.role", f"expected one of {', '.join(_ROLES)}")
        content, path = message.get("content"), f"{path}.content"
        if isinstance(content, str) or role == "system":
            self._append_parts({"role": role}, _read_content(content, path), path)
        elif role == "user":
            self._add_user(_read_blocks(content, path, _USERS), path)
        else:
            self._add_assistant(_read_blocks(content, path, _ASSISTANTS), path)

    def _add_user(self, blocks: Sequence[Placed], path: str) -> None:
        """Results go first, whatever stands before them: they answer the assistant's last message."""
        parts: list[PlacedPart] = []
        for place, block in blocks:
            if block["type"] == "tool_result":
                self._add_result(block, place)
            else:
                parts += _read_block(block, place)
        if parts or not blocks:
            self._append_parts({"role": "user"}, parts, path)

    def _add_result(self, block: Mapping[str, Any], path: str) -> None:
        content = block.get("content")
        said = "" if content is None else _read_content(content, f"{path}.content")
        call_id = _text(block, "tool_use_id", path)
        message = self._append_parts({"role": "tool", "tool_call_id": call_id}, said, path)
        self._origins.note(f"{message}.tool_call_id", f"{path}.tool_use_id")

    def _add_assistant(self, blocks: Sequence[Placed], path: str) -> None:
        turn: dict[str, Any] = {"role": "assistant", "content": []}
        message = self._append(turn, path)
        for place, block in blocks:
            match block["type"]:
                case "text":
                    turn["content"] += [part for _, part in _read_block(block, place)]
                case "thinking":
                    turn["reasoning_content"] = turn.get("reasoning_content", "") + _text(block, "thinking", place)
                case "tool_use":
                    calls = turn.setdefault("tool_calls", [])
                    self._note_call(f"{message}.tool_calls[{len(calls)}]", place)
                    calls.append(_read_call(block, place))

    def _note_call(self, ours: str, theirs: str) -> None:
        self._origins.note(ours, theirs)
        self._origins.note(f"{ours}.function", theirs)
        self._origins.note(f"{ours}.function.arguments", f"{theirs}.input")

    def _append_parts(self, message: dict[str, Any], content: str | list[PlacedPart], path: str) -> str:
        """Adds a message with this content; its path in the chat request. Each image is known by its block."""
        if isinstance(content, str):
            return self._append({**message, "content": content}, path)
        ours = self._append({**message, "content": [part for _, part in content]}, path)
        for index, (place, part) in enumerate(content):
            if part["type"] == "image":
                self._origins.note(f"{ours}.content[{index}]", place)
        return ours

    def _append(self, message: dict[str, Any], path: str) -> str:
        """Adds a message; its path in the chat request."""
        ours = f"messages[{len(self.messages)}]"
        self._origins.note(ours, path)
        self._origins.note(f"{ours}.content", path)
        self.messages.append(message)
        return ours


def _read_content(content: Any, path: str) -> str | list[PlacedPart]:
    """A text, or the texts and images of blocks that are nothing else."""
    if isinstance(content, str):
        return content
    blocks = _read_blocks(content, path, _TEXTS)
    return [part for place, block in blocks for part in _read_block(block, place)]


def _read_blocks(content: Any, path: str, kinds: Sequence[str]) -> list[Placed]:
    """The blocks with their paths. Raises InvalidRequest where one is not of `kinds`."""
    if not isinstance(content, list):
        raise invalid_field(path, "expected a string or an array of content blocks")
    blocks = [(f"{path}[{index}]", block) for index, block in enumerate(content)]
    for place, block in blocks:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "document" and kind not in kinds:
            raise _no_document(place)
        if kind not in kinds:
            raise invalid_field(f"{place}.type", f"expected one of {', '.join(kinds)}")
    return blocks


def _read_block(block: Mapping[str, Any], path: str) -> list[PlacedPart]:
    """A text block's text, an image as it is, or what a document holds where that is text."""
    if block["type"] == "text":
        return [(path, _text_part(_text(block, "text", path)))]
    source = block.get("source")
    if block["type"] == "image":
        return [(path, {"type": "image", "source": source})]
    if isinstance(source, Mapping) and source.get("type") == "text":
        return [(path, _text_part(_text(source, "data", f"{path}.source")))]
    if isinstance(source, Mapping) and source.get("type") == "content":
        content = _read_content(source.get("content"), f"{path}.source.content")
        return [(path, _text_part(content))] if isinstance(content, str) else content
    raise _no_document(path)


def _text_part(text: str) -> Part:
    return {"type": "text", "text": text}


def _read_call(block: Mapping[str, Any], path: str) -> dict[str, Any]:
    arguments = block.get("input")
    if not isinstance(arguments, Mapping):
        raise invalid_field(f"{path}.input", "expected an object")
    function = {"name": _text(block, "name", path), "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": _text(block, "id", path), "type": "function", "function": function}


def _text(block: Mapping[str, Any], name: str, path: str) -> str:
    text = block.get(name)
    if not isinstance(text, str):
        raise invalid_field(f"{path}.{name}", "expected a string")
    return text


def _no_document(path: str) -> Unsupported:
    return Unsupported(
        f"'{path}': this server takes no files other than text with this model. Send text only.", param=path
    )
