"""Costs of steps that are known, for what decides by them."""

from __future__ import annotations

from ggufd.engine.costs.cost_model import Weights
from ggufd.engine.costs.step_costs import StepCosts


def known_costs(
    *,
    pass_s: float = 0.0,
    row_s: float = 0.0,
    attended_s: float = 0.0,
    attended_tiled_s: float = 0.0,
    n_ubatch: int = 512,
) -> StepCosts:
    """Costs with these weights."""
    return StepCosts(n_ubatch, Weights(pass_s, row_s, attended_s, attended_tiled_s))


class FixedCosts(StepCosts):
    """Costs of which nothing is learned: of a step that only decodes, and of a token of a prompt anywhere."""

    def __init__(self, decode_s: float, token_s: float) -> None:
        super().__init__()
        self._decode_s = decode_s
        self._token_s = token_s

    @property
    def decode_s(self) -> float:
        return self._decode_s

    def prefill_s(self, n_tokens: float, n_past: float = 0) -> float:
        return n_tokens * self._token_s
