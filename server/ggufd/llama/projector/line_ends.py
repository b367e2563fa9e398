"""Repair of the rows with which a projector of the type `pixtral` ends each line of an image but the last.

libmtmd makes them of a tensor that it never fills, times 0, plus the row that the projector's file has for the end of a
line. Where the memory held what is no number, the product is none either. So it is in the llama.cpp of llama-cpp-python
0.3.36 (`tools/mtmd/models/pixtral.cpp`), on devices that do not clear memory.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ggufd.llama.gguf import gguf_header

Rows = NDArray[np.float32]

_TENSOR = "v.token_embd.img_break"


def repaired(rows: Rows, path: str) -> Rows:
    """The rows of an image, `[n_rows, n_embd]`, with those that are no numbers replaced where they end lines.

    The same rows where all are numbers, and where any that is none cannot be the end of a line. `path` is the file of
    the projector. Raises ModelError or OSError where it cannot be read.
    """
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if not broken.size or not _end_lines(broken, len(rows)):
        return rows
    row = _row_of(Path(path), rows.shape[1])
    if row is None:
        return rows
    whole = rows.copy()
    whole[broken] = row
    return whole


def _end_lines(broken: NDArray[np.intp], n_rows: int) -> bool:
    """Whether rows stand a whole number of lines, each of two rows or more, after the beginning.

    The last line has no end; with one, there would be whole lines.
    """
    return math.gcd(n_rows + 1, *(int(place) + 1 for place in broken)) > 1


def _row_of(path: Path, n_embd: int) -> Rows | None:
    """The row for the end of a line, if a file has one as plain floats."""
    header = gguf_header.read_file(path)
    for tensor in header.tensors:
        if tensor.name == _TENSOR and tensor.type.name == "F32" and tensor.n_elements == n_embd:
            return np.fromfile(path, np.float32, n_embd, offset=header.data_offset + tensor.offset)
    return None
