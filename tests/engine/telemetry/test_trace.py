"""Where a step's time went: recorded by the engine, drawn by `/debug/steps`."""

from __future__ import annotations

import itertools

import pytest

from ggufd.engine.messages.config import EngineRules
from ggufd.engine.messages.reports import StepRecord
from ggufd.engine.telemetry.trace import StepTrace
from tests.engine.speculation.test_prompt_lookup import TEXT, EchoDecoder
from tests.support.fakes.api_client import running
from tests.support.fakes.fake_llama import Rig, make_engine, make_request


def test_the_parts_of_a_step_are_within_it() -> None:
    rig = make_engine(n_slots=2, base_s=0.01, row_s=0.001)
    rig.add(make_request(1, b"One of two", max_tokens=4), make_request(2, b"The other", max_tokens=4))
    rig.run()
    records = rig.engine.steps().records
    assert records[0].n_prefill == len(b"One of two" + b"The other")
    assert [record.n_decode for record in records[1:]] == [2, 2, 2]
    assert all(record.n_sequences == 2 for record in records)
    assert all(record.decode_s == pytest.approx(record.seconds) for record in records)
    starts = [record.start_s for record in records]
    assert starts == sorted(starts)


def test_guesses_are_told_apart() -> None:
    rig = Rig(EchoDecoder(n_slots=1, n_ctx=512, row_s=0.0), rules=EngineRules(max_draft=7))
    rig.add(make_request(1, TEXT * 2, max_tokens=60))
    usage = rig.run()[1].finishes[0].usage
    records = rig.engine.steps().records
    assert sum(record.n_draft for record in records) == usage.drafted_tokens > 0
    assert all(record.n_draft < record.n_decode for record in records if record.n_decode)


def test_a_step_that_computes_nothing_is_no_step() -> None:
    rig = make_engine()
    rig.step()
    assert rig.engine.steps().records == ()


def test_only_the_last_steps_are_kept_and_sending_belongs_to_the_last() -> None:
    trace = StepTrace(lambda: 0.0, max_steps=3)
    trace.sent(9.0)
    for n in range(5):
        trace.begin()
        trace.n_prefill = n
        trace.end()
    trace.sent(0.5)
    assert [(record.n_prefill, record.send_s) for record in trace.records] == [(2, 0.0), (3, 0.0), (4, 0.5)]


async def test_a_browser_can_draw_the_steps() -> None:
    async with running() as api:
        api.engine.records = (
            StepRecord(
                2.0,
                0.010,
                0.001,
                0.006,
                0.002,
                0.0005,
                3,
                2,
                40,
                1,
                send_s=0.0001,
                expected_s=0.0055,
                rejected_s=0.0015,
            ),
        )
        trace = (await api.http.get("/debug/steps")).json()
    step, *phases = trace["traceEvents"]
    assert (step["name"], step["ts"], step["dur"]) == ("step", 2_000_000, 10_000)
    assert step["args"] == {
        **{"sequences": 3, "decode rows": 2, "draft tokens": 1, "prefill rows": 40},
        "expected ms": 5.5,
        "rejected ms": 1.5,
    }
    assert [phase["name"] for phase in phases] == ["plan", "decode", "sample", "detokenize", "rest", "send"]
    for before, after in itertools.pairwise(phases):
        assert before["ts"] + before["dur"] == pytest.approx(after["ts"])
    assert phases[-1]["ts"] == pytest.approx(step["ts"] + step["dur"])
    assert all(event["ph"] == "X" for event in trace["traceEvents"])
