"""Chats as programs send them: prompts of ChatML, and of text completion, turn after turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ggufd.chat.advice.advisor import CacheAdvisor, LostPrefix
from ggufd.chat.advice.chats import PromptTurn
from ggufd.chat.advice.evidence import CacheFinding

Messages = Sequence[tuple[str, str]]

RULES = "".join(
    f"Rule {number} of the harbour: never leave the quay without rope number {number}. " for number in range(20)
)
OWNER = "ada"


class Clock:
    """The wall's clock, set by hand."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


def chatml(messages: Messages) -> str:
    """A prompt of ChatML that asks for an answer."""
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in messages) + "<|im_start|>assistant\n"


def story(messages: Messages) -> str:
    """A prompt of text completion, with names and without tags."""
    names = {"system": "", "user": "Bob: ", "assistant": "Alice: "}
    return "".join(f"{names[role]}{text}\n" for role, text in messages) + "Alice:"


def llama3(messages: Messages) -> str:
    """A prompt of Llama 3, whose tags share their lines with the texts."""
    turns = [f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>" for role, text in messages]
    return "<|begin_of_text|>" + "".join(turns) + "<|start_header_id|>assistant<|end_header_id|>\n\n"


def mistral(messages: Messages) -> str:
    """A prompt of Mistral, which has no line ends."""
    forms = {"system": "[INST] {}\n\n", "user": "[INST] {}[/INST]", "assistant": " {}</s>"}
    return "<s>" + "".join(forms[role].format(text) for role, text in messages)


TEMPLATES = (chatml, story, llama3, mistral)


def answer(turn: int, topic: str = "ships") -> str:
    return f"Answer {turn}, on {topic}: it is a long story. Nobody knows how it ended, not even captain {turn}."


def question(turn: int, topic: str = "ships") -> str:
    return f"Question {turn} on {topic}: what happened then?"


def talk(n_turns: int, topic: str = "ships") -> list[tuple[str, str]]:
    """The messages of a chat when the user has asked `n_turns` times."""
    messages = []
    for turn in range(n_turns):
        messages += [("user", question(turn, topic)), ("assistant", answer(turn, topic))]
    return messages[:-1]


class Sent(NamedTuple):
    """A prompt, and what is answered to it."""

    prompt: str
    answer: str
    messages: Messages = ()
    tools: tuple[str, ...] = ()


class Slot:
    """A cache of one slot: it holds the last prompt and its answer. A token is a character, a second a thousand."""

    def __init__(self) -> None:
        self.held: list[int] = []

    def compute(self, sent: Sent) -> PromptTurn:
        """The turn, with what was computed of it."""
        tokens = [ord(character) for character in sent.prompt]
        n_cached = 0
        while n_cached < min(len(tokens) - 1, len(self.held)) and tokens[n_cached] == self.held[n_cached]:
            n_cached += 1
        self.held = [*tokens, *map(ord, sent.answer)]
        n_computed = len(tokens) - n_cached
        messages = [{"role": role, "content": text} for role, text in sent.messages]
        return PromptTurn(sent.prompt, tokens, sent.answer, n_computed, n_computed / 1000, messages, sent.tools)


def send(prompts: Iterable[Sent], advisor: CacheAdvisor | None = None) -> tuple[list[LostPrefix], list[CacheFinding]]:
    """Send these prompts to one slot: what was lost in each turn, and the findings at the end."""
    advisor, slot = advisor or CacheAdvisor(Clock()), Slot()
    lost = [advisor.observe(OWNER, slot.compute(sent)) for sent in prompts]
    advisor.check_integrity()
    return [one for one in lost if one is not None], advisor.findings(OWNER)


def turns(first: int, last: int) -> Iterator[int]:
    """The numbers of the user's questions, from the first to the last."""
    yield from range(first, last + 1)
