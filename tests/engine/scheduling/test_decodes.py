"""Which chunks of a plan share a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ggufd.engine.messages.images import row_tokens
from ggufd.engine.scheduling.decodes import decodes
from ggufd.engine.scheduling.scheduler import Chunk
from ggufd.engine.sequence.sequence import SequenceState
from tests.support.fakes.fake_llama import make_request

ROWS = row_tokens("ab" * 32, 4)


def chunk(slot: int, prompt: Sequence[int], n_past: int = 0) -> Chunk:
    sequence = SequenceState.of(make_request(slot, prompt), 0, 0.0)
    sequence.slot, sequence.n_past = slot, n_past
    return Chunk(sequence, 1, 0)


def slots(plan: list[Chunk]) -> list[list[int | None]]:
    return [[one.sequence.slot for one in part] for part in decodes(plan)]


def test_a_plan_of_tokens_is_one_decode() -> None:
    assert slots([chunk(0, b"ab"), chunk(1, b"c"), chunk(3, b"d")]) == [[0, 1, 3]]
    assert decodes([]) == []


def test_rows_of_images_are_a_decode_of_their_own_behind_the_tokens() -> None:
    plan = [chunk(0, ROWS), chunk(1, b"a"), chunk(2, ROWS), chunk(3, b"b")]
    assert slots(plan) == [[1, 3], [0, 2]]
    assert slots([chunk(0, ROWS), chunk(2, ROWS)]) == [[0, 2]]


def test_what_a_chunk_is_depends_on_where_its_sequence_stands() -> None:
    prompt = [*b"ab", *ROWS, *b"c"]
    plan = [chunk(0, prompt, 2), chunk(1, prompt, 5), chunk(2, prompt, 1), chunk(3, prompt, 6)]
    assert slots(plan) == [[2, 3], [0, 1]]


def test_a_deterministic_chunk_shares_its_batch_with_nobody_and_comes_last() -> None:
    plan = [chunk(slot, b"ab") for slot in range(4)]
    for one in plan[1:3]:
        one.sequence.request = dataclasses.replace(one.sequence.request, is_deterministic=True)
    assert slots(plan) == [[0, 3], [1], [2]]
