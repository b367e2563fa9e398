"""Load of growing chats: each sends its whole history with every turn, and a few clients play them in turns.

A chat's next turn comes after those of all the others, so that where it goes is chosen anew. Knows no Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ggufd.bench.measure.client import BenchError, Client, TimedAnswer
from ggufd.bench.measure.figures import Better, Metric, percentile
from ggufd.bench.measure.site import Figure
from ggufd.bench.measure.words import Words


@dataclass(frozen=True, slots=True)
class ChatLoad:
    """Sizes of a load; lengths in tokens, of which the first message's and the others' are about right."""

    n_chats: int
    n_turns: int
    n_clients: int
    opening: int = 300
    message: int = 40
    answer: int = 24

    @property
    def case(self) -> str:
        return f"{self.n_chats} chats, {self.n_turns} turns, {self.n_clients} clients"


@dataclass(slots=True)
class PlayedLoad:
    """What became of a load: the answers, those to first turns among them, and what the other requests failed of."""

    answers: list[TimedAnswer]
    first: list[TimedAnswer]
    errors: list[str]
    seconds: float

    def figures(self, scenario: str, case: str) -> list[Figure]:
        """Rows of the table. Raises BenchError where nothing was answered."""
        if not self.answers:
            raise BenchError(f"no request was answered: {self.errors[0] if self.errors else 'there was none'}")
        begun = {id(one) for one in self.first}
        later = [one for one in self.answers if id(one) not in begun]
        waits = [one.wait for one in self.answers]
        values = [
            ("prompt tokens from the cache", "%", Better.HIGHER, 100 * cached_share(self.answers)),
            ("the same, after first turns", "%", Better.HIGHER, 100 * cached_share(later)),
            ("requests completed", "1/s", Better.HIGHER, len(self.answers) / self.seconds),
            ("requests failed", "", Better.LOWER, float(len(self.errors))),
            ("TTFT, p50", "ms", Better.LOWER, 1e3 * percentile(waits, 0.5)),
            ("TTFT, p95", "ms", Better.LOWER, 1e3 * percentile(waits, 0.95)),
        ]
        return [Figure(Metric(scenario, case, name, unit, better), value) for name, unit, better, value in values]


def cached_share(answers: Sequence[TimedAnswer]) -> float:
    """Part of all prompts' tokens that was not computed. Raises BenchError where a server does not count them."""
    counted = [(one.cached_tokens, one.prompt_tokens) for one in answers]
    cached = [one for one, _ in counted if one is not None]
    prompts = [one for _, one in counted if one is not None]
    if len(cached) < len(answers) or len(prompts) < len(answers):
        raise BenchError("the server does not say in `usage` how many tokens of a prompt came from its cache")
    return sum(cached) / sum(prompts) if prompts else 0.0


class GrowingChat:
    """One conversation with texts of its own, which no server has seen."""

    def __init__(self, load: ChatLoad, words: Words) -> None:
        self.n_played = 0
        self._load = load
        self._words = words
        self._messages: list[dict[str, str]] = []

    async def turn(self, client: Client) -> TimedAnswer:
        """The next message and its answer, which then belongs to the history. Raises BenchError, and is over too."""
        load, self.n_played = self._load, self.n_played + 1
        text = self._words.text(load.message if self._messages else load.opening)
        said = [*self._messages, {"role": "user", "content": text}]
        stream = await client.start("", load.answer, {"messages": said})
        try:
            answer = await stream.answer()
        finally:
            stream.close()
        self._messages = [*said, {"role": "assistant", "content": answer.text}]
        return answer


async def play(client: Client, load: ChatLoad, *seed: object) -> PlayedLoad:
    """Play a load at one server; with the same seed the same texts. What fails is counted, and its chat goes on."""
    chats = deque(GrowingChat(load, Words(1.3, *seed, number)) for number in range(load.n_chats))
    found = PlayedLoad([], [], [], 0.0)
    begun_s = time.perf_counter()

    async def one_client() -> None:
        while chats:
            chat = chats.popleft()
            try:
                answer = await chat.turn(client)
            except BenchError as error:
                found.errors.append(str(error))
            else:
                found.answers.append(answer)
                if chat.n_played == 1:
                    found.first.append(answer)
            if chat.n_played < load.n_turns:
                chats.append(chat)

    await asyncio.gather(*(one_client() for _ in range(load.n_clients)))
    found.seconds = time.perf_counter() - begun_s
    return found
