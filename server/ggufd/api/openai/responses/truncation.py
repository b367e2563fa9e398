"""`truncation: auto`: drop the oldest messages of a conversation that does not fit, but no system message."""

from __future__ import annotations

from collections.abc import Callable

from ggufd.api.answer.conversation import Conversation
from ggufd.api.request.chat.schemas import ChatRequest
from ggufd.errors import ContextLengthExceeded

_SYSTEM = ("system", "developer")


async def shortened(
    chat: ChatRequest, conversation_of: Callable[[ChatRequest], Conversation], n_ctx: int, error: ContextLengthExceeded
) -> tuple[ChatRequest, int]:
    """The request with as much of the conversation's end as leaves a quarter of `n_ctx`; how many messages went.

    That much room makes the next cut rare, and between two cuts everything is reused from the cache. It is cut before
    messages of the user, so that no result loses its call. Raises `error` when not even the last turn fits.
    """
    n_system = next((i for i, message in enumerate(chat.messages) if message["role"] not in _SYSTEM), 0)
    system, rest = chat.messages[:n_system], chat.messages[n_system:]
    cuts = [index for index, message in enumerate(rest) if message["role"] == "user" and index > 0]
    best = None
    low, high = 0, len(cuts)
    while low < high:
        middle = (low + high) // 2
        shorter = chat.model_copy(update={"messages": (*system, *rest[cuts[middle] :])})
        if len((await conversation_of(shorter).render()).tokens) <= n_ctx * 3 // 4:
            best, high = (shorter, cuts[middle]), middle
        else:
            low = middle + 1
    if best is None:
        raise error
    return best
