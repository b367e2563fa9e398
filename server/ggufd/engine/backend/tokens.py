"""Comparison of arrays of token ids, without copies."""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt


def common_prefix(a: array[int] | npt.NDArray[np.intc], b: array[int] | npt.NDArray[np.intc]) -> int:
    """Length of the common beginning of two arrays of token ids, shapes `[n_a]` and `[n_b]`."""
    n = min(len(a), len(b))
    if n == 0 or a[0] != b[0]:
        return 0
    different = np.frombuffer(a, np.intc, n) != np.frombuffer(b, np.intc, n)
    first = int(different.argmax())
    return first if different[first] else n
