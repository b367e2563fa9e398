"""Figures of what has become of images, for metrics."""

from __future__ import annotations

from typing import NamedTuple

from ggufd.engine.messages.reports import Spread


class ImageFigures(NamedTuple):
    """Figures since the start. `hits` are images whose rows were there, `failed` those that could not be encoded.

    `waiting` images wait for their turn now; `row_bytes` are kept on disk; `exits` are unexpected ends of the encoder.
    """

    encoded: int = 0
    hits: int = 0
    failed: int = 0
    waiting: int = 0
    row_bytes: int = 0
    exits: int = 0
    seconds: Spread = Spread()
    """Times that encodings took."""
