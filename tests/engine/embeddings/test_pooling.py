"""Rows to vectors: the same whatever pieces they come in, and every norm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.engine.embeddings.pooling import new_pool, scaled
from ggufd.llama.context.batch import Vectors
from ggufd.llama.params import Pooling

ROWS = np.random.default_rng(1).normal(0, 1, (12, 5)).astype(np.float32)
WANTED: dict[Pooling, Vectors] = {
    "none": ROWS,
    "mean": ROWS.mean(axis=0)[None],
    "cls": ROWS[:1],
    "last": ROWS[-1:],
}


@pytest.mark.parametrize("pooling", WANTED)
@given(cuts=st.sets(st.integers(1, len(ROWS) - 1)))
def test_a_vector_does_not_depend_on_the_pieces(pooling: Pooling, cuts: set[int]) -> None:
    pool = new_pool(pooling)
    borrowed = np.empty_like(ROWS)
    for piece in np.split(ROWS, sorted(cuts)):
        # llama.cpp's buffer is overwritten by the next decode.
        borrowed[: len(piece)] = piece
        pool.add(borrowed[: len(piece)])
        borrowed[:] = np.nan
    assert pool.result() == pytest.approx(WANTED[pooling], abs=1e-6)


NORMS: dict[int, Callable[[Vectors], float]] = {
    0: lambda row: np.abs(row).max() / 32760,
    1: lambda row: np.abs(row).sum(),
    2: lambda row: float(np.linalg.norm(row)),
    3: lambda row: (np.abs(row) ** 3).sum() ** (1 / 3),
    100: lambda row: np.abs(row).max(),
}


@pytest.mark.parametrize("norm", NORMS)
def test_a_scaled_row_has_the_length_one(norm: int) -> None:
    result = scaled(ROWS * 1e-3, norm)
    assert result.dtype == np.float32
    assert [NORMS[norm](row) for row in result] == pytest.approx([1] * len(ROWS), rel=0.02 if norm == 100 else 1e-5)
    ratios = result / ROWS
    assert ratios == pytest.approx(np.broadcast_to(ratios[:, :1], ratios.shape), rel=1e-4), "a direction was changed"


def test_minus_one_leaves_it() -> None:
    assert (scaled(ROWS, -1) == ROWS).all()


@pytest.mark.parametrize("norm", [0, 1, 2, 7])
def test_nothing_stays_nothing(norm: int) -> None:
    assert (scaled(np.zeros((2, 3), np.float32), norm) == 0).all()
