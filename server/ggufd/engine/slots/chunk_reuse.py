"""Chunk reuse: computed tokens behind the common prefix that a prompt has at other positions.

A client that trims a long history drops old messages: what follows them is in the cache, only further on. Moving it is
llama-server's `--cache-reuse`: the keys are rotated to their new positions, nothing is computed. The moved tokens were
computed with the dropped ones before them, so the text differs a little from that of a full prefill: opt-in.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

import numpy as np

from ggufd.engine.backend.tokens import common_prefix


class Move(NamedTuple):
    """A run of `n` cached tokens at position `source` that the prompt has at `target`, which is less."""

    source: int
    target: int
    n: int


def plan_moves(cached: array[int], prompt: array[int], n_prefix: int, n_min: int, limit: int) -> list[Move]:
    """The moves after a common prefix of `n_prefix` tokens, in order and without a gap.

    Each is at least `n_min` tokens; together with the prefix they cover at most `limit` tokens of the prompt.
    """
    moves = []
    source, target = n_prefix, n_prefix
    cache, wanted = np.frombuffer(cached, np.intc), np.frombuffer(prompt, np.intc)[:limit]
    while (start := _find(cache, wanted, source, target, n_min)) is not None:
        n = common_prefix(cache[start:], wanted[target:])
        moves.append(Move(start, target, n))
        source, target = start + n, target + n
    return moves


def _find(
    cache: np.ndarray[tuple[int], np.dtype[np.intc]],
    wanted: np.ndarray[tuple[int], np.dtype[np.intc]],
    source: int,
    target: int,
    n_min: int,
) -> int | None:
    """The first place in the cache from `source` on where the prompt from `target` on goes on for `n_min` tokens."""
    if len(wanted) - target < n_min or len(cache) - source < n_min:
        return None
    head = wanted[target : target + n_min]
    last = len(cache) - n_min + 1
    for start in np.flatnonzero(cache[source:last] == head[0]) + source:
        if np.array_equal(cache[start : start + n_min], head):
            return int(start)
    return None
