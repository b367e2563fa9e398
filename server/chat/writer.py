"""Collects the parts of an answer while it is read: numbers calls, gives them ids, keeps blanks at the edges out."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from server.chat.answer import ContentDelta, Delta, ReasoningDelta, ToolArgumentsDelta, ToolCallBegin, is_object


def new_call_id() -> str:
    """An id that no other call has."""
    return f"call_{secrets.token_hex(12)}"


class AnswerWriter:
    """Deltas since the last `take`. White space before and after thoughts, and around calls, belongs to neither.

    `has_content` says that something was said or called, `is_thinking` that thoughts were begun and not ended.
    """

    def __init__(self, new_id: Callable[[], str] = new_call_id) -> None:
        self._new_id = new_id
        self._deltas: list[Delta] = []
        self._held = ""
        self._is_behind_call = False
        self.has_content = self.is_thinking = False
        self._has_reasoning = False
        self.n_calls = 0
        self._arguments: list[list[str]] = []

    @property
    def has_whole_calls(self) -> bool:
        """Whether there are calls, and the arguments of each are a whole JSON object."""
        return self.n_calls > 0 and all(is_object("".join(parts)) for parts in self._arguments)

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
            self._deltas.append(ReasoningDelta(kept))
            self._has_reasoning = True

    def end_reasoning(self) -> None:
        """Blanks at the end of thoughts are left out; thoughts may come again."""
        self.is_thinking = False
        self._held = ""

    def begin(self, name: str) -> None:
        """A call begins."""
        self._held = ""
        self.has_content = self._is_behind_call = True
        self._deltas.append(ToolCallBegin(self.n_calls, self._new_id(), name))
        self.n_calls += 1
        self._arguments.append([])

    def arguments(self, text: str) -> None:
        """More of the arguments of the call that was begun last."""
        if text:
            self._arguments[-1].append(text)
            self._deltas.append(ToolArgumentsDelta(self.n_calls - 1, text))
