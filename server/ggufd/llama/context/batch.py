"""Rows of one decode, and the array types around them. Knows no llama_cpp."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
State = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]


class NoRoomError(Exception):
    """KV cache full: nothing of the batch was computed."""


@dataclass(slots=True)
class Batch:
    """Rows for one `decode`: shapes `[n_rows]`, filled from the front. `output[i]` asks for the logits of row i.

    A row is a token, or numbers in `embd`, shape `[n_rows, n_embd]`: of one batch all are the same.
    """

    token: npt.NDArray[np.int32]
    pos: npt.NDArray[np.int32]
    seq_id: npt.NDArray[np.int32]
    output: npt.NDArray[np.int8]
    embd: npt.NDArray[np.float32]
    n_rows: int = 0
    n_outputs: int = 0
    n_embedded: int = 0

    @classmethod
    def with_capacity(cls, n_batch: int, n_embd: int = 0) -> Batch:
        """A batch of at most `n_batch` tokens, or embedding rows of `n_embd` numbers; theirs is taken when used."""
        return cls(
            token=np.zeros(n_batch, np.int32),
            pos=np.zeros(n_batch, np.int32),
            seq_id=np.zeros(n_batch, np.int32),
            output=np.zeros(n_batch, np.int8),
            embd=np.empty((n_batch, n_embd), np.float32),
        )

    @property
    def capacity(self) -> int:
        return len(self.token)

    @property
    def is_mixed(self) -> bool:
        """Whether it has tokens and embedding rows: llama.cpp computes no such batch."""
        return 0 < self.n_embedded < self.n_rows

    def clear(self) -> None:
        self.n_rows = self.n_outputs = self.n_embedded = 0

    def add(self, slot: int, tokens: Sequence[int], first_pos: int, n_outputs: int) -> int:
        """Append consecutive tokens of one slot, the last `n_outputs` of them with logits.

        Returns the index of the first of those among all outputs of the batch.
        """
        start, end = self.n_rows, self.n_rows + len(tokens)
        if end - start == 1:
            # A decoding sequence's row, many times a step: single stores are a third of the cost of slices.
            self.token[start], self.pos[start], self.seq_id[start] = tokens[0], first_pos, slot
            self.output[start] = n_outputs
            self.n_rows = end
            self.n_outputs += n_outputs
            return self.n_outputs - n_outputs
        self.token[start:end] = tokens
        return self._place(slot, end - start, first_pos, n_outputs)

    def add_rows(self, slot: int, parts: Sequence[Vectors], first_pos: int, n_outputs: int) -> int:
        """Append consecutive embedding rows of one slot, as `add` does tokens; the arrays follow each other."""
        end = self.n_rows
        for part in parts:
            start, end = end, end + len(part)
            self.embd[start:end] = part
        n_rows = end - self.n_rows
        self.n_embedded += n_rows
        return self._place(slot, n_rows, first_pos, n_outputs)

    def _place(self, slot: int, n_rows: int, first_pos: int, n_outputs: int) -> int:
        """Add the places of the next `n_rows` rows; returns the index of their first output."""
        start, end = self.n_rows, self.n_rows + n_rows
        self.pos[start:end] = np.arange(first_pos, first_pos + n_rows, dtype=np.int32)
        self.seq_id[start:end] = slot
        self.output[start:end] = 0
        self.output[end - n_outputs : end] = 1
        first_output = self.n_outputs
        self.n_rows = end
        self.n_outputs += n_outputs
        return first_output
