"""How many examples a property is tried with: a share of them in the suite that runs before every commit."""

from __future__ import annotations

from hypothesis import settings

_USUAL = settings.get_profile("default").max_examples


def examples(n: int) -> int:
    """`n` where a property without a number of its own gets Hypothesis's usual one; the same share of it elsewhere."""
    return max(1, n * settings().max_examples // _USUAL)
