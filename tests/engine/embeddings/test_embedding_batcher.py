"""Batches of embedding inputs alone: what goes into one, by time, room and adapters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from ggufd.engine.embeddings.batcher import BatchFailed, EmbeddingBatcher
from ggufd.engine.embeddings.inputs import ActiveInput, InputList
from ggufd.engine.messages.requests import EmbedRequest, Scales
from ggufd.errors import EngineFailure
from tests.support.fakes.fake_llama import FakeDecoder, FakeVectorDecoder, vector_after


@dataclass
class InOrder:
    """One request after the other, the first that has more."""

    owners: list[InputList]

    def next_owner(self, adapters: Scales | None) -> InputList | None:
        able = [owner for owner in self.owners if owner.has_more and adapters in (None, owner.adapters)]
        return able[0] if able else None

    def begin(self, owner: InputList) -> int:
        owner.n_begun += 1
        return owner.n_begun - 1


def inputs(*texts: bytes, adapters: Scales = ()) -> InputList:
    return InputList(EmbedRequest(1, tuple(map(tuple, texts)), adapters=adapters), 0.0)


@pytest.fixture
def decoder() -> FakeVectorDecoder:
    return FakeVectorDecoder(FakeDecoder(n_adapters=1))


def compute(batcher: EmbeddingBatcher, turns: InOrder, pause_s: float | None = None) -> list[ActiveInput]:
    finished = batcher.compute(turns, pause_s)
    batcher.check_integrity()
    for one in finished:
        batcher.release(one)
    return finished


def test_short_inputs_share_a_batch_up_to_the_sequences_that_there_are(decoder: FakeVectorDecoder) -> None:
    batcher, turns = EmbeddingBatcher(decoder, "last"), InOrder([inputs(*[b"four"] * 6)])
    assert [one.index for one in compute(batcher, turns)] == list(range(decoder.n_inputs))
    assert len(compute(batcher, turns)) == 6 - decoder.n_inputs
    assert batcher.n_tokens == 24


def test_a_long_input_is_computed_in_chunks_and_pooled_over_all_of_them(decoder: FakeVectorDecoder) -> None:
    batcher, turns = EmbeddingBatcher(decoder, "mean"), InOrder([inputs(b"x" * 40)])
    n_batches = 1
    while not (finished := batcher.compute(turns, 1e-9)):
        n_batches += 1
    rows = [vector_after(list(b"x" * n)) for n in range(1, 41)]
    assert n_batches == 3
    assert batcher.result(finished[0])[0] == pytest.approx(np.mean(rows, axis=0), abs=1e-5)


def test_inputs_under_other_adapters_wait_for_the_next_batch(decoder: FakeVectorDecoder) -> None:
    plain, adapted = inputs(b"a"), inputs(b"b", adapters=(1.0,))
    batcher, turns = EmbeddingBatcher(decoder, "last"), InOrder([plain, adapted])
    assert [one.owner for one in compute(batcher, turns)] == [plain]
    assert [one.owner for one in compute(batcher, turns)] == [adapted]


def test_a_failed_batch_names_the_requests_that_were_in_it(decoder: FakeVectorDecoder) -> None:
    first, second = inputs(b"a"), inputs(b"b")
    decoder.failures = [EngineFailure("it broke")]
    with pytest.raises(BatchFailed, match="it broke") as caught:
        EmbeddingBatcher(decoder, "mean").compute(InOrder([first, second]), None)
    assert caught.value.owners == {first, second}
