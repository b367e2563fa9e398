"""Places of messages in the prompt that was rendered from them.

Found by searching for the texts, since a template may put anything between them. Knows no template and no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ggufd.chat.content import text_of
from ggufd.chat.prompt import Message

_END_OF_THOUGHT = "</think>"


class MessagePlace(NamedTuple):
    """Characters `[start, end)` of the prompt are the content of message `message` from its character `first` on."""

    message: int
    role: str
    start: int
    end: int
    first: int


def find_messages(prompt: str, messages: Sequence[Message]) -> list[MessagePlace]:
    """Places of the messages found in the prompt, in order, without overlaps.

    Templates cut blanks at both ends and may leave out reasoning; a message that is not found even so, or has no
    text, is left out.
    """
    places: list[MessagePlace] = []
    for index, message in enumerate(messages):
        content = content_text(message)
        behind = places[-1].end if places else 0
        for first, last in (_trimmed(content, 0), _trimmed(content, _after_thought(content))):
            start = _find(prompt, content[first:last], behind) if first < last else -1
            if start >= 0:
                places.append(MessagePlace(index, str(message["role"]), start, start + last - first, first))
                break
    return places


def content_text(message: Message) -> str:
    """A message's content as text; parts are joined by line ends, as when it is rendered."""
    content = message.get("content")
    return text_of(content) if isinstance(content, (str, list)) else ""


def _find(prompt: str, text: str, behind: int) -> int:
    """Position of the text, preferably on its own ("a" is also part of a role's name); -1 where it is not found."""
    start = anywhere = prompt.find(text, behind)
    while start >= 0 and _is_within_a_word(prompt, start, start + len(text)):
        start = prompt.find(text, start + 1)
    return anywhere if start < 0 else start


def _is_within_a_word(prompt: str, start: int, end: int) -> bool:
    around = prompt[start - 1 : start + 1] if start else "", prompt[end - 1 : end + 1]
    return any(len(pair) == 2 and pair.isalnum() for pair in around)


def _after_thought(content: str) -> int:
    end = content.rfind(_END_OF_THOUGHT)
    return 0 if end < 0 else end + len(_END_OF_THOUGHT)


def _trimmed(content: str, first: int) -> tuple[int, int]:
    """Start and end, without white space, of the text from `first` on."""
    return len(content) - len(content[first:].lstrip()), len(content.rstrip())
