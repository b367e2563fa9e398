"""Where in a prompt its state is worth keeping, for a model whose cache cannot be cut back to a beginning.

Recurrent state, and a cache that keeps only a window, hold the end of what was read and nothing of how it was before.
What begins like an earlier prompt can then go on only from a copy that was made on the way. Copies are made where
chats part: at the end of the first message (what everybody shares), of the last ones (edits), before the last token
(another answer to the same prompt), and where this prompt left an earlier one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

_MIN_TOKENS = 64
"""Less is computed again; so many lie between two copies, too."""

_N_LAST = 3
"""Ends of messages that are kept, from the last backwards."""


def marks_of(prompt: Sequence[int], message_ends: Collection[int], n_past: int, n_parted: int) -> list[int]:
    """Lengths of beginnings of `prompt`, ascending, after which its state should be copied.

    `message_ends` are the tokens that end a message, `n_past` tokens are computed already, and at `n_parted` the prompt
    leaves one that was computed before (0: it does not).
    """
    ends = [place + 1 for place, token in enumerate(prompt) if token in message_ends]
    last = len(prompt) - 1
    wanted = sorted({last, n_parted, *ends[:1], *ends[-_N_LAST:]}, reverse=True)
    marks: list[int] = []
    for mark in wanted:
        is_far = not marks or marks[-1] - mark >= _MIN_TOKENS
        if is_far and n_past < mark <= last and mark >= _MIN_TOKENS:
            marks.append(mark)
    return marks[::-1]
