"""Content-block streaming: one block is open at a time, and a delta of another kind closes it.

Messages calls them content blocks, Responses output items. A family says what its blocks look like and which events
tell of them; when one is opened, extended and closed is said here. Knows no family and no HTTP.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ggufd.chat.deltas.answer import ContentDelta, Delta, ReasoningDelta, ToolArgumentsDelta, ToolCallBegin

Event = dict[str, Any]
Logprobs = Sequence[Mapping[str, Any]]


class Block(ABC):
    """Open block, number `index` of the answer; `json` is its state so far."""

    def __init__(self, index: int, json: dict[str, Any]) -> None:
        self.json = json
        self._index = index
        self._texts: list[str] = []

    @property
    def _text(self) -> str:
        return "".join(self._texts)

    @abstractmethod
    def begin(self) -> list[Event]:
        """The events that announce it."""

    @abstractmethod
    def add(self, text: str, logprobs: Logprobs) -> list[Event]:
        """The events of more text."""

    @abstractmethod
    def end(self, *, is_cut: bool) -> list[Event]:
        """The events that close it, whole or cut; `json` is complete afterwards."""


class BlockWriter(ABC):
    """Writer of the blocks of one answer; the last one may still grow."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._open: Block | None = None
        self._kind: type[Delta] | None = None

    @abstractmethod
    def _text_block(self, index: int) -> Block: ...
    @abstractmethod
    def _reasoning_block(self, index: int) -> Block: ...
    @abstractmethod
    def _call_block(self, index: int, call: ToolCallBegin) -> Block: ...

    @property
    def blocks(self) -> list[dict[str, Any]]:
        """All blocks as JSON."""
        return [block.json for block in self._blocks]

    def feed(self, delta: Delta, logprobs: Logprobs = ()) -> list[Event]:
        """The events for one piece of the answer, in the order in which they are to be sent."""
        match delta:
            case ContentDelta(text):
                return [*self._ensure(ContentDelta, self._text_block), *self._add(text, logprobs)]
            case ReasoningDelta(text):
                return [*self._ensure(ReasoningDelta, self._reasoning_block), *self._add(text, ())]
            case ToolCallBegin():
                return self._begin(ToolCallBegin, self._call_block(len(self._blocks), delta))
            case ToolArgumentsDelta(_, text):
                return self._add(text, ())

    def close(self, *, is_cut: bool = False) -> list[Event]:
        """The events that end the block which is still open, if one is."""
        block, self._open = self._open, None
        return [] if block is None else block.end(is_cut=is_cut)

    def _ensure(self, kind: type[Delta], make: Callable[[int], Block]) -> list[Event]:
        """Have a block for this kind of delta open."""
        if self._open is not None and self._kind is kind:
            return []
        return self._begin(kind, make(len(self._blocks)))

    def _begin(self, kind: type[Delta], block: Block) -> list[Event]:
        closing = self.close()
        self._open, self._kind = block, kind
        self._blocks.append(block)
        return [*closing, *block.begin()]

    def _add(self, text: str, logprobs: Logprobs) -> list[Event]:
        assert self._open is not None, "text of no block"
        return self._open.add(text, logprobs)
