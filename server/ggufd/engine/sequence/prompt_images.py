"""Images of a prompt with their embedding rows, mapped from the files that an encoder wrote.

Positions are those of the prompt's tokens. An image is never moved within a sequence, and never cut where a prefix is
reused: a prefix that ends within it is worth no more than what stands before it.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ggufd.engine.messages.images import ImageSpan, row_tokens
from ggufd.errors import EngineFailure
from ggufd.llama.context.batch import Vectors

_FLOAT_BYTES = 4


class _Run(NamedTuple):
    """Positions `[start, end)` of images that stand side by side."""

    start: int
    end: int


class PromptImages:
    """Images of one prompt, ascending; `rows` are theirs, each of shape `[n_rows, n_embd]`."""

    def __init__(self, spans: Sequence[ImageSpan] = (), rows: Sequence[Vectors] = ()) -> None:
        self._spans = tuple(spans)
        self._rows = tuple(rows)
        self._numbers = [np.array(row_tokens(span.rows.digest, span.rows.n_rows), np.intc) for span in spans]
        self._runs = tuple(_runs(spans))

    def __bool__(self) -> bool:
        return bool(self._spans)

    def whole(self, n: int) -> int:
        """Length of the longest prefix of at most `n` tokens that ends within no image."""
        for span in self._spans:
            if span.start < n < span.end:
                return span.start
        return n

    def border(self, position: int, end: int) -> int:
        """Where tokens or rows end that begin at `position`, at most `end`: a batch has only one of both."""
        for run in self._runs:
            if run.start <= position < run.end:
                return min(run.end, end)
            if position < run.start:
                return min(run.start, end)
        return end

    def rows(self, start: int, end: int) -> list[Vectors]:
        """Rows at the positions `[start, end)`, which are all of images; one array for each image."""
        found = [
            rows[max(start - span.start, 0) : end - span.start]
            for span, rows in zip(self._spans, self._rows, strict=True)
            if span.start < end and start < span.end
        ]
        assert sum(map(len, found)) == end - start, "positions that are no image have no rows"
        return found

    def violations(self, tokens: array[int]) -> Iterator[str]:
        """Where `tokens`, of the sequence, are not those of the images, or numbers of images stand elsewhere."""
        values = np.frombuffer(tokens, np.intc)
        for span, numbers in zip(self._spans, self._numbers, strict=True):
            if not np.array_equal(values[span.start : span.end], numbers):
                yield f"the image at token {span.start} has other tokens"
        if np.count_nonzero(values < 0) != sum(map(len, self._numbers)):
            yield "a number below zero is no row of an image"


def open_images(spans: Sequence[ImageSpan], n_embd: int) -> PromptImages:
    """Images of a prompt for a model that takes rows of `n_embd` numbers. Raises `EngineFailure`."""
    return PromptImages(spans, [_mapped(span, n_embd) for span in spans]) if spans else PromptImages()


def _mapped(span: ImageSpan, n_embd: int) -> Vectors:
    """Rows of an image, mapped: its file may be deleted from now on, and is unmapped when nobody holds the rows."""
    n_rows = span.rows.n_rows
    try:
        with open(span.rows.path, "rb") as file:
            n_bytes = os.fstat(file.fileno()).st_size
            if n_bytes != n_rows * n_embd * _FLOAT_BYTES:
                raise EngineFailure(
                    f"the rows of the image at token {span.start} are not for this model: {n_bytes} bytes for {n_rows} "
                    f"rows, where {n_embd} numbers a row were expected. Use the projector (--mmproj) of this model"
                )
            return np.memmap(file, np.float32, "r", shape=(n_rows, n_embd))
    except OSError as error:
        why = error.strerror or str(error)
        raise EngineFailure(
            f"the rows of the image at token {span.start} cannot be read ({why}): send the request again"
        ) from None


def _runs(spans: Sequence[ImageSpan]) -> Iterator[_Run]:
    run: _Run | None = None
    for span in spans:
        if run is not None and run.end == span.start:
            run = _Run(run.start, span.end)
            continue
        if run is not None:
            yield run
        run = _Run(span.start, span.end)
    if run is not None:
        yield run
