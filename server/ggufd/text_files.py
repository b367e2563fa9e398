"""Text files that users write: UTF-8, which some editors begin with a byte order mark."""

from __future__ import annotations

from pathlib import Path


def read(path: Path) -> str:
    """The text, without the mark. Raises OSError, or ValueError in words."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text; save it as UTF-8") from None
