"""Costs of steps and of prompts, for whatever decides by time."""

from __future__ import annotations

from collections.abc import Sequence

from ggufd.engine.costs.cost_model import CostModel, Weights
from ggufd.engine.costs.step_shape import TILE, SlotRows, StepShape, shape_of

_SMOOTHING = 0.3
_FIRST_CHUNK = 128.0

_LEARNED_STEPS = 200
"""Steps from which on what was learned is worth keeping."""

_LEAST_S = 1e-9
"""Least seconds of a row, where a fit found none."""


class StepCosts:
    """Costs of a context that computes `n_ubatch` rows at once. Times are 0 while nothing is known.

    `known` are weights that an earlier start has learned.
    """

    def __init__(self, n_ubatch: int = 512, known: Weights | None = None) -> None:
        self.model = CostModel(known)
        self._n_ubatch = n_ubatch
        self._decode = StepShape()
        self._chunk = min(_FIRST_CHUNK, float(n_ubatch))

    def record(self, parts: Sequence[SlotRows], seconds: float, *, n_prefill: int) -> float:
        """Learn from a batch, `n_prefill` of whose rows are of prompts; the seconds that were expected of it."""
        shape = shape_of(parts, self._n_ubatch)
        expected_s = self.model.record(shape, seconds)
        if n_prefill:
            self._chunk += _SMOOTHING * (min(n_prefill, self._n_ubatch) - self._chunk)
        elif shape.n_rows == len(parts):
            self._decode = shape
        return expected_s

    def seconds(self, parts: Sequence[SlotRows]) -> float:
        """Expected seconds of a batch."""
        return self.model.seconds(shape_of(parts, self._n_ubatch))

    @property
    def is_known(self) -> bool:
        """Whether there is a measurement, of this start or an earlier one."""
        return self.model.weights is not None

    @property
    def learned(self) -> Weights | None:
        """What a later start may begin with; None after too few steps."""
        return self.model.weights if self.model.n_steps >= _LEARNED_STEPS else None

    @property
    def decode_s(self) -> float:
        """Expected seconds of a step that decodes what the last such step did: a token of each sequence, no draft."""
        return self.model.seconds(self._decode) if self._decode.n_rows else 0.0

    def prefill_s(self, n_tokens: float, n_past: float = 0) -> float:
        """Expected seconds of a prefill of so many tokens behind `n_past`, in chunks as the last ones were."""
        weights = self.model.weights
        if weights is None or n_tokens <= 0:
            return 0.0
        n_attended = n_tokens * (n_past + n_tokens / 2)
        is_tiled = self._chunk >= TILE
        shape = (n_tokens / self._chunk, n_tokens, 0 if is_tiled else n_attended, n_attended if is_tiled else 0)
        return weights.seconds(StepShape(*shape))

    def n_affordable(self, seconds: float, n_past: int) -> int:
        """Tokens of a prompt behind `n_past` that take so many seconds in one pass; 0 where not even one does."""
        weights = self.model.weights
        assert weights is not None
        left_s = seconds - weights.pass_s
        if left_s <= 0:
            return 0
        tiled = int(left_s / max(_LEAST_S, weights.row_s + n_past * weights.attended_tiled_s))
        if tiled >= TILE:
            return tiled
        return min(TILE - 1, int(left_s / max(_LEAST_S, weights.row_s + n_past * weights.attended_s)))
