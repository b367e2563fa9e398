"""The state machine of sequences by itself: nothing is scheduled, computed or sampled here."""

from __future__ import annotations

import pytest

from ggufd.engine.messages.events import Admitted, Failed, FinishReason, Output
from ggufd.engine.sequence.sequence import SequenceState, Status
from ggufd.engine.step.token_step import StepOutput
from ggufd.errors import EngineFailure, InvalidRequest
from tests.support.fakes.fake_llama import Rig, make_engine, make_request


def waiting(rig: Rig, request_id: int = 1, *, n: int = 1) -> list[SequenceState]:
    """Sequences of a new request, in the queue."""
    rig.add(make_request(request_id, b"some prompt", n=n))
    return rig.engine._lifecycle.of_request(request_id)


def test_a_started_sequence_runs_in_a_slot_and_leaves_it_when_it_ends() -> None:
    rig = make_engine(n_slots=1)
    lifecycle = rig.engine._lifecycle
    (sequence,) = waiting(rig)
    lifecycle.start(sequence)
    assert (sequence.status, sequence.slot, lifecycle.running) == (Status.RUNNING, 0, [sequence])
    lifecycle.check_integrity()
    lifecycle.leave(sequence)
    assert (sequence.status, sequence.slot, lifecycle.running) == (Status.FINISHED, None, [])
    assert [type(event) for event in lifecycle.events.take()] == [Admitted]


def test_a_finished_sequence_reports_its_reason_with_the_last_output() -> None:
    rig = make_engine(n_slots=1)
    lifecycle = rig.engine._lifecycle
    (sequence,) = waiting(rig)
    lifecycle.start(sequence)
    lifecycle.finish(sequence, StepOutput(text="the end"), FinishReason.LENGTH)
    (_, output) = lifecycle.events.take()
    assert isinstance(output, Output)
    assert output.finish is not None
    assert (output.text, output.finish.reason) == ("the end", FinishReason.LENGTH)


def test_a_preempted_sequence_waits_and_starts_again_where_it_was() -> None:
    rig = make_engine(n_slots=1)
    lifecycle = rig.engine._lifecycle
    rig.add(make_request(1, b"some prompt", ignore_eos=True))
    while not (lifecycle.running and lifecycle.running[0].n_generated > 2):
        rig.step()
    (sequence,) = lifecycle.running
    tokens, n_past = sequence.tokens[:], sequence.n_past
    assert lifecycle.preempt(sequence)
    assert (sequence.status, sequence.slot, lifecycle.running) == (Status.WAITING, None, [])
    assert list(lifecycle.queue.waiting()) == [sequence]
    lifecycle.start(sequence)
    assert (sequence.status, sequence.tokens, sequence.n_past) == (Status.RUNNING, tokens, n_past)
    lifecycle.check_integrity()


def test_a_sequence_that_cannot_start_fails_its_request_and_frees_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_engine(n_slots=2)
    lifecycle = rig.engine._lifecycle
    first, second = waiting(rig, n=2)

    def refuse(sequence: SequenceState) -> None:
        raise InvalidRequest("no sampler for this")

    monkeypatch.setattr(lifecycle._token_step, "begin", refuse)
    lifecycle.start(first)
    assert (first.status, second.status, lifecycle.running) == (Status.FINISHED, Status.FINISHED, [])
    (failed,) = [event for event in lifecycle.events.take() if isinstance(event, Failed)]
    assert failed.message == "no sampler for this"
    assert not lifecycle.queue
    rig.engine.check_integrity()


def test_a_lost_sequence_fails_its_siblings_too_and_its_slot_keeps_nothing() -> None:
    rig = make_engine(n_slots=2)
    lifecycle = rig.engine._lifecycle
    rig.add(make_request(1, b"some prompt", n=2, ignore_eos=True))
    while len(lifecycle.running) < 2:
        rig.step()
    lost, sibling = lifecycle.running
    assert lost.slot is not None
    slot = lost.slot
    lifecycle.lose(lost, EngineFailure("the device is gone"))
    assert (lost.status, sibling.status, lifecycle.running) == (Status.FINISHED, Status.FINISHED, [])
    (failed,) = lifecycle.events.take()
    assert isinstance(failed, Failed)
    assert failed.message == "computing this request failed: the device is gone"
    assert rig.decoder.tokens(slot) == []
    rig.engine.check_integrity()
