"""Top-p of flat rows, whose nucleus has thousands of tokens: the same set as by sorting all of them."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ggufd.engine.messages.sampling import SamplingParams
from ggufd.engine.sampling.sampling import NoNumbers, Row, VectorSampler, _wide_nucleus


def by_sorting(row: Row, top_p: float, min_keep: int = 1) -> set[int]:
    """The least set of the best tokens whose share reaches top-p; the lower index first where equal."""
    weights = np.exp(row - row.max())
    order = np.argsort(-weights, kind="stable")
    reached = np.cumsum(weights[order], dtype=np.float64) >= top_p * float(weights.sum())
    n_keep = int(reached.argmax()) + 1 if reached.any() else len(row)
    return set(order[: max(n_keep, min_keep)].tolist())


def flat_row(seed: int, n: int = 49152, spread: float = 1.0) -> Row:
    return np.random.default_rng(seed).normal(0, spread, n).astype(np.float32)


def left(row: Row, **changes: Any) -> set[int]:
    sampler = VectorSampler(SamplingParams(**changes), 1, None)
    return set(sampler.distribution(row)[0].tolist())


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_it_is_the_set_that_sorting_finds(top_p: float, spread: float) -> None:
    row = flat_row(7, spread=spread)
    expected = by_sorting(row, top_p)
    found = left(row, top_p=top_p)
    # Sums in another order may differ in their last digits: by no more than the token at the border.
    assert len(found ^ expected) <= 1
    assert found <= expected or expected <= found


@given(
    arrays.arrays(np.float32, st.integers(1, 300), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0, 1e-30])),
    st.sampled_from([0.125, 0.5, 0.75, 1.0]),
    st.integers(1, 8),
)
def test_equal_weights_go_by_their_index(weights: Row, share: float, min_keep: int) -> None:
    weights[0] = 1.0
    wanted = share * float(weights.sum(dtype=np.float64))
    order = np.argsort(-weights, kind="stable")
    n_reached = int((np.cumsum(weights[order], dtype=np.float64) >= wanted).argmax()) + 1
    found = _wide_nucleus(weights, wanted, min_keep)
    assert len(set(found.tolist())) == len(found)
    assert set(found.tolist()) == set(order[: max(n_reached, min_keep)].tolist())


def test_min_p_is_of_the_best_token_whatever_the_order() -> None:
    row = flat_row(3)
    expected = {one for one in by_sorting(row, 0.9) if row[one] >= row.max() + math.log(0.2)}
    assert left(row, top_p=0.9, min_p=0.2) == expected


def test_what_is_no_number_is_told() -> None:
    row = flat_row(1)
    row[5] = np.nan
    with pytest.raises(NoNumbers):
        VectorSampler(SamplingParams(top_p=0.9), 1, None).sample(row, 0)


def test_a_banned_token_is_never_left() -> None:
    row = flat_row(2, n=5000, spread=0.01)
    row[::2] = -np.inf
    assert all(token % 2 for token in left(row, top_p=0.999999))


def test_a_flat_row_takes_a_fraction_of_sorting_it() -> None:
    row = flat_row(5, n=200_000)
    sampler = VectorSampler(SamplingParams(top_p=0.95), 1, None)
    sampler.sample(row, 0)
    begin = time.thread_time()
    for _ in range(3):
        sampler.sample(row, 0)
    drawn_s = time.thread_time() - begin
    begin = time.thread_time()
    for _ in range(3):
        np.argsort(-row, kind="stable")
    assert drawn_s < time.thread_time() - begin
