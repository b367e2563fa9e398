"""Text of a message's content, which may be a list of parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ggufd.chat.images import marker_of
from ggufd.errors import InvalidRequest, Unsupported


def text_of(content: Any) -> str:
    """Text of a content, with the markers of its images.

    Texts are joined by line ends, as llama-server does; nothing is put between an image and what stands beside it.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest("A message's content must be a string or a list of parts.", param="messages")
    return "".join(_joined(content))


def _joined(parts: Sequence[Any]) -> Iterator[str]:
    is_behind_text = False
    for part in parts:
        marker = marker_of(part)
        if marker is None and is_behind_text:
            yield "\n"
        yield _part_text(part) if marker is None else marker
        is_behind_text = marker is None


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        text = part.get("text", part.get("refusal"))
        if isinstance(text, str):
            return text
        raise Unsupported(f"This server takes only text, not {part.get('type', 'this part')!r}.", param="messages")
    raise InvalidRequest("A part of a content must be an object with a text.", param="messages")
