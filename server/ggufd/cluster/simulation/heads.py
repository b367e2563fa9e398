"""Head of a text completion's prompt: how many characters of it should tell the conversation.

Too many, and a prompt that is not as long yet has another home in its next turn, which computes its history anew. Too
few, and all chats of a caller with one character have one home. Measured over chats without any text before them, and
over role play: a character and a greeting before the first message, the same for all chats with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ggufd.cluster.routing.router import BYTES_PER_TOKEN
from ggufd.cluster.simulation.workload import ANSWER_TOKENS, PROMPT_TOKENS, ChatWorkload

SIZES = (512, 1024, 2048, 4096, 8192)

CHARACTER_TOKENS = 1000.0
"""Mean of a character with its greeting, log-normal. No paper prints it; authors are told to stay around this."""


@dataclass(frozen=True, slots=True)
class HeadFigures:
    """What a length of the head does: share of the histories' tokens that follow their home, and chats told apart."""

    size: int
    stays: float
    stays_in_role_play: float
    told_apart: float


def head_figures(size: int, n_chats: int = 4000, seed: int = 1) -> HeadFigures:
    """Figures of one length, over so many chats."""
    workload = ChatWorkload(0, seed)
    plain = [_stays(workload, size, 0.0) for _ in range(n_chats)]
    cards = [workload.length(CHARACTER_TOKENS) for _ in range(n_chats)]
    role_play = [_stays(workload, size, card) for card in cards]
    return HeadFigures(
        size, _share(plain), _share(role_play), sum(card * BYTES_PER_TOKEN < size for card in cards) / n_chats
    )


def _stays(workload: ChatWorkload, size: int, before: float) -> tuple[float, float]:
    """Tokens of history in a chat's later turns whose prompt was as long as the head a turn ago, and all of them."""
    at_home = history = 0.0
    prompt = before + workload.length(PROMPT_TOKENS)
    while workload.goes_on():
        is_home = prompt * BYTES_PER_TOKEN >= size
        known = prompt + workload.length(ANSWER_TOKENS)
        at_home += known if is_home else 0.0
        history += known
        prompt = known + workload.length(PROMPT_TOKENS)
    return at_home, history


def _share(counted: list[tuple[float, float]]) -> float:
    return sum(one for one, _ in counted) / max(1.0, sum(every for _, every in counted))
