"""Interface of scenarios: the sizes and the server they get, the cases and figures they return."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ggufd.bench.measure.client import Client, Stream, TimedAnswer, closing_all
from ggufd.bench.measure.figures import Metric
from ggufd.bench.measure.words import Words


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the measurements. Lengths in tokens, `seconds` and `pause` in seconds.

    `chat_context` is what the client of the chat scenario keeps its history under; `pause` is how long it reads
    before the next turn. `seconds` is how long a chat beside background jobs is watched, at least.
    """

    rounds: int = 3
    streams: tuple[int, ...] = (1, 4, 8, 16)
    decode_tokens: int = 128
    depth: int = 1300
    deep_streams: tuple[int, ...] = (1, 4)
    prefill: tuple[int, ...] = (800, 4000)
    prefix: int = 635
    users: int = 8
    new_prompt: int = 800
    chat_turns: int = 24
    chat_context: int = 2000
    answer: int = 48
    chats: int = 12
    chat_tokens: int = 640
    at_once: tuple[int, ...] = (1, 4)
    jobs: int = 8
    seconds: float = 8.0
    pause: float = 0.0


QUICK = Sizes(
    rounds=1,
    streams=(1, 4),
    decode_tokens=48,
    depth=600,
    deep_streams=(1,),
    prefill=(800,),
    prefix=300,
    users=4,
    new_prompt=400,
    chat_turns=8,
    chat_context=450,
    answer=24,
    chats=6,
    chat_tokens=200,
    seconds=3.0,
)
"""Every scenario once, small: to see that all works, not to publish."""

DEFAULT_SLOTS = 16
"""How many earlier chats fill a server that does not say how many slots it has."""


@dataclass(frozen=True, slots=True)
class MeasuredServer:
    """Measured server, and what it says of itself; None where it does not say. `n_ctx` is tokens of one slot.

    `other` speaks to it with another key, where there is one.
    """

    client: Client
    n_ctx: int | None = None
    n_slots: int | None = None
    model: str | None = None
    build: str | None = None
    other: Client | None = None

    @property
    def slots(self) -> int:
        """Number of slots, assumed where it does not say."""
        return self.n_slots or DEFAULT_SLOTS


@dataclass(frozen=True, slots=True)
class Figure:
    """Value of a metric in one repetition, and the raw samples behind it."""

    metric: Metric
    value: float
    raw: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Site:
    """One repetition of a case on one server. `words` are the repetition's own: no text comes twice."""

    server: MeasuredServer
    words: Words
    sizes: Sizes

    @property
    def client(self) -> Client:
        return self.server.client

    async def together(
        self, prompts: Sequence[str], max_tokens: int, extras: Sequence[Mapping[str, Any]] | None = None
    ) -> list[TimedAnswer]:
        """All the prompts sent at once, each with its `extras`; their answers, in order. On an error all hang up."""
        streams: list[Stream] = []
        pairs = zip(prompts, extras or [{}] * len(prompts), strict=True)
        with closing_all(streams):
            streams.extend(await asyncio.gather(*(self.client.start(one, max_tokens, extra) for one, extra in pairs)))
            return await asyncio.gather(*(stream.answer() for stream in streams))

    async def remember(self, prompts: Sequence[str]) -> None:
        """Prefill prompts one after the other, so that the server caches them."""
        for prompt in prompts:
            await self.client.complete(prompt, 1)


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement, and the context in tokens that its longest sequence needs."""

    scenario: str
    label: str
    needs: int
    measure: Callable[[Site], Awaitable[list[Figure]]]
    streams: int = 1
