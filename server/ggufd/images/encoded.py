"""Encoded image: what stands in a prompt in its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ggufd.engine.messages.images import ImageRows, ImageSpan, row_tokens


class EncodedImage(NamedTuple):
    """Parts that stand in a prompt in place of an image, in order.

    Tuples of numbers are tokens that the projector's family puts around rows, `ImageRows` are the rows.
    """

    parts: tuple[tuple[int, ...] | ImageRows, ...]

    @property
    def rows(self) -> Iterator[ImageRows]:
        """The rows of the image, tile by tile."""
        return (part for part in self.parts if isinstance(part, ImageRows))

    @property
    def n_rows(self) -> int:
        return sum(rows.n_rows for rows in self.rows)

    @property
    def n_tokens(self) -> int:
        """Places that it takes in a prompt: its rows and the tokens around them."""
        return sum(part.n_rows if isinstance(part, ImageRows) else len(part) for part in self.parts)

    def prompt(self, start: int) -> tuple[tuple[int, ...], tuple[ImageSpan, ...]]:
        """Its tokens and rows as they stand in a prompt from index `start` on, and the spans of the rows there."""
        tokens: list[int] = []
        spans: list[ImageSpan] = []
        for part in self.parts:
            if isinstance(part, ImageRows):
                spans.append(ImageSpan(start + len(tokens), part))
                tokens += row_tokens(part.digest, part.n_rows)
            else:
                tokens += part
        return tuple(tokens), tuple(spans)
