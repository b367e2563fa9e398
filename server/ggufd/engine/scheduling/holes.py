"""Holes between the slots of a batch, filled with a prompt token each.

llama.cpp computes rows of consecutive slots in one pass over the weights. A slot that waits for its prefill between two
decoding ones makes that two passes. One token of its prompt joins them, and is a token less to compute later.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from ggufd.engine.sequence.sequence import SequenceState

_WIDEST = 4
"""Most slots of a hole that is filled: a row takes about a third of a pass."""


def hole_fillers(slots: Iterable[int], waiting: Sequence[SequenceState]) -> list[SequenceState]:
    """Sequences of `waiting` a token of each of which lets rows of the given `slots` share a pass.

    A hole is filled whole or not at all.
    """
    able = {one.slot: one for one in waiting if _is_able(one)}
    found: list[SequenceState] = []
    for left, right in itertools.pairwise(sorted(slots)):
        hole = range(left + 1, right)
        if len(hole) <= _WIDEST and all(slot in able for slot in hole):
            found += [able[slot] for slot in hole]
    return found


def _is_able(one: SequenceState) -> bool:
    """Whether its next token is one of a prompt, without logits, and no place where its prefill has to stop."""
    if one.is_deterministic or one.n_generated or one.n_uncomputed < 2 or one.request.prompt_logprobs:
        return False
    is_image = one.tokens[one.n_past] < 0
    return not is_image and not (one.checkpoints and one.checkpoints[0] <= one.n_past + 1)
