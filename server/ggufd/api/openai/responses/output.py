"""The output of an answer as it grows: pieces of an answer in, events and items out. A pure state machine.

The events come without their number, which is the stream's. Knows no response object and no HTTP.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ggufd.api.openai.responses.items import Item, new_item_id
from ggufd.chat.deltas.answer import ContentDelta, Delta, ReasoningDelta, ToolArgumentsDelta, ToolCallBegin

Event = dict[str, Any]
Logprobs = Sequence[Mapping[str, Any]]


class _Open(ABC):
    """The item that is being written, number `index` of the output."""

    def __init__(self, item: Item, index: int) -> None:
        self.item = item
        self._index = index
        self._texts: list[str] = []

    def _event(self, kind: str, **more: Any) -> Event:
        return {"type": f"response.{kind}", "item_id": self.item["id"], "output_index": self._index, **more}

    def _whole(self, kind: str) -> Event:
        return {"type": f"response.output_item.{kind}", "output_index": self._index, "item": dict(self.item)}

    @property
    def _text(self) -> str:
        return "".join(self._texts)

    @abstractmethod
    def begin(self) -> list[Event]:
        """What says that it is there."""

    @abstractmethod
    def add(self, text: str, logprobs: Logprobs) -> list[Event]:
        """What says that it grew."""

    @abstractmethod
    def end(self, status: str) -> list[Event]:
        """What says that it is whole, or cut."""


class _TextItem(_Open):
    """An item with one part of text."""

    kind: ClassVar[str]
    part_type: ClassVar[str]

    def __init__(self, index: int) -> None:
        super().__init__({"id": new_item_id(self.kind), "type": self.kind, "status": "in_progress"}, index)
        self.item |= {**self.more, "content": []}

    more: ClassVar[Mapping[str, Any]]
    """What the item has besides."""

    def begin(self) -> list[Event]:
        return [self._whole("added"), self._event("content_part.added", content_index=0, part=self._part())]

    def add(self, text: str, logprobs: Logprobs) -> list[Event]:
        self._texts.append(text)
        return [self._event(f"{self.part_type}.delta", content_index=0, delta=text)]

    def end(self, status: str) -> list[Event]:
        self.item.update(status=status, content=[self._part()])
        return [
            self._event(f"{self.part_type}.done", content_index=0, text=self._text),
            self._event("content_part.done", content_index=0, part=self._part()),
            self._whole("done"),
        ]

    def _part(self) -> Item:
        return {"type": self.part_type, "text": self._text}


class _Reasoning(_TextItem):
    """What the model thinks, as it is: nothing here makes summaries."""

    kind = "reasoning"
    part_type = "reasoning_text"
    more: ClassVar[Mapping[str, Any]] = {"summary": []}


class _Message(_TextItem):
    """Text for the user, with the log-probabilities of its tokens where they are wanted."""

    kind = "message"
    part_type = "output_text"
    more: ClassVar[Mapping[str, Any]] = {"role": "assistant"}

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._logprobs: list[Any] = []

    def add(self, text: str, logprobs: Logprobs) -> list[Event]:
        self._logprobs.extend(logprobs)
        (delta,) = super().add(text, logprobs)
        return [delta | {"logprobs": list(logprobs)}]

    def end(self, status: str) -> list[Event]:
        text, *others = super().end(status)
        return [text | {"logprobs": self._logprobs}, *others]

    def _part(self) -> Item:
        return super()._part() | {"annotations": [], "logprobs": list(self._logprobs)}


class _Call(_Open):
    """A call of one of the client's functions."""

    def __init__(self, index: int, begin: ToolCallBegin) -> None:
        item = {"id": new_item_id("function_call"), "type": "function_call", "status": "in_progress"}
        super().__init__({**item, "call_id": begin.call_id, "name": begin.name, "arguments": ""}, index)

    def begin(self) -> list[Event]:
        return [self._whole("added")]

    def add(self, text: str, logprobs: Logprobs) -> list[Event]:
        self._texts.append(text)
        return [self._event("function_call_arguments.delta", delta=text)]

    def end(self, status: str) -> list[Event]:
        self.item.update(status=status, arguments=self._text)
        done = self._event("function_call_arguments.done", name=self.item["name"], arguments=self._text)
        return [done, self._whole("done")]


class ResponseItems:
    """The items of one answer, in `items`; the last one may still grow."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self._open: _Open | None = None

    def feed(self, delta: Delta, logprobs: Logprobs = ()) -> list[Event]:
        """The events for one piece of the answer, in the order in which they are to be sent."""
        match delta:
            case ContentDelta(text):
                return [*self._ensure(_Message), *self._add(text, logprobs)]
            case ReasoningDelta(text):
                return [*self._ensure(_Reasoning), *self._add(text)]
            case ToolCallBegin():
                return [*self.close(), *self._begin(_Call(len(self.items), delta))]
            case ToolArgumentsDelta(_, text):
                return self._add(text)

    def finish(self, *, is_cut: bool) -> list[Event]:
        """The last events. An answer without anything in it is an empty message: clients look for one."""
        opening = [] if self.items else self._ensure(_Message)
        return [*opening, *self.close("incomplete" if is_cut else "completed")]

    def close(self, status: str = "completed") -> list[Event]:
        """The events that end the item which is still open, if one is."""
        item, self._open = self._open, None
        return [] if item is None else item.end(status)

    def _ensure(self, kind: type[_Message] | type[_Reasoning]) -> list[Event]:
        """Have an item of this kind open."""
        if isinstance(self._open, kind):
            return []
        return [*self.close(), *self._begin(kind(len(self.items)))]

    def _begin(self, item: _Open) -> list[Event]:
        self._open = item
        self.items.append(item.item)
        return item.begin()

    def _add(self, text: str, logprobs: Logprobs = ()) -> list[Event]:
        assert self._open is not None, "text of no item"
        return self._open.add(text, logprobs)
