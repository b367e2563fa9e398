"""Measured costs of copying, saving and computing KV state: whether a copy pays is decided by them."""

from __future__ import annotations

from dataclasses import dataclass, field

from ggufd.engine.costs.step_costs import StepCosts

_COPY_PER_PREFILL = 0.05
"""Copying a token beside computing it, as long as no copy was measured (600 tokens: 11 ms beside 900 ms)."""

_FIRST_PREFILL_S = 2e-3
"""Computing a token of a prompt, as long as nothing was measured."""

_SMOOTHING = 0.2


@dataclass(slots=True)
class CopyCosts:
    """Running estimates, corrected as copies and decodes are measured. Times in seconds."""

    steps: StepCosts = field(default_factory=StepCosts)
    copy_bytes_per_s: float = 1e9
    bytes_per_token: float = 0.0
    save_s_per_token: float = 0.0

    def note_copy(self, n_bytes: int, n_tokens: int, seconds: float) -> None:
        """The KV state of `n_tokens` tokens was copied."""
        self.bytes_per_token = n_bytes / max(1, n_tokens)
        rate = n_bytes / max(seconds, 1e-6)
        self.copy_bytes_per_s += _SMOOTHING * (rate - self.copy_bytes_per_s)

    def note_save(self, n_tokens: int, seconds: float) -> None:
        """The KV state of `n_tokens` tokens was read into host RAM."""
        self.save_s_per_token = seconds / n_tokens

    def measured_copy_s(self, n_tokens: int) -> float:
        """Time to copy so many tokens; 0 before the first copy, so that one is made and measured."""
        return n_tokens * self.bytes_per_token / self.copy_bytes_per_s

    def copy_s(self, n_tokens: int) -> float:
        """The same, with a guess from the cost of prefill before the first copy."""
        if self.bytes_per_token == 0:
            return self.prefill_s(n_tokens) * _COPY_PER_PREFILL
        return self.measured_copy_s(n_tokens)

    def prefill_s(self, n_tokens: int) -> float:
        """Time to compute the first so many tokens of a prompt."""
        return self.steps.prefill_s(n_tokens) or n_tokens * _FIRST_PREFILL_S

    def save_s(self, n_tokens: int) -> float | None:
        """Time to save so many tokens to host RAM; None before the first save."""
        return n_tokens * self.save_s_per_token if self.save_s_per_token else None
