"""What a request may name as an image, and how large that may be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ggufd.images.decoding.limits import DecodeLimits


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits of one image. `hosts` may be fetched from (`*` is any), `media_path` holds the files that may be named."""

    hosts: tuple[str, ...] = ()
    media_path: Path | None = None
    max_pixels: int = DecodeLimits().max_pixels
    max_bytes: int = 20_000_000
    timeout_s: float = DecodeLimits().timeout_s

    @property
    def decoding(self) -> DecodeLimits:
        """The decoder's share of them."""
        return DecodeLimits(self.max_pixels, self.timeout_s)


def too_large(max_bytes: int) -> str:
    """Message about a file that is too large."""
    return f"The image's file is larger than {max_bytes:,} bytes. Send it smaller."
