"""Workload of the simulation: chats with turns, lengths and pauses, distributed as papers on traces print them.

    pauses    "KVCache Cache in the Wild" (arXiv 2506.02634), trace A, people in chats: the time until a conversation
              comes back is exponential, and 80 % of it is under 10 minutes. So the mean is 600 s / ln 5 = 373 s.
    turns     "CachedAttention" (arXiv 2403.19708): 73 % of ShareGPT's conversations have more than one turn. A
              conversation goes on with that chance after each: 3.7 turns in the mean.
    lengths   "LMSYS-Chat-1M" (arXiv 2309.11998), table 1: 69.5 tokens a prompt and 214.5 an answer in the mean. Only
              the means are printed; the shape here is log-normal with sigma 1, which is ours.

Of the first two papers summaries were read; the means of the third are not checked against its text.

The number of chats is kept: where one ends, another begins after a pause. So the chats compete for the cache all the
time, which is harder than a trace in which they come one after the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MEAN_PAUSE_S = 600 / math.log(5)
GOES_ON = 0.73
PROMPT_TOKENS, ANSWER_TOKENS = 69.5, 214.5

_SIGMA = 1.0

_DRAWS = 1 << 16
"""Numbers are drawn in advance, so many at once: one by one takes fifty times as long."""


@dataclass(slots=True)
class SimulatedChat:
    """A chat as it is now: which conversation, its turns so far, and the tokens that the next turn repeats."""

    conversation: int
    n_turns: int = 0
    history: int = 0


class ChatWorkload:
    """Random numbers of one run. The same seed gives the same numbers in the same order."""

    def __init__(self, n_chats: int, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._uniform: list[float] = []
        self._normal: list[float] = []
        self.chats = [SimulatedChat(index) for index in range(n_chats)]
        self._n_conversations = n_chats

    def first_turns_s(self) -> NDArray[np.float64]:
        """When each chat comes first: as if all had been there for long."""
        return self._random.exponential(MEAN_PAUSE_S, len(self.chats))

    def pause_s(self) -> float:
        """Time from an answer to the next turn, or to the next conversation."""
        return -MEAN_PAUSE_S * math.log(1 - self.uniform())

    def prompt_tokens(self) -> int:
        """Length of a message."""
        return self.length(PROMPT_TOKENS)

    def answer_tokens(self) -> int:
        """Length of an answer."""
        return self.length(ANSWER_TOKENS)

    def end_turn(self, chat: SimulatedChat, n_tokens: int) -> None:
        """Add a turn to a chat, which goes on or becomes another conversation."""
        chat.n_turns += 1
        chat.history += n_tokens
        if not self.goes_on():
            chat.conversation, chat.n_turns, chat.history = self._n_conversations, 0, 0
            self._n_conversations += 1

    def goes_on(self) -> bool:
        """Whether a conversation has another turn."""
        return self.uniform() < GOES_ON

    def length(self, mean: float) -> int:
        """A length with that mean."""
        return 1 + int(mean * math.exp(_SIGMA * self.normal() - _SIGMA * _SIGMA / 2))

    def uniform(self) -> float:
        """A number from 0 to below 1."""
        if not self._uniform:
            self._uniform = self._random.random(_DRAWS).tolist()
        return self._uniform.pop()

    def normal(self) -> float:
        """A number with mean 0 and deviation 1."""
        if not self._normal:
            self._normal = self._random.standard_normal(_DRAWS).tolist()
        return self._normal.pop()
