"""Turns between running sequences with different LoRA adapters: a context has one set of adapters at a time.

The least recently served set is next; a new set comes after those that wait already, so that no set starves.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from ggufd.engine.messages.requests import Scales
from ggufd.engine.sequence.sequence import SequenceState


class AdapterTurns:
    """Least-recently-served order of the adapter sets of running sequences."""

    def __init__(self) -> None:
        self._time = 0
        self._served: dict[Scales, int] = {}

    def next(self, running: SequenceOf[SequenceState]) -> list[SequenceState]:
        """Sequences of `running` whose adapters are applied in the next step."""
        wanted = dict.fromkeys(sequence.request.adapters for sequence in running)
        if len(wanted) <= 1:
            self._served.clear()
            return list(running)
        self._served = {scales: self._served.get(scales, self._time) for scales in wanted}
        chosen = min(wanted, key=self._served.__getitem__)
        self._time += 1
        self._served[chosen] = self._time
        return [sequence for sequence in running if sequence.request.adapters == chosen]
