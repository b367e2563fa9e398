"""Whose step it is, where running sequences want different LoRA adapters: a context has one set of them at a time.

The set that was served least recently is next; one that is new comes after those that wait already, so that nobody is
kept from their turn by newcomers.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from ggufd.engine.messages.requests import Scales
from ggufd.engine.sequence.sequence import SequenceState


class AdapterTurns:
    """Remembers when every set of adapters that somebody runs with was served last, in steps."""

    def __init__(self) -> None:
        self._time = 0
        self._served: dict[Scales, int] = {}

    def next(self, running: SequenceOf[SequenceState]) -> list[SequenceState]:
        """Those of `running` whose adapters are put over the next step."""
        wanted = dict.fromkeys(sequence.request.adapters for sequence in running)
        if len(wanted) <= 1:
            self._served.clear()
            return list(running)
        self._served = {scales: self._served.get(scales, self._time) for scales in wanted}
        chosen = min(wanted, key=self._served.__getitem__)
        self._time += 1
        self._served[chosen] = self._time
        return [sequence for sequence in running if sequence.request.adapters == chosen]
