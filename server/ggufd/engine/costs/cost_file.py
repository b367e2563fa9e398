"""File of learned costs: the next start of the same model on the same machine begins with them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ggufd.engine.costs.cost_model import Weights

_MAX_ENTRIES = 64


class CostFile:
    """File at `path` with costs by `key`, which names all that they depend on. None keeps nothing.

    What cannot be read counts as nothing, and what cannot be written is not kept: costs are soon learned again.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path = path
        self._key = key

    def read(self) -> Weights | None:
        return _weights(self._entries().get(self._key))

    def write(self, weights: Weights) -> None:
        """Keep the weights, as the latest of at most 64 entries."""
        if self._path is None:
            return
        others = {key: entry for key, entry in self._entries().items() if key != self._key}
        latest = dict([*others.items(), (self._key, list(weights))][-_MAX_ENTRIES:])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part = self._path.with_name(f"{self._path.name}.part")
            part.write_text(json.dumps(latest, indent=1), encoding="utf-8")
            part.replace(self._path)
        except OSError:
            return

    def _entries(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _weights(entry: object) -> Weights | None:
    """Weights of an entry, if it is four times of which one at least is some."""
    if not isinstance(entry, list) or len(entry) != len(Weights._fields):
        return None
    if not all(isinstance(one, (int, float)) and math.isfinite(one) and one >= 0 for one in entry):
        return None
    return Weights(*map(float, entry)) if any(entry) else None
