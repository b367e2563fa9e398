"""Context shift: a full slot drops the older half of its tokens, behind what is kept, and its text goes on.

llama-server's `--context-shift`: what follows the gap moves up, its keys are rotated to their new positions, and
nothing is computed. The moved tokens were computed with the dropped ones before them, so the text differs from that of
a fresh prefill: opt-in. A prompt that does not fit is refused all the same. A chat with images is not shifted: its
answer ends where the slot is full.
"""

from __future__ import annotations

from typing import NamedTuple

from ggufd.engine.messages.requests import EngineRequest
from ggufd.engine.sequence.sequence import SequenceState

_MIN_ROOM = 4
"""So many tokens of a slot are never kept, whatever `n_keep` says: as llama-server."""


class Gap(NamedTuple):
    """The `n` tokens from `start` on, to be dropped."""

    start: int
    n: int


class ContextShift:
    """Context shift policy for slots of `n_ctx` tokens; finds no gap unless `is_on`."""

    def __init__(self, n_ctx: int, *, is_on: bool) -> None:
        self._n_ctx = n_ctx
        self._is_on = is_on

    def limit(self, request: EngineRequest) -> int | None:
        """Most tokens of an answer, None where the end of its slot is its only bound.

        One without a limit of its own gets as many tokens as a slot holds: nobody waits for a text without an end.
        """
        return self._n_ctx if self._can_shift(request) and request.max_tokens is None else request.max_tokens

    def _can_shift(self, request: EngineRequest) -> bool:
        return self._is_on and not request.images

    def is_full(self, sequence: SequenceState) -> bool:
        """Whether the slot holds no token more."""
        return len(sequence.tokens) >= self._n_ctx

    def gap(self, sequence: SequenceState) -> Gap | None:
        """The tokens that a full sequence drops; None where its answer ends here.

        The first token stays always, and what may yet be taken back is needed. A deterministic text ends with its slot.
        """
        if not self._can_shift(sequence.request) or sequence.is_deterministic:
            return None
        n_tokens = len(sequence.tokens)
        start = min(1 + sequence.request.n_keep, self._n_ctx - _MIN_ROOM)
        n = min((n_tokens - 1 - start) // 2, n_tokens - sequence.detokenizer.n_pending - start)
        return Gap(start, n) if n > 0 else None
