"""Answer and its deltas: content, reasoning and tool calls. Knows no model format and no API."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More content."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallBegin:
    """Start of call number `call` (from 0) of the tool `name`. Comes once, before the arguments."""

    call: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolArgumentsDelta:
    """More of a call's arguments; joined they are the text of a JSON object."""

    call: int
    text: str


Delta = ContentDelta | ReasoningDelta | ToolCallBegin | ToolArgumentsDelta


def merged(deltas: Iterable[Delta]) -> list[Delta]:
    """Deltas with neighbours of the same kind joined."""
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
    """Tool call; `arguments` is the text of a JSON object, unless the answer was cut."""

    call_id: str
    name: str
    arguments: str


def is_object(text: str) -> bool:
    """Whether a call's arguments are a complete JSON object; in an answer that was cut they may not be."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


@dataclass(slots=True)
class Answer:
    """Answer, complete or so far."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    @property
    def has_whole_calls(self) -> bool:
        """Whether there are calls, each with complete arguments."""
        return bool(self.calls) and all(is_object(call.arguments) for call in self.calls)

    @classmethod
    def of(cls, deltas: Iterable[Delta]) -> Answer:
        """Sum of `deltas`."""
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
