"""chat: one role-play chat as a frontend sends it, whole history each time, until it outgrows the context.

Now and then the last answer is regenerated, or the last message is rewritten (an edit). When the history no longer
fits, the client drops the oldest messages behind the character's card, and goes on doing so every turn.
"""

from __future__ import annotations

import asyncio
import enum
import statistics
from dataclasses import dataclass, field

from ggufd.bench.measure.client import TimedAnswer
from ggufd.bench.measure.figures import Better, Metric, common_prefix
from ggufd.bench.measure.site import Case, Figure, Site, Sizes
from ggufd.bench.measure.words import tokens

NAME = "chat"
CARD_SHARE = 7  # the card takes a seventh of the context
MESSAGE = 32
REGENERATE_EVERY = 4
EDIT_AT = (3, 10, 18)


class Kind(enum.Enum):
    """Reason of a request of the client."""

    FIRST = "first turn"
    TURN = "a turn"
    REGENERATED = "a regenerated answer"
    EDIT = "an edit"
    TRIMMED = "a turn of a trimmed history"


@dataclass(frozen=True, slots=True)
class ChatLine:
    """One line of the chat; `tokens` as the client estimates them."""

    text: str
    tokens: int


@dataclass(slots=True)
class History:
    """What the client remembers. `dropped` messages from the beginning are no longer sent."""

    card: ChatLine
    budget: int
    messages: list[ChatLine] = field(default_factory=list)
    dropped: int = 0

    def prompt(self) -> str:
        """The text to continue: card, messages that fit, and the opened answer."""
        self._trim()
        return "\n".join([self.card.text, *(message.text for message in self.messages[self.dropped :]), "Alice:"])

    def _trim(self) -> None:
        while self.dropped < len(self.messages) - 1 and self._tokens() > self.budget:
            self.dropped += 1

    def _tokens(self) -> int:
        return self.card.tokens + sum(message.tokens for message in self.messages[self.dropped :])


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of the chat and its answer."""

    kind: Kind
    prompt: str
    answer: TimedAnswer


def cases(sizes: Sizes) -> list[Case]:
    """The one case."""
    return [Case(NAME, f"{sizes.chat_turns} turns", sizes.chat_context, _measure)]


async def _measure(site: Site) -> list[Figure]:
    asks = await _play(site)
    figures = []
    for kind in (Kind.TURN, Kind.REGENERATED, Kind.EDIT, Kind.TRIMMED):
        waits = tuple(ask.answer.wait for ask in asks if ask.kind is kind)
        if waits:
            metric = Metric(NAME, kind.value, "median TTFT", "s", Better.LOWER)
            figures.append(Figure(metric, statistics.median(waits), waits))
    computed = await _computed(site, asks)
    return figures if computed is None else [*figures, computed]


async def _play(site: Site) -> list[Ask]:
    """The whole chat, turn by turn."""
    sizes = site.sizes
    card = ChatLine(f"{site.words.text(sizes.chat_context // CARD_SHARE)}\n", sizes.chat_context // CARD_SHARE)
    # The client's estimates err by a few percent; real clients keep such a margin, too.
    history = History(card, budget=round(sizes.chat_context * 0.93) - sizes.answer)
    asks: list[Ask] = []
    for turn in range(1, sizes.chat_turns + 1):
        dropped = history.dropped
        history.messages.append(_message(site))
        await asyncio.sleep(sizes.pause)
        asks.append(await _ask(site, history, Kind.TURN if asks else Kind.FIRST, dropped))
        if turn in EDIT_AT:
            history.messages[-2:] = [_message(site)]
            asks.append(await _ask(site, history, Kind.EDIT, history.dropped))
        if turn % REGENERATE_EVERY == 0:
            history.messages.pop()
            asks.append(await _ask(site, history, Kind.REGENERATED, history.dropped))
    return asks


def _message(site: Site) -> ChatLine:
    return ChatLine(f"Bob: {site.words.text(MESSAGE)}", MESSAGE + 3)


async def _ask(site: Site, history: History, kind: Kind, dropped: int) -> Ask:
    """Send the history; its answer becomes part of it."""
    prompt = history.prompt()
    answer = await site.client.complete(prompt, site.sizes.answer)
    history.messages.append(ChatLine(f"Alice:{answer.text}", answer.tokens + 2))
    return Ask(Kind.TRIMMED if history.dropped > dropped else kind, prompt, answer)


async def _computed(site: Site, asks: list[Ask]) -> Figure | None:
    """Prompt tokens that the server computed over those it had to; None when it does not say what it reused.

    It had to compute what no earlier prompt with its answer begins with, and one token at least, which gives the
    logits. Lengths come from `/tokenize`, or from the share of characters where there is none.
    """
    computed, least = 0, 0
    seen: list[list[int] | str] = []
    for ask in asks:
        total, cached = ask.answer.prompt_tokens, ask.answer.cached_tokens
        if total is None or cached is None:
            return None
        prompt = await _measurable(site, ask.prompt)
        known = max((common_prefix(prompt, text) for text in seen), default=0)
        if ask.kind is not Kind.FIRST:
            computed += total - cached
            least += max(1, round(total * (1 - known / len(prompt))))
        seen.append(await _measurable(site, ask.prompt + ask.answer.text))
    metric = Metric(NAME, f"{site.sizes.chat_turns} turns", "computed over least prompt tokens", "x", Better.LOWER)
    return Figure(metric, computed / least, (float(computed), float(least))) if least else None


async def _measurable(site: Site, text: str) -> list[int] | str:
    """The text as tokens, or as itself where the server does not tokenize."""
    found = await tokens(site.client, text)
    return text if found is None else found
