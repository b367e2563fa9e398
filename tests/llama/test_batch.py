"""Rows of a batch."""

from __future__ import annotations

import numpy as np
import pytest

from ggufd.llama.context.batch import Batch


def test_rows_stand_one_after_another_with_their_outputs() -> None:
    batch = Batch.with_capacity(8)
    assert batch.add(1, [10, 11, 12], 5, 1) == 0
    assert batch.add(4, [20, 21], 0, 2) == 1
    assert (batch.n_rows, batch.n_outputs, batch.capacity) == (5, 3, 8)
    assert batch.token[:5].tolist() == [10, 11, 12, 20, 21]
    assert batch.pos[:5].tolist() == [5, 6, 7, 0, 1]
    assert batch.seq_id[:5].tolist() == [1, 1, 1, 4, 4]
    assert batch.output[:5].tolist() == [0, 0, 1, 1, 1]


def test_a_chunk_may_ask_for_no_output() -> None:
    batch = Batch.with_capacity(8)
    batch.output[:] = 1
    batch.add(0, [1, 2, 3], 0, 0)
    assert batch.output[:3].tolist() == [0, 0, 0]


def test_a_cleared_batch_starts_anew() -> None:
    batch = Batch.with_capacity(4)
    batch.add(0, [1, 2, 3], 0, 3)
    batch.clear()
    assert batch.add(2, [9], 7, 1) == 0
    assert (batch.n_rows, batch.n_outputs) == (1, 1)


def test_more_rows_than_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        Batch.with_capacity(2).add(0, [1, 2, 3], 0, 1)


def test_embedding_rows_stand_one_after_another_with_their_outputs() -> None:
    batch = Batch.with_capacity(8, n_embd=2)
    parts = [np.array([[1, 2], [3, 4]], np.float32), np.array([[5, 6]], np.float32)]
    assert batch.add_rows(1, parts, 5, 1) == 0
    assert batch.add_rows(4, parts[:1], 0, 2) == 1
    assert (batch.n_rows, batch.n_embedded, batch.n_outputs) == (5, 5, 3)
    assert batch.embd[:5].tolist() == [[1, 2], [3, 4], [5, 6], [1, 2], [3, 4]]
    assert batch.pos[:5].tolist() == [5, 6, 7, 0, 1]
    assert batch.seq_id[:5].tolist() == [1, 1, 1, 4, 4]
    assert batch.output[:5].tolist() == [0, 0, 1, 1, 1]
    assert not batch.is_mixed
    batch.add(5, [9], 0, 1)
    assert batch.is_mixed
    batch.clear()
    batch.add(5, [9], 0, 1)
    assert (batch.is_mixed, batch.n_embedded) == (False, 0)


def test_embedding_rows_of_another_width_are_an_error() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        Batch.with_capacity(4, n_embd=2).add_rows(0, [np.zeros((1, 3), np.float32)], 0, 1)
