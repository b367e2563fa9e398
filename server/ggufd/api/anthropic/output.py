"""The content of an answer as it grows: pieces of an answer in, events and content blocks out. A pure state machine."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from ggufd.chat.deltas.answer import ContentDelta, Delta, ReasoningDelta, ToolArgumentsDelta, ToolCallBegin

Block = dict[str, Any]
Event = dict[str, Any]


class ContentBlocks:
    """The blocks of one answer, in `blocks`; the last one may still grow."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._texts: list[str] = []
        self._is_open = False

    def feed(self, delta: Delta) -> list[Event]:
        """The events for one piece of the answer, in the order in which they are to be sent."""
        match delta:
            case ContentDelta(text):
                opening = self._ensure({"type": "text", "text": ""})
                return [*opening, self._add(text, {"type": "text_delta", "text": text})]
            case ReasoningDelta(text):
                opening = self._ensure({"type": "thinking", "thinking": "", "signature": ""})
                return [*opening, self._add(text, {"type": "thinking_delta", "thinking": text})]
            case ToolCallBegin(_, call_id, name):
                return [*self.close(), self._begin({"type": "tool_use", "id": call_id, "name": name, "input": {}})]
            case ToolArgumentsDelta(_, text):
                return [self._add(text, {"type": "input_json_delta", "partial_json": text})]

    def close(self) -> list[Event]:
        """The events that end the block which is still open, if one is."""
        if not self._is_open:
            return []
        self._is_open = False
        block, text = self.blocks[-1], "".join(self._texts)
        events: list[Event] = []
        match block["type"]:
            case "text":
                block["text"] = text
            case "thinking":
                block.update(thinking=text, signature=signature(text))
                events.append(self._delta({"type": "signature_delta", "signature": block["signature"]}))
            case "tool_use":
                block["input"] = _read_input(text)
        return [*events, {"type": "content_block_stop", "index": len(self.blocks) - 1}]

    def _ensure(self, block: Block) -> list[Event]:
        """Have a block of this type open."""
        if self._is_open and self.blocks[-1]["type"] == block["type"]:
            return []
        return [*self.close(), self._begin(block)]

    def _begin(self, block: Block) -> Event:
        self.blocks.append(block)
        self._texts = []
        self._is_open = True
        return {"type": "content_block_start", "index": len(self.blocks) - 1, "content_block": dict(block)}

    def _add(self, text: str, delta: dict[str, Any]) -> Event:
        assert self._is_open, "text of no block"
        self._texts.append(text)
        return self._delta(delta)

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": len(self.blocks) - 1, "delta": delta}


def signature(thinking: str) -> str:
    """What stands for the signature of a thought: clients send it back. A digest, which proves nothing to anybody."""
    return base64.b64encode(hashlib.sha256(thinking.encode()).digest()).decode()


def _read_input(text: str) -> Any:
    """The arguments as data; of a call that was cut there is nothing whole to tell."""
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return {}
