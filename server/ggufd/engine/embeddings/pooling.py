"""Pooling of the rows of one input into its vector, a chunk at a time, and scaling of the vector."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from ggufd.llama.context.batch import Vectors
from ggufd.llama.params import Pooling


class Pool(ABC):
    """Pooling of one input. `add` gets rows of shape `[n, width]`, in the order of the tokens."""

    @abstractmethod
    def add(self, rows: Vectors) -> None:
        """Add the rows of the next tokens; they are not kept."""

    @abstractmethod
    def result(self) -> Vectors:
        """Pooled vector, shape `[1, width]`; without pooling all rows."""


class _MeanPool(Pool):
    def __init__(self) -> None:
        self._sum = np.zeros(1)
        self._n = 0

    def add(self, rows: Vectors) -> None:
        self._sum = self._sum + rows.sum(axis=0, dtype=np.float64)
        self._n += len(rows)

    def result(self) -> Vectors:
        return (self._sum / self._n).astype(np.float32)[None]


class _Selection(Pool):
    """Selection of rows: `which` is a slice of all that came."""

    def __init__(self, which: slice) -> None:
        self._which = which
        self._rows: Vectors | None = None

    def add(self, rows: Vectors) -> None:
        together = rows if self._rows is None else np.concatenate((self._rows, rows))
        self._rows = together[self._which].copy()

    def result(self) -> Vectors:
        assert self._rows is not None, "no row was added"
        return self._rows


_KEPT = {"none": slice(None), "cls": slice(0, 1), "last": slice(-1, None)}


def new_pool(pooling: Pooling) -> Pool:
    """New pool of one input. Scores ("rank") are no pool of rows: llama.cpp gives them."""
    return _MeanPool() if pooling == "mean" else _Selection(_KEPT[pooling])


def scaled(vectors: Vectors, norm: int) -> Vectors:
    """Every row divided by its norm, in llama-server's numbers: -1 leaves it, 0 makes the greatest 32,760, 1 is the
    sum of magnitudes, 2 the Euclidean length, p > 2 the p-norm. A row of zeros stays one.
    """
    if norm < 0:
        return vectors
    wide = np.abs(vectors.astype(np.float64))
    if norm == 0:
        lengths = wide.max(axis=1, keepdims=True) / 32760
    else:
        # Taken of shares of the greatest: a high power of a small number would be nothing.
        greatest = np.maximum(wide.max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        lengths = greatest * ((wide / greatest) ** norm).sum(axis=1, keepdims=True) ** (1 / norm)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
