"""Text of a message's content, which may be a list of parts."""

from __future__ import annotations

from typing import Any

from ggufd.errors import InvalidRequest, Unsupported


def text_of(content: Any) -> str:
    """Text of a content; parts are joined by line ends, as llama-server does."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest("A message's content must be a string or a list of parts.", param="messages")
    return "\n".join(_part_text(part) for part in content)


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        text = part.get("text", part.get("refusal"))
        if isinstance(text, str):
            return text
        raise Unsupported(f"This server takes only text, not {part.get('type', 'this part')!r}.", param="messages")
    raise InvalidRequest("A part of a content must be an object with a text.", param="messages")
