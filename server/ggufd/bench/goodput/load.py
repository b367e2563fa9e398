"""Load of one rate: times of Poisson arrivals, and what arrives: chat turns, long documents, short questions.

Drawn from seeds, so that two servers get the same arrivals with the same texts at the same rate. Only which chat goes
on depends on the server, as a chat's next turn needs its last answer (`ChatPool`). Knows no HTTP.
"""

from __future__ import annotations

import enum
import itertools
import random
from dataclasses import dataclass
from typing import NamedTuple

from ggufd.bench.goodput.chats import ChatPool, LoadChat
from ggufd.bench.measure.words import Words
from ggufd.bench.scenarios.chat import ChatLine

_ORDER = "Put this into a few words:"
_ORDER_TOKENS = 12


class RequestKind(enum.Enum):
    """Kind of a request of the load."""

    CHAT = "chat turn"
    DOCUMENT = "document"
    QUESTION = "question"


class LoadPrompt(NamedTuple):
    """A text, and the chat that it is a turn of."""

    text: str
    chat: LoadChat | None = None


@dataclass(frozen=True, slots=True)
class LoadMix:
    """Shares of the kinds, and their lengths in tokens; spans are drawn from evenly.

    What is neither a document nor a question is a turn of one of `n_chats` chats, which end after `turns` turns.
    """

    documents: float = 0.15
    questions: float = 0.25
    n_chats: int = 12
    turns: int = 8
    system: int = 200
    message: tuple[int, int] = (15, 45)
    answer: tuple[int, int] = (24, 96)
    document: tuple[int, int] = (400, 900)
    summary: tuple[int, int] = (16, 32)

    @property
    def needs(self) -> int:
        """Tokens of context of the longest request, with a tenth to spare, as lengths are estimates."""
        chat = self.system + self.turns * (LoadChat.turn_tokens(self.message[1]) + self.answer[1])
        document = self.document[1] + _ORDER_TOKENS + self.summary[1]
        return round(1.1 * max(chat, document))

    def spans(self, kind: RequestKind) -> tuple[tuple[int, int], tuple[int, int]]:
        """Lengths of a request's new text and of its answer."""
        return (self.document, self.summary) if kind is RequestKind.DOCUMENT else (self.message, self.answer)

    def kinds(self, n: int) -> list[RequestKind]:
        """Kinds of `n` requests: exactly the shares, so that no rate gets more documents than another by chance."""
        n_documents, n_questions = round(n * self.documents), round(n * self.questions)
        found = [RequestKind.DOCUMENT] * n_documents + [RequestKind.QUESTION] * n_questions
        return (found + [RequestKind.CHAT] * (n - len(found)))[:n]


QUICK_MIX = LoadMix(
    n_chats=3,
    turns=3,
    system=30,
    message=(4, 8),
    answer=(4, 12),
    document=(40, 80),
    summary=(2, 6),
)
"""Small requests of every kind: to see that all works, not to publish."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request to come, `due_s` after the start of the load: lengths in tokens, and a source of its own for words."""

    due_s: float
    kind: RequestKind
    n_prompt: int
    n_answer: int
    words: Words


class LoadDraw:
    """Draw of a load. `system` begins every chat.

    `pattern` is the seed of kinds, lengths and times: loads of one pattern differ in nothing but their rate, so that
    chance does not make one rate harder than the next. `texts` and the pattern are the seed of the words.
    """

    def __init__(
        self, mix: LoadMix, system: str, tokens_per_word: float, pattern: tuple[object, ...], texts: tuple[object, ...]
    ) -> None:
        self._mix = mix
        self._system = ChatLine(system, mix.system)
        self._tokens_per_word = tokens_per_word
        self._texts = (*pattern, *texts)
        self._source = Words(tokens_per_word, *pattern, "pattern").random
        self._chats = ChatPool(self._begin, mix.n_chats)

    def arrivals(self, n: int, rate: float) -> list[Arrival]:
        """`n` requests of a Poisson process of so many a second."""
        kinds = self._mix.kinds(n)
        self._source.shuffle(kinds)
        times = poisson(self._source, n, rate)
        return [self.arrival(i, *one) for i, one in enumerate(zip(kinds, times, strict=True))]

    def arrival(self, number: int, kind: RequestKind, due_s: float = 0.0) -> Arrival:
        """The next request, with a number that no other has."""
        n_prompt, n_answer = (self._source.randint(*span) for span in self._mix.spans(kind))
        return Arrival(due_s, kind, n_prompt, n_answer, Words(self._tokens_per_word, *self._texts, number))

    def prompt(self, arrival: Arrival) -> LoadPrompt:
        """What is asked now. A chat that it takes is given back by `done`."""
        text = arrival.words.text(arrival.n_prompt)
        if arrival.kind is not RequestKind.CHAT:
            return LoadPrompt(text if arrival.kind is RequestKind.QUESTION else f"{text}\n\n{_ORDER}")
        chat = self._chats.take(arrival.words.random)
        return LoadPrompt(chat.ask(text, arrival.n_prompt), chat)

    def done(self, prompt: LoadPrompt, answer: tuple[str, int] | None) -> None:
        """Let the prompt's chat, where it is a turn of one, go on after its answer; None is a failed request."""
        if prompt.chat is not None:
            self._chats.give_back(prompt.chat, answer)

    def _begin(self) -> LoadChat:
        return LoadChat(self._system, self._mix.turns, self._mix.needs)


def poisson(source: random.Random, n: int, rate: float) -> list[float]:
    """Times of `n` arrivals of a Poisson process, given that the last of them comes at `n / rate`.

    Under this condition every draw offers exactly the rate, while short spells are as crowded as chance makes them.
    """
    gaps = [source.expovariate(1.0) for _ in range(n)]
    scale = n / rate / sum(gaps)
    return [scale * moment for moment in itertools.accumulate(gaps)]
