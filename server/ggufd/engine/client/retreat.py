"""Fewer layers on the GPU where what was chosen could not be had: how much of its memory is tried for next.

An estimate can be wrong, and other programs take memory between the look and the load. Every try is a process of its
own, since only the end of a process surely gives a GPU's memory back.
"""

from __future__ import annotations

_SHARES = (0.85, 0.8, 0.6, 0.0)
"""Of what was tried before. The last try is without the GPU, so that there is an end."""


class Retreat:
    """What the loader chose to put on GPUs, and what it may take next when that fails."""

    def __init__(self) -> None:
        self._tried = 0
        self._n_failed = 0

    def note(self, vram_bytes: int) -> None:
        """The loader is about to take so much, by its own choice; 0 where it was told what to do."""
        self._tried = vram_bytes

    def next_limit(self) -> int | None:
        """Bytes that the next try may take; None where less would not help."""
        if self._tried == 0 or self._n_failed == len(_SHARES):
            return None
        limit = int(_SHARES[self._n_failed] * self._tried)
        self._n_failed += 1
        self._tried = 0
        return limit

    def end(self) -> None:
        """It is loaded, or is loaded anew: whatever fails later has the choice again."""
        self._n_failed = 0
        self._tried = 0
