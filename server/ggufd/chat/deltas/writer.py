"""Writer of deltas for the parsers: numbers calls, gives them ids, trims white space around them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from ggufd.chat.deltas.answer import ContentDelta, Delta, ReasoningDelta, ToolArgumentsDelta, ToolCallBegin, is_object
from ggufd.chat.deltas.json_comparison import JsonComparison


class RepeatedCallError(Exception):
    """A call with the name and arguments of an earlier one in the same answer."""


def new_call_id() -> str:
    """Unique id of a call."""
    return f"call_{secrets.token_hex(12)}"


@dataclass(slots=True)
class _OpenCall:
    """Call in progress. It is held back as long as it may repeat one of the `earlier` calls."""

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
        """Add arguments. Raises RepeatedCallError when the call now equals an earlier one."""
        self.parts.append(text)
        self.earlier = [one for one in self.earlier if one.feed(text)]
        if any(one.is_equal for one in self.earlier):
            raise RepeatedCallError


class AnswerWriter:
    """Deltas since the last `take`. White space around reasoning and calls is dropped.

    `has_content`: there was content or a call; `is_thinking`: reasoning is open. A call is held back only as long as
    it may repeat an earlier one; a repeated call is dropped and RepeatedCallError raised.
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
        """Whether there are calls, each with complete arguments."""
        return bool(self._calls) and all(call.is_whole for call in self._calls)

    def take(self) -> list[Delta]:
        """Deltas since the last call."""
        deltas, self._deltas = self._deltas, []
        return deltas

    def content(self, text: str) -> None:
        """Add content; white space at its end waits for what follows."""
        text = self._held + text
        kept = text.rstrip()
        self._held = text[len(kept) :]
        if kept:
            self.release()
            self._deltas.append(ContentDelta(kept))
            self.has_content = True
            self._is_behind_call = False

    def raw(self, text: str) -> None:
        """Add content with its white space."""
        self.content(text)
        self.flush()

    def flush(self) -> None:
        """Add the white space that waits, unless a call came last: only content follows."""
        if self._held and not self._is_behind_call:
            self._deltas.append(ContentDelta(self._held))
        self._held = ""

    def reasoning(self, text: str) -> None:
        """Add reasoning."""
        self.is_thinking = True
        text = self._held + text if self._has_reasoning else text.lstrip()
        kept = text.rstrip()
        self._held = text[len(kept) :] if kept or self._has_reasoning else ""
        if kept:
            self.release()
            self._deltas.append(ReasoningDelta(kept))
            self._has_reasoning = True

    def end_reasoning(self) -> None:
        """End reasoning, without the white space at its end; it may be resumed later."""
        self.is_thinking = False
        self._held = ""

    def begin(self, name: str) -> None:
        """Begin a call."""
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
        """Add arguments to the last call. Raises RepeatedCallError."""
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
            self._emit(call)

    def release(self) -> None:
        """Emit the call that is held back: it has ended and repeats none."""
        if self._calls and self._calls[-1].earlier:
            self._calls[-1].earlier = []
            self._emit(self._calls[-1])

    def _emit(self, call: _OpenCall) -> None:
        self._deltas.append(call.head)
        if call.parts:
            self._deltas.append(ToolArgumentsDelta(call.head.call, call.arguments))
