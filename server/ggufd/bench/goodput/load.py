"""Load of one rate: times of Poisson arrivals, and what arrives: chat turns, long documents, short questions.

Drawn from a seed, so that two servers get the same arrivals with the same texts at the same rate. Only which chat goes
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
    """A text, and the length of its answer in tokens; with the chat that it is a turn of."""

    text: str
    n_tokens: int
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
    """A request to come, `due_s` after the start of the load; its words are drawn from a source of its own."""

    due_s: float
    kind: RequestKind
    words: Words


class LoadDraw:
    """Draw of a load from `parts`: the same parts give the same load again. `system` begins every chat."""

    def __init__(self, mix: LoadMix, system: str, tokens_per_word: float, parts: tuple[object, ...]) -> None:
        self._mix = mix
        self._system = ChatLine(system, mix.system)
        self._tokens_per_word = tokens_per_word
        self._parts = parts
        self._chats = ChatPool(self._begin, mix.n_chats)

    def arrivals(self, n: int, rate: float) -> list[Arrival]:
        """`n` requests of a Poisson process of so many a second."""
        source = self._words("arrivals").random
        kinds = self._mix.kinds(n)
        source.shuffle(kinds)
        times = poisson(source, n, rate)
        return [self.arrival(i, *one) for i, one in enumerate(zip(kinds, times, strict=True))]

    def arrival(self, number: int, kind: RequestKind, due_s: float = 0.0) -> Arrival:
        """The request of this number."""
        return Arrival(due_s, kind, self._words("request", number))

    def prompt(self, arrival: Arrival) -> LoadPrompt:
        """What is asked now. A chat that it takes is given back by `done`."""
        words, mix = arrival.words, self._mix
        match arrival.kind:
            case RequestKind.DOCUMENT:
                text = f"{words.text(drawn(words, mix.document))}\n\n{_ORDER}"
                return LoadPrompt(text, drawn(words, mix.summary))
            case RequestKind.QUESTION:
                return LoadPrompt(words.text(drawn(words, mix.message)), drawn(words, mix.answer))
            case RequestKind.CHAT:
                n_message, n_answer = drawn(words, mix.message), drawn(words, mix.answer)
                message = words.text(n_message)
                chat = self._chats.take(words.random)  # drawn last: it differs between servers, the rest does not
                return LoadPrompt(chat.ask(message, n_message), n_answer, chat)

    def done(self, prompt: LoadPrompt, answer: tuple[str, int] | None) -> None:
        """Let the prompt's chat, where it is a turn of one, go on after its answer; None is a failed request."""
        if prompt.chat is not None:
            self._chats.give_back(prompt.chat, answer)

    def _begin(self) -> LoadChat:
        return LoadChat(self._system, self._mix.turns, self._mix.needs)

    def _words(self, *parts: object) -> Words:
        return Words(self._tokens_per_word, *self._parts, *parts)


def drawn(words: Words, span: tuple[int, int]) -> int:
    """A length from the span, both ends included."""
    return words.random.randint(*span)


def poisson(source: random.Random, n: int, rate: float) -> list[float]:
    """Times of `n` arrivals of a Poisson process, given that the last of them comes at `n / rate`.

    Under this condition every draw offers exactly the rate, while short spells are as crowded as chance makes them.
    """
    gaps = [source.expovariate(1.0) for _ in range(n)]
    scale = n / rate / sum(gaps)
    return [scale * moment for moment in itertools.accumulate(gaps)]
