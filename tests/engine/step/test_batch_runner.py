"""Retries of a plan over a batcher that fails as scripted: which batches are computed, and which requests fail."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from ggufd.engine.messages.events import Failed
from ggufd.engine.messages.images import row_tokens
from ggufd.engine.scheduling.scheduler import Chunk
from ggufd.engine.sequence.sequence import Status
from ggufd.engine.step.batch_runner import BatchRunner
from ggufd.engine.step.batcher import Batcher, Computed
from ggufd.engine.telemetry.trace import StepTrace
from ggufd.errors import EngineFailure
from tests.support.fakes.fake_llama import Rig, make_engine, make_request

Shape = list[tuple[int, int]]
"""Request and number of tokens of each chunk of a batch."""


class FailingBatcher:
    """Computes on `batcher`, but fails where `fails` says so; `tried` are the batches so far."""

    def __init__(self, batcher: Batcher, fails: Callable[[Shape], bool]) -> None:
        self._batcher = batcher
        self._fails = fails
        self.tried: list[Shape] = []

    def compute(self, plan: list[Chunk], *, depth: int) -> list[Computed]:
        shape = [(chunk.sequence.request.request_id, chunk.n_tokens) for chunk in plan]
        self.tried.append(shape)
        if self._fails(shape):
            raise EngineFailure("no luck")
        return self._batcher.compute(plan, depth=depth)


class PretendingBatcher:
    """Computes nothing, and says that it did."""

    def compute(self, plan: list[Chunk], *, depth: int) -> list[Computed]:
        return [Computed(chunk, np.empty((0, 0), np.float32), 0) for chunk in plan]


def started(rig: Rig, request_id: int) -> Chunk:
    """Chunk of eight tokens of a new sequence, which runs."""
    rig.add(make_request(request_id, bytes([64 + request_id]) * 20))
    (sequence,) = rig.engine._lifecycle.of_request(request_id)
    rig.engine._lifecycle.start(sequence)
    rig.engine._lifecycle.events.take()
    return Chunk(sequence, 8, 0)


def runner_over(rig: Rig, fails: Callable[[Shape], bool]) -> tuple[BatchRunner, FailingBatcher]:
    batcher = FailingBatcher(rig.engine._batch_runner._batcher, fails)
    return BatchRunner(cast(Any, batcher), rig.engine._lifecycle, StepTrace(rig.decoder.clock)), batcher


def advance(runner: BatchRunner, plan: list[Chunk]) -> list[Shape]:
    """Run a plan as the engine does, without sampling; the batches that were computed."""
    batches = []
    for computed in runner.run(plan):
        batches.append([(one.chunk.sequence.request.request_id, one.chunk.n_tokens) for one in computed])
        for one in computed:
            one.chunk.sequence.n_past += one.chunk.n_tokens - len(one.chunk.sequence.draft)
    return batches


def test_a_plan_that_does_not_fail_is_one_batch() -> None:
    rig = make_engine(n_slots=3)
    runner, _ = runner_over(rig, lambda shape: False)
    assert advance(runner, [started(rig, request_id) for request_id in (1, 2, 3)]) == [[(1, 8), (2, 8), (3, 8)]]


def test_chunks_that_cannot_share_a_batch_are_decodes_one_after_the_other() -> None:
    rig = make_engine(n_slots=3)
    plan = [started(rig, request_id) for request_id in (1, 2, 3)]
    plan[0].sequence.tokens[:8] = array("i", row_tokens("ab" * 32, 8))
    batcher = PretendingBatcher()
    runner = BatchRunner(cast(Any, batcher), rig.engine._lifecycle, StepTrace(rig.decoder.clock))
    assert advance(runner, plan) == [[(2, 8), (3, 8)], [(1, 8)]]


def test_what_ended_in_the_first_decode_of_a_step_is_not_computed_by_the_second() -> None:
    rig = make_engine(n_slots=2)
    plan = [started(rig, 1), started(rig, 2)]
    plan[0].sequence.tokens[:8] = array("i", row_tokens("ab" * 32, 8))
    runner = BatchRunner(cast(Any, PretendingBatcher()), rig.engine._lifecycle, StepTrace(rig.decoder.clock))
    batches = []
    for computed in runner.run(plan):
        batches.append([one.chunk.sequence.request.request_id for one in computed])
        rig.engine._lifecycle.abort(1)
    assert batches == [[2]]


def test_a_plan_that_fails_is_computed_in_halves() -> None:
    rig = make_engine(n_slots=2)
    runner, batcher = runner_over(rig, lambda shape: sum(n for _, n in shape) > 8)
    assert advance(runner, [started(rig, 1), started(rig, 2)]) == [[(1, 8)], [(2, 8)]]
    assert batcher.tried == [[(1, 8), (2, 8)], [(1, 8)], [(2, 8)]]
    assert not rig.engine._lifecycle.events


def test_drafts_are_given_up_before_anything_is_halved() -> None:
    rig = make_engine(n_slots=1)
    sequence = started(rig, 1).sequence
    runner, batcher = runner_over(rig, lambda shape: shape == [(1, 4)])
    advance(runner, [Chunk(sequence, 19, 0)])
    sequence.draft = (7, 7, 7)
    assert advance(runner, [Chunk(sequence, 4, 4)]) == [[(1, 1)]]
    assert batcher.tried == [[(1, 19)], [(1, 4)], [(1, 1)]]
    assert not sequence.draft
    assert sequence.n_past == 20


def test_only_the_request_of_a_row_that_always_fails_is_lost() -> None:
    rig = make_engine(n_slots=3)
    plan = [started(rig, request_id) for request_id in (1, 2, 3)]
    runner, _ = runner_over(rig, lambda shape: any(request_id == 2 for request_id, _ in shape))
    done = advance(runner, plan)
    assert {request_id for batch in done for request_id, _ in batch} == {1, 3}
    statuses = [chunk.sequence.status for chunk in plan]
    assert statuses == [Status.RUNNING, Status.FINISHED, Status.RUNNING]
    assert [sequence.n_past for sequence in rig.engine._running] == [8, 8]
    (failed,) = rig.engine._lifecycle.events.take()
    assert isinstance(failed, Failed)
    assert (failed.request_id, failed.message) == (2, "computing this request failed: no luck")
    rig.engine.check_integrity()


def test_a_device_that_computes_nothing_three_steps_in_a_row_is_given_up() -> None:
    rig = make_engine(n_slots=1)
    is_broken = True
    runner, _ = runner_over(rig, lambda shape: is_broken)
    for request_id in (1, 2):
        assert advance(runner, [started(rig, request_id)]) == []
    is_broken = False
    chunk = started(rig, 3)
    assert advance(runner, [chunk]) == [[(3, 8)]]
    rig.engine.abort(3)
    is_broken = True
    for request_id in (4, 5):
        assert advance(runner, [started(rig, request_id)]) == []
    with pytest.raises(EngineFailure, match="nothing could be computed in 3 steps"):
        advance(runner, [started(rig, 6)])
