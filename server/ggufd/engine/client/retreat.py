"""Retry after out-of-memory: how much of the GPU's memory the next load may take.

An estimate can be wrong, and other programs take memory between the look and the load. Every try is a process of its
own, since only the end of a process surely gives a GPU's memory back.
"""

from __future__ import annotations

_SHARES = (0.85, 0.8, 0.6, 0.0)
"""Shares of what was tried before. The last try is without the GPU, so that there is an end."""


class Retreat:
    """VRAM limits of successive loads, each smaller than what the loader chose before and could not get."""

    def __init__(self) -> None:
        self._tried = 0
        self._n_failed = 0

    def note(self, vram_bytes: int) -> None:
        """Note what the loader is about to take by its own choice; 0 where it was told what to take."""
        self._tried = vram_bytes

    def next_limit(self) -> int | None:
        """Limit in bytes for the next load; None where less would not help."""
        if self._tried == 0 or self._n_failed == len(_SHARES):
            return None
        limit = int(_SHARES[self._n_failed] * self._tried)
        self._n_failed += 1
        self._tried = 0
        return limit

    def end(self) -> None:
        """Start over: the model is loaded, or is loaded anew with all of the GPU to choose from."""
        self._n_failed = 0
        self._tried = 0
