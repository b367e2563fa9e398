"""Content blocks of a message: Anthropic's events for each kind of block."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from ggufd.api.answer.blocks import Block, BlockWriter, Event, Logprobs
from ggufd.chat.deltas.answer import ToolCallBegin


class _ContentBlock(Block):
    """A block whose text goes out as deltas of type `delta_type`, under the name `delta_field`."""

    delta_type: str
    delta_field: str

    def begin(self) -> list[Event]:
        return [{"type": "content_block_start", "index": self._index, "content_block": dict(self.json)}]

    def add(self, text: str, logprobs: Logprobs) -> list[Event]:
        self._texts.append(text)
        return [self._delta({"type": self.delta_type, self.delta_field: text})]

    def end(self, *, is_cut: bool) -> list[Event]:
        self._complete()
        return [{"type": "content_block_stop", "index": self._index}]

    def _complete(self) -> None:
        """Put the whole text into the block."""
        self.json[self.delta_field] = self._text

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


class _TextBlock(_ContentBlock):
    """Text for the user."""

    delta_type = "text_delta"
    delta_field = "text"


class _ThinkingBlock(_ContentBlock):
    """Reasoning, which ends with its signature."""

    delta_type = "thinking_delta"
    delta_field = "thinking"

    def end(self, *, is_cut: bool) -> list[Event]:
        self.json["signature"] = signature(self._text)
        signed = self._delta({"type": "signature_delta", "signature": self.json["signature"]})
        return [signed, *super().end(is_cut=is_cut)]


class _ToolUseBlock(_ContentBlock):
    """A tool call; its arguments go out as pieces of JSON."""

    delta_type = "input_json_delta"
    delta_field = "partial_json"

    def _complete(self) -> None:
        self.json["input"] = _read_input(self._text)


class ContentBlocks(BlockWriter):
    """The content of one message."""

    def _text_block(self, index: int) -> Block:
        return _TextBlock(index, {"type": "text", "text": ""})

    def _reasoning_block(self, index: int) -> Block:
        return _ThinkingBlock(index, {"type": "thinking", "thinking": "", "signature": ""})

    def _call_block(self, index: int, call: ToolCallBegin) -> Block:
        return _ToolUseBlock(index, {"type": "tool_use", "id": call.call_id, "name": call.name, "input": {}})


def signature(thinking: str) -> str:
    """A digest in the place of a signature, because clients send one back. It proves nothing."""
    return base64.b64encode(hashlib.sha256(thinking.encode()).digest()).decode()


def _read_input(text: str) -> Any:
    """The arguments as data; those of a call that was cut are left out."""
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return {}
