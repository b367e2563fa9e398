"""Measured load times of models, and what they say of a model that was not loaded yet."""

from __future__ import annotations

from ggufd.model_pool.catalogue import KnownModel

_FIRST_S = 3.0
_FIRST_BYTES_PER_S = 1 << 30
"""Expected before anything was measured: a process that starts, and a disk."""


class LoadTimes:
    """Seconds that the models took to load, drain not included."""

    def __init__(self) -> None:
        self._took_s: dict[str, float] = {}
        self._rates: dict[str, float] = {}

    def note(self, model: KnownModel, took_s: float) -> None:
        """Note a load; of several of one model the latest counts."""
        self._took_s[model.name] = took_s
        if model.size_bytes and took_s > 0:
            self._rates[model.name] = model.size_bytes / took_s

    def forecast_s(self, model: KnownModel) -> float:
        """Expected seconds: as it took last, else as others took for their size."""
        if model.name in self._took_s:
            return self._took_s[model.name]
        size_bytes = model.size_bytes or 0
        if not self._rates:
            return _FIRST_S + size_bytes / _FIRST_BYTES_PER_S
        # A small model's load is mostly the start of a process: its rate says little of a large one.
        return min(self._took_s.values()) + size_bytes / max(self._rates.values())
