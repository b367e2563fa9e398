"""`GET /debug/steps`: profile of the last engine steps, in Chrome's trace format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from ggufd.api.http.auth import admin_only
from ggufd.api.http.json_response import json_response
from ggufd.api.services.services import services_of
from ggufd.engine.messages.reports import StepRecord

router = APIRouter(tags=["operations"])


@router.get("/debug/steps", dependencies=[Depends(admin_only)])
async def steps(request: Request) -> Response:
    """The last steps of the engine in Chrome's trace format: open the file in ui.perfetto.dev or chrome://tracing.

    One bar a step, with the rows of its batch, over its phases: drafting, planning, llama.cpp's decode, sampling, text,
    and sending what it said. Needs an admin's key.
    """
    records = (await services_of(request).engine.reports.steps()).records
    events = [event for record in records for event in _events(record)]
    return json_response({"traceEvents": events, "displayTimeUnit": "ms"})


def _events(record: StepRecord) -> Iterator[dict[str, Any]]:
    """The step, and its phases one behind the other: sampling and text take turns for each row and are summed here."""
    rows = {
        "sequences": record.n_sequences,
        "decode rows": record.n_decode,
        "draft tokens": record.n_draft,
        "prefill rows": record.n_prefill,
        "expected ms": round(record.expected_s * 1000, 3),
        "rejected ms": round(record.rejected_s * 1000, 3),
    }
    yield _bar("step", record.start_s, record.seconds, rows)
    known_s = record.plan_s + record.draft_s + record.decode_s + record.sample_s + record.detokenize_s
    phases = {
        **({"draft": record.draft_s} if record.draft_s else {}),
        "plan": record.plan_s,
        "decode": record.decode_s,
        "sample": record.sample_s,
        "detokenize": record.detokenize_s,
        "rest": max(0.0, record.seconds - known_s),
        "send": record.send_s,
    }
    start_s = record.start_s
    for name, seconds in phases.items():
        yield _bar(name, start_s, seconds, {})
        start_s += seconds


def _bar(name: str, start_s: float, seconds: float, args: dict[str, Any]) -> dict[str, Any]:
    """A complete event: microseconds."""
    times = {"ts": round(start_s * 1e6, 1), "dur": round(seconds * 1e6, 1)}
    return {"name": name, "ph": "X", "pid": 1, "tid": 1, "cat": "engine", **times, "args": args}
