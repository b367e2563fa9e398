"""Output items of a response: the events of the Responses API for each kind of item.

The events come without their number, which is the stream's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ggufd.api.answer.blocks import Block, BlockWriter, Event, Logprobs
from ggufd.api.openai.responses.items import Item, new_item_id
from ggufd.chat.deltas.answer import ContentDelta, ToolCallBegin, is_object


class _Item(Block):
    """Output item."""

    def _event(self, kind: str, **more: Any) -> Event:
        return {"type": f"response.{kind}", "item_id": self.json["id"], "output_index": self._index, **more}

    def _whole(self, kind: str) -> Event:
        return {"type": f"response.output_item.{kind}", "output_index": self._index, "item": dict(self.json)}


class _TextItem(_Item):
    """Output item with one part of text."""

    kind: ClassVar[str]
    part_type: ClassVar[str]

    def __init__(self, index: int) -> None:
        head = {"id": new_item_id(self.kind), "type": self.kind, "status": "in_progress"}
        super().__init__(index, {**head, **self.more, "content": []})

    more: ClassVar[Mapping[str, Any]]
    """What the item has besides."""

    def begin(self) -> list[Event]:
        return [self._whole("added"), self._event("content_part.added", content_index=0, part=self._part())]

    def add(self, text: str, logprobs: Logprobs) -> list[Event]:
        self._texts.append(text)
        return [self._event(f"{self.part_type}.delta", content_index=0, delta=text)]

    def end(self, *, is_cut: bool) -> list[Event]:
        self.json.update(status=_status(is_cut), content=[self._part()])
        return [
            self._event(f"{self.part_type}.done", content_index=0, text=self._text),
            self._event("content_part.done", content_index=0, part=self._part()),
            self._whole("done"),
        ]

    def _part(self) -> Item:
        return {"type": self.part_type, "text": self._text}


class _Reasoning(_TextItem):
    """Reasoning as the model wrote it; no summary is made of it."""

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

    def end(self, *, is_cut: bool) -> list[Event]:
        text, *others = super().end(is_cut=is_cut)
        return [text | {"logprobs": self._logprobs}, *others]

    def _part(self) -> Item:
        return super()._part() | {"annotations": [], "logprobs": list(self._logprobs)}


class _Call(_Item):
    """A call of one of the client's functions."""

    def __init__(self, index: int, begin: ToolCallBegin) -> None:
        item = {"id": new_item_id("function_call"), "type": "function_call", "status": "in_progress"}
        super().__init__(index, {**item, "call_id": begin.call_id, "name": begin.name, "arguments": ""})

    def begin(self) -> list[Event]:
        return [self._whole("added")]

    def add(self, text: str, logprobs: Logprobs) -> list[Event]:
        self._texts.append(text)
        return [self._event("function_call_arguments.delta", delta=text)]

    def end(self, *, is_cut: bool) -> list[Event]:
        # A stop string ends the answer, but may have cut this call.
        self.json.update(status=_status(is_cut or not is_object(self._text)), arguments=self._text)
        done = self._event("function_call_arguments.done", name=self.json["name"], arguments=self._text)
        return [done, self._whole("done")]


class ResponseItems(BlockWriter):
    """The output of one response."""

    def _text_block(self, index: int) -> Block:
        return _Message(index)

    def _reasoning_block(self, index: int) -> Block:
        return _Reasoning(index)

    def _call_block(self, index: int, call: ToolCallBegin) -> Block:
        return _Call(index, call)

    def finish(self, *, is_cut: bool) -> list[Event]:
        """The last events. An answer without anything in it gets an empty message: clients look for one."""
        opening = [] if self.blocks else self._ensure(ContentDelta, self._text_block)
        return [*opening, *self.close(is_cut=is_cut)]


def _status(is_cut: bool) -> str:
    return "incomplete" if is_cut else "completed"
