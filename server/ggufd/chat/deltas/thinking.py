"""Reasoning tags such as `<think>`: detection in a template, parsing in an answer. Harmony has its own format.

Knows nothing of requests.
"""

from __future__ import annotations

from dataclasses import dataclass

from ggufd.chat.deltas.reader import Reader, Steps
from ggufd.chat.deltas.writer import AnswerWriter


@dataclass(frozen=True, slots=True)
class Thinking:
    """Tags around reasoning. `reopening` is a text that resumes it right after `closing`, "" for none."""

    opening: str
    closing: str
    reopening: str = ""


USUAL = Thinking("<think>", "</think>")

KNOWN: tuple[Thinking, ...] = (
    Thinking("<seed:think>", "</seed:think>"),
    Thinking("[THINK]", "[/THINK]"),
    Thinking("<|START_THINKING|>", "<|END_THINKING|>"),
    Thinking("<|inner_prefix|>", "<|inner_suffix|>"),
    Thinking("<|channel>thought\n", "<channel|>"),
    Thinking("<reasoning>", "</reasoning>"),
    USUAL,
)


def thinking_of(template: str) -> Thinking | None:
    """Tags that a template writes or looks for; None for a template without reasoning."""
    return next((known for known in KNOWN if known.opening.strip() in template or known.closing in template), None)


def opened_by(thinking: Thinking, prompt: str, begun: str) -> str:
    """End of a prompt from an open reasoning tag on; "" when no reasoning is open.

    `begun` is the answer that the prompt ends with, when one is continued.
    """
    opening, before = thinking.opening.strip(), prompt[: len(prompt) - len(begun)]
    if opening in begun or thinking.closing in begun:
        start = begun.rfind(opening)
        return begun[start:] if start > begun.rfind(thinking.closing) else ""
    return opening + before[len(before.rstrip()) :] + begun if before.rstrip().endswith(opening) else ""


def read_thinking(reader: Reader, answer: AnswerWriter, thinking: Thinking, opened: str) -> Steps[None]:
    """Parse reasoning at the beginning of an answer, if there is any, closing tag included."""
    if not opened:
        if not (yield from _is_opened(reader, thinking)):
            return
        yield from reader.blanks()
        yield from reader.expect(thinking.opening.strip())
    yield from reader.until((thinking.closing,), answer.reasoning)
    answer.end_reasoning()
    yield from reader.blanks()


def keep_thinking(reader: Reader, answer: AnswerWriter, thinking: Thinking, opened: str) -> Steps[None]:
    """Parse the same, but as content, with both tags."""
    if opened:
        answer.raw(opened)
    elif not (yield from _is_opened(reader, thinking)):
        return
    answer.is_thinking = True
    answer.raw((yield from reader.until((thinking.closing,), answer.raw, keeps_cut=True)))
    answer.end_reasoning()


def _is_opened(reader: Reader, thinking: Thinking) -> Steps[bool]:
    """Whether an opening tag comes next; blanks before it are skipped, and kept when there is no tag."""
    opening = thinking.opening.strip()
    return bool((yield from reader.begins((opening, f"\n{opening}", f"\n\n{opening}"))))
