"""Prompts that are remembered, one for each chat, and the search for the chat that a prompt belongs to."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ggufd.chat.advice.comparison import common_beginning, n_characters, split_segments
from ggufd.chat.advice.evidence import Evidence
from ggufd.chat.prompt import Message

_SEGMENT_BYTES = 64
_MIN_SHARE = 0.5
_COST_OF_LOSS = 2
"""A character that is lacking counts more than one that is there: a template's tags are in every chat."""

_N_TAIL = 200
_MIN_ANSWER = 4
_N_ANSWER = 40
_MAX_ANSWERS = 4
_END_OF_THOUGHT = "</think>"


class PromptTurn(NamedTuple):
    """One prompt that was computed: its text and tokens, what it was made of, what was answered, and its cost.

    `computed_tokens` of the prompt were not reused; computing them took `prefill_s`.
    """

    text: str
    tokens: Sequence[int]
    answer: str
    computed_tokens: int
    prefill_s: float
    messages: Sequence[Message] = ()
    tools: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class SeenChat:
    """The last prompt of a chat, its place among the turns, and what was seen in them.

    `answers` are words of what was answered to it; `size` is in bytes.
    """

    segments: list[str]
    tokens: array[int]
    size: int
    used_s: float
    tools: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    turn: int = 1
    evidence: dict[tuple[object, ...], Evidence] = field(default_factory=dict)

    @classmethod
    def of(cls, turn: PromptTurn, now_s: float) -> SeenChat:
        """A chat that begins with this prompt."""
        segments = split_segments(turn.text)
        tokens = array("i", turn.tokens)
        size = sys.getsizeof(turn.text) + _SEGMENT_BYTES * len(segments) + tokens.itemsize * len(tokens)
        return cls(segments, tokens, size, now_s, turn.tools, _words_of(turn.answer))

    def n_common_tokens(self, earlier: SeenChat) -> int:
        """Tokens that both prompts begin with: their bytes are compared, at the speed of C."""
        return common_beginning(self.tokens.tobytes(), earlier.tokens.tobytes()) // self.tokens.itemsize

    def inherit(self, earlier: SeenChat) -> None:
        """Stand beside an earlier prompt of the same chat, with a copy of what was seen in it."""
        self.turn = earlier.turn
        self.evidence = {place: replace(one) for place, one in earlier.evidence.items()}

    def go_on_from(self, earlier: SeenChat) -> None:
        """Be the next turn."""
        self.inherit(earlier)
        self.turn += 1

    def take_place_of(self, earlier: SeenChat) -> None:
        """Be the same prompt, answered once more: any of the answers may be the one that is gone on from."""
        self.inherit(earlier)
        self.answers = tuple(dict.fromkeys((*self.answers, *earlier.answers)))[:_MAX_ANSWERS]


def _words_of(answer: str) -> tuple[str, ...]:
    """The beginning of an answer's longest segment: frontends cut the ends of answers, and drop their reasoning."""
    said = answer[answer.rfind(_END_OF_THOUGHT) + len(_END_OF_THOUGHT) :] if _END_OF_THOUGHT in answer else answer
    longest = max(split_segments(said), key=len, default="").strip()[:_N_ANSWER].rstrip()
    return (longest,) if len(longest) >= _MIN_ANSWER else ()


def best_matches(chats: Iterable[SeenChat], later: SeenChat) -> list[SeenChat]:
    """The chats that a prompt may belong to, the most likely first: it has most of them, and of that one most.

    Of branches of a chat the most likely is the one that was gone on from.
    """
    segments = set(later.segments)
    found: list[tuple[int, int, SeenChat]] = []
    for place, chat in enumerate(chats):
        n_common = common_beginning(chat.segments, later.segments)
        behind = chat.segments[n_common:]
        n_kept, n_behind = n_characters(one for one in behind if one in segments), n_characters(behind)
        score = n_characters(chat.segments[:n_common]) + n_kept - _COST_OF_LOSS * (n_behind - n_kept)
        if score > 0 and (n_behind <= _N_TAIL or n_kept >= _MIN_SHARE * n_behind):
            found.append((score, place, chat))
    return [chat for _, _, chat in sorted(found, key=lambda one: one[:2], reverse=True)]
