"""Images of a prompt: embedding rows that take the place of tokens.

A row of an image stands in a prompt as a number below zero (`row_tokens`), made from the digest of what the row is, so
that prefix matching, host cache and disk cache compare images as they compare tokens. Nothing else may take such a
number for a token: samplers, penalties, drafts and detokenizers leave them out (`tokens_only`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_DIGEST_BYTES = 32
_WORD_BYTES = 4
_LARGEST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ImageRows:
    """Rows of an image, or of a tile of one: `path` is a file of float32, shape `[n_rows, n_embd]`, row-major.

    `digest` is SHA-256, in hex, of everything that the rows depend on: pixels, projector, settings, tile.
    """

    digest: str
    n_rows: int
    path: str


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Place of an image in a prompt: `prompt[start : start + rows.n_rows]` are its `row_tokens`."""

    start: int
    rows: ImageRows

    @property
    def end(self) -> int:
        """Index of the first token behind it."""
        return self.start + self.rows.n_rows


def row_tokens(digest: str, n_rows: int) -> tuple[int, ...]:
    """Numbers that stand for the rows of an image, each from -2**31 to -1.

    Row i has the i-th word of 31 bits of the digest, and so on from the first: eight rows hold all of it.
    """
    raw = bytes.fromhex(digest)
    assert len(raw) == _DIGEST_BYTES, "a digest has 32 bytes"
    words = [int.from_bytes(raw[at : at + _WORD_BYTES], "big") for at in range(0, _DIGEST_BYTES, _WORD_BYTES)]
    return tuple(-1 - (words[row % len(words)] & _LARGEST) for row in range(n_rows))


def tokens_only(prompt: Iterable[int]) -> list[int]:
    """The tokens of a prompt, without the rows of its images."""
    return [token for token in prompt if token >= 0]
