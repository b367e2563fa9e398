"""Pixels of a decoded image: what an encoder takes, whatever the format of the file was."""

from __future__ import annotations

from typing import NamedTuple


class Pixels(NamedTuple):
    """Pixels as RGB, 8 bits each, row-major: `data` has `3 * width * height` bytes."""

    width: int
    height: int
    data: bytes
