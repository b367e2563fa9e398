"""Checkpoints: where in a prompt its state is saved, for a model whose cache cannot be cut to a prefix.

Recurrent state and a sliding window hold the end of what was read, not how it was before. A prompt that begins like an
earlier one can then go on only from a state that was saved on the way. States are saved where chats part: at the end
of the first message (a shared system prompt), of the last ones (edits), before the last token (another answer to the
same prompt), and where this prompt left an earlier one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

_MIN_TOKENS = 64
"""A shorter prefix is computed again, and checkpoints are at least so far apart."""

_N_LAST = 3
"""So many ends of messages, counted from the last, are checkpoints."""


def checkpoints_of(
    prompt: Sequence[int],
    message_ends: Collection[int],
    n_past: int,
    n_parted: int,
    whole: Callable[[int], int] = lambda n: n,
) -> list[int]:
    """Lengths of prefixes of `prompt`, ascending, after which its state is saved.

    `message_ends` are the tokens that end a message, `n_past` tokens are computed already, and at `n_parted` the prompt
    leaves one that was computed before (0: it does not). `whole` makes a length one that ends within no image.
    """
    ends = [place + 1 for place, token in enumerate(prompt) if token in message_ends]
    last = whole(len(prompt) - 1)
    wanted = sorted({last, n_parted, *ends[:1], *ends[-_N_LAST:]}, reverse=True)
    chosen: list[int] = []
    for length in wanted:
        is_far = not chosen or chosen[-1] - length >= _MIN_TOKENS
        if is_far and n_past < length <= last and length >= _MIN_TOKENS:
            chosen.append(length)
    return chosen[::-1]
