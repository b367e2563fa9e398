"""Collects the parts of an answer while it is read: numbers calls, gives them ids, keeps blanks at the edges out."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from ggufd.chat.deltas.answer import ContentDelta, Delta, ReasoningDelta, ToolArgumentsDelta, ToolCallBegin, is_object
from ggufd.chat.deltas.json_comparison import JsonComparison


class RepeatedCallError(Exception):
    """The call that is being written equals an earlier one of the same answer in name and arguments."""


def new_call_id() -> str:
    """An id that no other call has."""
    return f"call_{secrets.token_hex(12)}"


@dataclass(slots=True)
class _OpenCall:
    """A call as it is written. `head` is held back as long as it may be one of the earlier calls, `earlier`."""

    head: ToolCallBegin
    parts: list[str] = field(default_factory=list)
    earlier: list[JsonComparison] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        return "".join(self.parts)

    @property
    def is_whole(self) -> bool:
        return is_object(self.arguments)

    def add(self, text: str) -> None:
        """More arguments. Raises RepeatedCallError when they make it an earlier call."""
        self.parts.append(text)
        self.earlier = [one for one in self.earlier if one.feed(text)]
        if any(one.is_equal for one in self.earlier):
            raise RepeatedCallError


class AnswerWriter:
    """Deltas since the last `take`. White space before and after thoughts, and around calls, belongs to neither.

    `has_content` says that something was said or called, `is_thinking` that thoughts were begun and not ended. A call
    is held back only as long as it may become an earlier one; one that has is forgotten, and RepeatedCallError raised.
    """

    def __init__(self, new_id: Callable[[], str] = new_call_id) -> None:
        self._new_id = new_id
        self._deltas: list[Delta] = []
        self._held = ""
        self._is_behind_call = False
        self.has_content = self.is_thinking = False
        self._has_reasoning = False
        self._calls: list[_OpenCall] = []

    @property
    def n_calls(self) -> int:
        return len(self._calls)

    @property
    def has_whole_calls(self) -> bool:
        """Whether there are calls, and the arguments of each are a whole JSON object."""
        return bool(self._calls) and all(call.is_whole for call in self._calls)

    def take(self) -> list[Delta]:
        """What was written since the last time."""
        deltas, self._deltas = self._deltas, []
        return deltas

    def content(self, text: str) -> None:
        """What is said; blanks at its end wait for what follows."""
        text = self._held + text
        kept = text.rstrip()
        self._held = text[len(kept) :]
        if kept:
            self.release()
            self._deltas.append(ContentDelta(kept))
            self.has_content = True
            self._is_behind_call = False

    def raw(self, text: str) -> None:
        """What is said, blanks and all."""
        self.content(text)
        self.flush()

    def flush(self) -> None:
        """The blanks that wait are said too, unless a call came last: nothing but content follows."""
        if self._held and not self._is_behind_call:
            self._deltas.append(ContentDelta(self._held))
        self._held = ""

    def reasoning(self, text: str) -> None:
        """What is thought."""
        self.is_thinking = True
        text = self._held + text if self._has_reasoning else text.lstrip()
        kept = text.rstrip()
        self._held = text[len(kept) :] if kept or self._has_reasoning else ""
        if kept:
            self.release()
            self._deltas.append(ReasoningDelta(kept))
            self._has_reasoning = True

    def end_reasoning(self) -> None:
        """Blanks at the end of thoughts are left out; thoughts may come again."""
        self.is_thinking = False
        self._held = ""

    def begin(self, name: str) -> None:
        """A call begins."""
        self.release()
        self._held = ""
        self.has_content = self._is_behind_call = True
        same = [call for call in self._calls if call.head.name == name and call.is_whole]
        call = _OpenCall(ToolCallBegin(self.n_calls, self._new_id(), name))
        call.earlier = [JsonComparison(json.loads(one.arguments)) for one in same]
        self._calls.append(call)
        if not call.earlier:
            self._deltas.append(call.head)

    def arguments(self, text: str) -> None:
        """More of the arguments of the call that was begun last. Raises RepeatedCallError."""
        call = self._calls[-1]
        if call.earlier:
            self._compare(call, text)
        elif text:
            call.parts.append(text)
            self._deltas.append(ToolArgumentsDelta(call.head.call, text))

    def _compare(self, call: _OpenCall, text: str) -> None:
        try:
            call.add(text)
        except RepeatedCallError:
            self._calls.remove(call)
            raise
        if not call.earlier:
            self._tell(call)

    def release(self) -> None:
        """The call that is held back is told as far as it came: it has ended, and is no earlier one."""
        if self._calls and self._calls[-1].earlier:
            self._calls[-1].earlier = []
            self._tell(self._calls[-1])

    def _tell(self, call: _OpenCall) -> None:
        self._deltas.append(call.head)
        if call.parts:
            self._deltas.append(ToolArgumentsDelta(call.head.call, call.arguments))
