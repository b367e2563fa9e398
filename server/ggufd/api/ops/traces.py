"""OpenTelemetry tracing: one span a generation request, with its phases as events. Needs the extra `otel`.

Where spans go, which are kept and what the service is called is told to OpenTelemetry in its own words, the OTEL_...
variables. A caller's `traceparent` makes the span part of the caller's trace. Nothing that was said is in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind, Status, StatusCode

from ggufd import __version__
from ggufd.api.http.record import RequestRecord
from ggufd.engine.messages.events import FinishReason

_NS = 1_000_000_000
_WELL = (FinishReason.STOP.value, FinishReason.LENGTH.value)


class Traces:
    """Exporter of request records as spans, by a `processor` that sends them on a thread of its own."""

    def __init__(self, processor: SpanProcessor) -> None:
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("ggufd", __version__)

    def observe(self, record: RequestRecord) -> None:
        """A request has ended."""
        if not record.is_work:
            return
        end_ns = time.time_ns()
        start_ns = end_ns - int(record.took_s * _NS)
        span = self._tracer.start_span(
            f"{record.method} {record.path[:60]}",
            context=extract({"traceparent": record.traceparent}) if record.traceparent else None,
            kind=SpanKind.SERVER,
            attributes=dict(_attributes(record)),
            start_time=start_ns,
        )
        for name, after_s in _phases(record):
            span.add_event(name, timestamp=start_ns + int(after_s * _NS))
        if record.reason not in _WELL:
            span.set_status(Status(StatusCode.ERROR, record.reason))
        span.end(end_ns)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _resource() -> Resource:
    """Who we are; what OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES say goes before our own name."""
    found = Resource.create({"service.version": __version__})
    is_named = not str(found.attributes["service.name"]).startswith("unknown_service")
    return found if is_named else found.merge(Resource({"service.name": "ggufd"}))


def _attributes(record: RequestRecord) -> Iterator[tuple[str, Any]]:
    """OpenTelemetry's names where it has them."""
    yield "http.request.method", record.method
    yield "url.path", record.path
    yield "http.response.status_code", record.status
    yield "client.address", record.address
    yield "gen_ai.request.model", record.model
    yield "gen_ai.response.finish_reasons", [record.reason]
    yield "gen_ai.usage.input_tokens", record.prompt_tokens
    yield "gen_ai.usage.output_tokens", record.completion_tokens
    yield "ggufd.cached_tokens", record.cached_tokens
    yield "ggufd.request_id", record.request_id
    if record.key:
        yield "enduser.id", record.key


def _phases(record: RequestRecord) -> Iterator[tuple[str, float]]:
    """What happened, and how many seconds after the request had come. The engine tells lengths, so places are near."""
    if record.first_s is not None:
        if record.prefill_s is not None:
            yield "admitted", max(0.0, record.first_s - record.prefill_s)
        yield "first token", record.first_s
    yield "end", record.took_s


def connect() -> Traces:
    """Traces that are sent by OTLP over HTTP to OTEL_EXPORTER_OTLP_ENDPOINT, else to this machine's collector."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return Traces(BatchSpanProcessor(OTLPSpanExporter()))
