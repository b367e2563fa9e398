"""Batches of embedding inputs on one context: chunks of long inputs, short ones packed together, rows pooled.

A batch takes about as many seconds as it is given. A context has one set of LoRA adapters at a time: inputs under other
ones begin when those under way are done. Knows no accounts and no waiting requests: next inputs are an `InputSource`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ggufd.engine.backend.interfaces import VectorDecoder
from ggufd.engine.embeddings.inputs import ActiveInput, InputList
from ggufd.engine.embeddings.pooling import new_pool
from ggufd.engine.messages.requests import Scales
from ggufd.errors import EngineFailure
from ggufd.llama.context.batch import NoRoomError, Vectors
from ggufd.llama.params import Pooling

_MIN_CHUNK = 16
_FIRST_BATCH = 64
"""Tokens of the first batch, by which the time of a token is measured."""

_MAX_PACKED = 512
"""Most tokens of short inputs that are computed together."""

_MAX_BATCH_S = 1.2
"""Seconds that a batch may take when no sequence decodes: a new request waits as long."""

_SMOOTHING = 0.3


class BatchFailed(Exception):
    """Failed decode: nothing of the batch can be trusted. `owners` had inputs in it."""

    def __init__(self, owners: set[InputList], error: Exception) -> None:
        super().__init__(f"computing a batch failed: {error}" if str(error) else "the context has no room")
        self.owners = owners


class InputSource(Protocol):
    """The requests whose inputs are computed in turns."""

    def next_owner(self, adapters: Scales | None) -> InputList | None:
        """The request whose next input comes next, of those under `adapters` if it is given."""

    def begin(self, owner: InputList) -> int:
        """The index of the next input of `owner`, whose computation begins now."""


@dataclass(frozen=True, slots=True)
class _InputChunk:
    """`n_tokens` of one input, in the batch from row `first` on."""

    input: ActiveInput
    first: int
    n_tokens: int


class EmbeddingBatcher:
    """The inputs that are being computed on `decoder`, a batch at a time."""

    def __init__(self, decoder: VectorDecoder, pooling: Pooling) -> None:
        self.decoder = decoder
        self.n_tokens = 0
        self.s_per_token = 0.0
        self.active: list[ActiveInput] = []
        self._pooling = pooling

    def compute(self, source: InputSource, pause_s: float | None) -> list[ActiveInput]:
        """Compute one batch, of about `pause_s` seconds where a sequence decodes; returns the finished inputs.

        They stay active until `release`. Raises `BatchFailed`.
        """
        chunks = self._fill(source, self._budget(pause_s))
        self.decoder.set_adapters(chunks[0].input.owner.adapters)
        try:
            seconds = self.decoder.decode()
        except (NoRoomError, EngineFailure) as error:
            raise BatchFailed({chunk.input.owner for chunk in chunks}, error) from None
        n_rows = self.decoder.batch.n_rows
        self.n_tokens += n_rows
        self._learn(seconds / n_rows)
        return self._pool(chunks)

    def result(self, one: ActiveInput) -> Vectors:
        """The pooled rows, or the scores, of a finished input of the last batch."""
        return self.decoder.scores(one.sequence) if one.pool is None else one.pool.result()

    def release(self, one: ActiveInput) -> None:
        """Forget an input, computed or not."""
        self.active.remove(one)
        self.decoder.forget(one.sequence)

    def _budget(self, pause_s: float | None) -> int:
        """Tokens of the next batch. One that cannot be computed in chunks may take more."""
        most = min(self.decoder.n_batch, _MAX_PACKED)
        if self.s_per_token == 0:
            return min(most, _FIRST_BATCH if pause_s is None else _MIN_CHUNK)
        affordable = int((_MAX_BATCH_S if pause_s is None else pause_s) / self.s_per_token)
        return max(_MIN_CHUNK, min(most, affordable))

    def _learn(self, s_per_token: float) -> None:
        known = self.s_per_token or s_per_token
        self.s_per_token = known + _SMOOTHING * (s_per_token - known)

    def _fill(self, source: InputSource, budget: int) -> list[_InputChunk]:
        """Write the next chunks into the batch: of inputs under way, then of new ones, each request in its turn."""
        batch = self.decoder.batch
        batch.clear()
        chunks = [self._add(one, budget) for one in self.active if batch.n_rows < budget]
        owner = source.next_owner(None)
        # A next input under other adapters must not wait for more of these to begin.
        while owner is not None and self._shares_adapters(owner):
            if not self._has_room(len(owner.next_input), budget):
                break
            chunks.append(self._add(self._begin(source, owner), budget))
            owner = source.next_owner(owner.adapters)
        return chunks

    def _shares_adapters(self, owner: InputList) -> bool:
        """Whether inputs of this request may be computed beside the active ones."""
        return not self.active or self.active[0].owner.adapters == owner.adapters

    def _has_room(self, n_tokens: int, budget: int) -> bool:
        """Whether one more input may begin in this batch: cells of the whole of it are there, and a sequence."""
        decoder, n_rows = self.decoder, self.decoder.batch.n_rows
        n_cells = sum(len(one.tokens) for one in self.active)
        if len(self.active) == decoder.n_inputs or n_cells + n_tokens > decoder.n_ctx:
            return False
        left = budget - n_rows
        return left > 0 if decoder.can_split else left >= n_tokens or n_rows == 0

    def _begin(self, source: InputSource, owner: InputList) -> ActiveInput:
        taken = {one.sequence for one in self.active}
        sequence = next(number for number in range(self.decoder.n_inputs) if number not in taken)
        pool = None if self._pooling == "rank" else new_pool(self._pooling)
        one = ActiveInput(owner, source.begin(owner), sequence, pool)
        self.active.append(one)
        return one

    def _add(self, one: ActiveInput, budget: int) -> _InputChunk:
        """Write as much of an input into the batch as the budget has left, all of one that may not be cut."""
        batch = self.decoder.batch
        first = batch.n_rows
        n = min(one.n_left, budget - first) if self.decoder.can_split else one.n_left
        batch.add(one.sequence, one.tokens[one.n_past : one.n_past + n], one.n_past, n)
        return _InputChunk(one, first, n)

    def _pool(self, chunks: list[_InputChunk]) -> list[ActiveInput]:
        """The batch is computed: pool its rows; returns the inputs that are whole."""
        rows = None if self._pooling == "rank" else self.decoder.rows()
        for chunk in chunks:
            one = chunk.input
            one.n_past += chunk.n_tokens
            if one.pool is not None and rows is not None:
                one.pool.add(rows[chunk.first : chunk.first + chunk.n_tokens])
        return [chunk.input for chunk in chunks if chunk.input.n_left == 0]

    def check_integrity(self) -> None:
        """Raise `EngineFailure` unless inputs, sequences and adapters agree."""
        if len({one.sequence for one in self.active}) != len(self.active):
            raise EngineFailure("two inputs are computed as one sequence")
        if not all(self._shares_adapters(one.owner) for one in self.active):
            raise EngineFailure("inputs under different adapters are computed together")
