"""Chats of a load, whose next turn waits for the last answer. Knows no server and no clock."""

from __future__ import annotations

import random
from collections.abc import Callable

from ggufd.bench.scenarios.chat import ChatLine, History

_NAME_TOKENS = 3
"""Tokens of a speaker's name before a line, as the client estimates them."""


class LoadChat:
    """One chat under the system prompt: a growing history, sent whole with every message.

    `n_context` is what its client keeps it under; its turns fit.
    """

    def __init__(self, system: ChatLine, turns: int, n_context: int) -> None:
        self.turns_left = turns
        self._history = History(system, n_context)

    @staticmethod
    def turn_tokens(n_message: int) -> int:
        """Tokens that a turn adds beside its answer."""
        return n_message + 2 * _NAME_TOKENS

    def ask(self, message: str, n_tokens: int) -> str:
        """The prompt of the next turn, with this message at its end."""
        self.turns_left -= 1
        self._history.messages.append(ChatLine(f"Bob: {message}", n_tokens + _NAME_TOKENS))
        return self._history.prompt()

    def hear(self, text: str, n_tokens: int) -> None:
        """Take the answer into the history, as the server wrote it."""
        self._history.messages.append(ChatLine(f"Alice:{text}", n_tokens + _NAME_TOKENS))


class ChatPool:
    """Chats of a load, `n` at least.

    Arrivals wait for nobody: each takes one of the chats that have their answer, by chance, and where all of them wait
    a new one begins. So a slow server gets shorter histories than a fast one, never fewer requests. A chat that has had
    all its turns, or whose request failed, makes room for a new one.
    """

    def __init__(self, begin: Callable[[], LoadChat], n: int) -> None:
        self._begin = begin
        self._ready = [begin() for _ in range(n)]

    def take(self, source: random.Random) -> LoadChat:
        """A chat that waits for no answer."""
        if not self._ready:
            return self._begin()
        return self._ready.pop(source.randrange(len(self._ready)))

    def give_back(self, chat: LoadChat, answer: tuple[str, int] | None) -> None:
        """The chat with its answer and the answer's tokens; None where the request failed."""
        if answer is not None:
            chat.hear(*answer)
        self._ready.append(chat if answer is not None and chat.turns_left > 0 else self._begin())
