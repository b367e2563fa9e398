"""Shapes of a measurement, as llama-batched-bench and llama-bench have them. Plain data, and its flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ggufd.bench.measure.client import BenchError

DEEP_TOKENS = 64
"""How many tokens are written at each depth."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Shape: `n_sequences` prefill `n_prompt` new tokens each, after `n_depth` cached ones, then decode `n_write` each.

    One of `n_prompt` and `n_write` may be 0.
    """

    n_prompt: int
    n_write: int
    n_sequences: int = 1
    n_depth: int = 0

    @property
    def n_ctx(self) -> int:
        """Tokens of context that a sequence needs."""
        return self.n_depth + self.n_prompt + self.n_write + 1

    @property
    def label(self) -> str:
        """Name of a row of the table."""
        if self.n_sequences > 1 or (self.n_prompt and self.n_write):
            plural = "" if self.n_sequences == 1 else "s"
            return f"{self.n_sequences} sequence{plural}, {self.n_prompt} read and {self.n_write} written"
        what = f"{self.n_write:,} written" if self.n_write else f"{self.n_prompt:,} read"
        return f"{what} at depth {self.n_depth:,}" if self.n_depth else what


def batched(n_prompts: Sequence[int], n_writes: Sequence[int], n_sequences: Sequence[int]) -> list[Workload]:
    """Every combination, as llama-batched-bench runs them."""
    return [Workload(pp, tg, pl) for pp in n_prompts for tg in n_writes for pl in n_sequences]


def lone(prompts: Sequence[int], depths: Sequence[int]) -> list[Workload]:
    """Long prompts, then writing at each depth: a sequence alone, as llama-bench runs it."""
    return [*(Workload(n, 0) for n in prompts), *(Workload(0, DEEP_TOKENS, n_depth=depth) for depth in depths)]


def numbers(flag: str, text: str, *, least: int = 1) -> tuple[int, ...]:
    """Parse numbers with commas between; none where `text` is empty. Raises BenchError for anything else."""
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise BenchError(f"{flag} {text!r}: expected numbers from {least} on with commas between, such as 1,4,16")
    return tuple(int(part) for part in parts)
