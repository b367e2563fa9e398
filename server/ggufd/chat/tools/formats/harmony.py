"""Harmony (gpt-oss): messages in channels for reasoning, calls and the final content."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ggufd.chat.deltas.reader import Reader, Steps
from ggufd.chat.deltas.thinking import Thinking
from ggufd.chat.deltas.writer import AnswerWriter
from ggufd.chat.tools.base import TextArguments, ToolFormat
from ggufd.chat.tools.rules import TEXT, GrammarRules, literal

_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([A-Za-z0-9_.:/-]+)")
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_BEGUN_HEADER = re.compile(r"\s*(to=\S*\s*)?(<\|?[a-z]*\|?)?")
"""What may be the beginning of a header, before its channel."""


@dataclass(frozen=True, kw_only=True)
class Harmony(ToolFormat):
    """Harmony's messages. The prompt ends with `<|start|>assistant`; a call or the final message ends the turn."""

    opening: str = "<|channel|>"
    is_whole: bool = True

    @property
    def tags(self) -> tuple[str, ...]:
        return "<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>"

    @property
    def reasoning_tags(self) -> Thinking | None:
        opening = "<|channel|>analysis<|message|>"
        return Thinking(opening, "<|end|>", f"<|start|>assistant{opening}")

    def read(self, reader: Reader, answer: AnswerWriter, texts: TextArguments) -> Steps[None]:
        while True:
            header: list[str] = []
            if not (yield from reader.until(("<|message|>",), header.append)):
                # The end, or text outside of all channels.
                text = "".join(header)
                is_header = reader.is_cut and _BEGUN_HEADER.fullmatch(text) is not None
                answer.content("" if is_header or "<|channel|>" in text or "<|start|>" in text else text)
                return
            yield from self._read_message(reader, answer, "".join(header))

    def _read_message(self, reader: Reader, answer: AnswerWriter, header: str) -> Steps[None]:
        recipient = _RECIPIENT.search(header)
        if recipient is not None:
            yield from _read_call(reader, answer, recipient[1])
        elif header.partition("<|channel|>")[2].startswith("analysis"):
            yield from reader.until(_ENDS, answer.reasoning)
            answer.end_reasoning()
        else:
            yield from reader.until(_ENDS, answer.content)

    def read_calls(self, reader: Reader, answer: AnswerWriter, texts: TextArguments) -> Steps[None]:
        raise NotImplementedError("Harmony is read as a whole")

    def calls(self, rules: GrammarRules, *, may_repeat: bool) -> str:
        """Lark of one call; a further call would be a turn of its own."""
        return rules.choice("call", lambda index, tool: _call(rules, index, tool.name))

    def answer(self, rules: GrammarRules, *, body: str, may_repeat: bool, is_required: bool) -> str:
        channel, message = rules.tag("<|channel|>"), rules.tag("<|message|>")
        ended = rules.up_to("ended", "<|end|>")
        # Where a call must come nothing is said before it, and it is thought once: a budget bounds that.
        kinds = '"analysis"' if is_required else '("analysis" | "commentary")'
        rules.add("aside", f'{channel} {kinds} {message} {ended} {rules.tag("<|start|>")} "assistant"')
        final = rules.add("final", f'{channel} "final" {message} {body}{"?" if body == TEXT else ""}')
        last = [self.calls(rules, may_repeat=may_repeat)] if rules.tools else []
        if not is_required:
            last.append(final)
        return f"aside{'?' if is_required else '*'} ({' | '.join(last)})"


def _read_call(reader: Reader, answer: AnswerWriter, name: str) -> Steps[None]:
    answer.begin(name)
    parts: list[str] = []

    def pass_on(text: str) -> None:
        parts.append(text)
        answer.arguments(text)

    if not (yield from reader.until(_ENDS, pass_on)):
        reader.refuse_cut()
    if not "".join(parts).strip():
        answer.arguments("{}")


def _call(rules: GrammarRules, index: int, name: str) -> str:
    """The recipient stands in the channel or before it."""
    channel, message = rules.tag("<|channel|>"), rules.tag("<|message|>")
    kind = f'(" "? {rules.tag("<|constrain|>")} "json" | " json")?'
    recipient = literal(f" to=functions.{name}")
    header = (
        f'({channel} "commentary" {recipient} | {recipient} {channel} ("commentary" | "analysis")) {kind} {message}'
    )
    return f"{header} {rules.arguments(index)}"
