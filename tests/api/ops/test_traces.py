"""Traces: one span a request, in the caller's trace, with its phases, and nothing of what was said."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from ggufd.api.http.record import RequestRecord
from ggufd.api.ops.traces import Traces, connect
from ggufd.daemon import daemon
from ggufd.errors import EngineFailure, StartupError
from ggufd.settings import sources
from tests.support.fakes.api_client import ring_of, running
from tests.support.fakes.fake_engine import FakeEngine

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Spans:
    """Traces that are kept here."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        self.traces = Traces(SimpleSpanProcessor(self._kept))

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        return self._kept.get_finished_spans()


async def test_a_request_is_a_span_with_its_phases() -> None:
    spans = Spans()
    async with running(keys=ring_of("k"), sinks=[spans.traces.observe]) as api:
        headers = {"x-api-key": "k", "x-request-id": "me", "traceparent": f"00-{TRACE}-{PARENT}-01"}
        await api.post("/v1/completions", {"prompt": "canary", "stream": True}, headers=headers)
        await api.http.get("/v1/models", headers=headers)
    (span,) = spans.all
    assert span.name == "POST /v1/completions"
    assert span.parent is not None
    assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert span.attributes is not None
    assert span.attributes["gen_ai.usage.input_tokens"] == 6
    assert span.attributes["gen_ai.usage.output_tokens"] == 11
    assert span.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert (span.attributes["enduser.id"], span.attributes["ggufd.request_id"]) == ("key-1", "me")
    assert span.status.status_code is StatusCode.UNSET
    assert [event.name for event in span.events] == ["admitted", "first token", "end"]
    assert span.start_time is not None
    times = [span.start_time, *(event.timestamp for event in span.events), span.end_time]
    assert times == sorted(times)
    assert "canary" not in json.dumps(json.loads(span.to_json()))
    assert span.resource.attributes["service.name"] == "ggufd"


@pytest.mark.parametrize("traceparent", ["", "nonsense", f"00-{'0' * 32}-{PARENT}-01"])
async def test_without_a_callers_trace_it_begins_one(traceparent: str) -> None:
    spans = Spans()
    async with running(sinks=[spans.traces.observe]) as api:
        await api.post("/v1/completions", {"prompt": "a"}, headers={"traceparent": traceparent})
    assert [span.parent for span in spans.all] == [None]


async def test_a_failure_is_marked() -> None:
    spans = Spans()
    engine = FakeEngine()
    engine.error = EngineFailure("no room")
    async with running(engine, sinks=[spans.traces.observe]) as api:
        await api.post("/v1/completions", {"prompt": "a"})
    (span,) = spans.all
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "engine_failure")
    assert [event.name for event in span.events] == ["end"]


def test_spans_reach_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
        traces = connect()
        traces.observe(RequestRecord(is_work=True, request_id="me", method="POST", path="/x", reason="stop"))
        traces.close()
    ((path, body),) = came
    assert path == "/v1/traces"
    assert b"me" in body
    assert b"mine" in body


def test_a_missing_extra_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(__import__("sys").modules, "ggufd.api.ops.traces")
    with pytest.raises(StartupError, match=r"pip install .*ggufd\[otel\]"):
        daemon.open_traces(sources.load(None, {"traces": True}, {}))
    assert daemon.open_traces(sources.load(None, {}, {})) is None
