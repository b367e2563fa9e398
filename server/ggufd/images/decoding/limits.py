"""Limits of one image file and of its decoding."""

from __future__ import annotations

from dataclasses import dataclass

MOST_KEPT_PIXELS = 4 << 20
"""Pixels that leave the decoder: larger images are scaled down to them. The projectors that are served take no more."""


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """Limits of a file: pixels by its header, and the processor's time for decoding it."""

    max_pixels: int = 18_000_000
    timeout_s: float = 5.0
