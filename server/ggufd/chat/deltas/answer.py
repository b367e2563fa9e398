"""What a model's answer is made of: what it says, what it thinks, which tools it calls. In pieces, and whole.

Knows neither how a model writes these things nor how an API does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of what is said."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what is thought."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallBegin:
    """Call number `call` of this answer, from 0, calls the tool `name`. Comes once, before its arguments."""

    call: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolArgumentsDelta:
    """More of a call's arguments; all of them together are the text of a JSON object."""

    call: int
    text: str


Delta = ContentDelta | ReasoningDelta | ToolCallBegin | ToolArgumentsDelta


def merged(deltas: Iterable[Delta]) -> list[Delta]:
    """The same pieces, those of one kind that follow each other as one."""
    result: list[Delta] = []
    for delta in deltas:
        match result[-1:], delta:
            case [ContentDelta(text)], ContentDelta(more):
                result[-1] = ContentDelta(text + more)
            case [ReasoningDelta(text)], ReasoningDelta(more):
                result[-1] = ReasoningDelta(text + more)
            case [ToolArgumentsDelta(call, text)], ToolArgumentsDelta(_, more):
                result[-1] = ToolArgumentsDelta(call, text + more)
            case _:
                result.append(delta)
    return result


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One whole call; `arguments` is the text of a JSON object, unless the answer was cut."""

    call_id: str
    name: str
    arguments: str


def is_object(text: str) -> bool:
    """Whether a call's arguments are whole: an answer that was cut may leave them unfinished."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


@dataclass(slots=True)
class Answer:
    """An answer so far."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    @property
    def has_whole_calls(self) -> bool:
        """Whether there are calls, and each of them can be made."""
        return bool(self.calls) and all(is_object(call.arguments) for call in self.calls)

    @classmethod
    def of(cls, deltas: Iterable[Delta]) -> Answer:
        """What `deltas` add up to."""
        parts: dict[type, list[str]] = {ContentDelta: [], ReasoningDelta: []}
        begun: list[tuple[ToolCallBegin, list[str]]] = []
        for delta in deltas:
            match delta:
                case ToolCallBegin():
                    begun.append((delta, []))
                case ToolArgumentsDelta(call, text):
                    begun[call][1].append(text)
                case _:
                    parts[type(delta)].append(delta.text)
        calls = [ToolCall(begin.call_id, begin.name, "".join(texts)) for begin, texts in begun]
        return cls("".join(parts[ContentDelta]), "".join(parts[ReasoningDelta]), calls)
