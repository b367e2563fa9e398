"""Prometheus metrics. Ours begin with ggufd_; llama-server's and vLLM's names stand beside where they fit.

Requests are counted once, when they have ended; what happens in every step is counted by the engine and fetched with
its `Stats` when somebody scrapes. Nothing is done a token here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ggufd import __version__
from ggufd.api.http.record import DISCONNECTED, RequestRecord
from ggufd.api.services.rates import RatesCollector
from ggufd.chat.advice.advisor import LostPrefix
from ggufd.engine.messages.events import FinishReason
from ggufd.engine.messages.reports import Ready, SlotState, Spread, Stats
from ggufd.images.figures import ImageFigures

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The plain format, whatever is asked for: every Prometheus reads it, and in OpenMetrics the client library writes
llama-server's names with an underscore for the colon."""

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 600.0)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144)
_ABORTS = (DISCONNECTED, FinishReason.ABORT.value)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Current state for the gauges. Without an engine that answers, `stats` or `ready` are None.

    `n_waiting` and `n_running` requests are open. `batch_lines` are those of batches that have not ended, by what
    became of them; None without batches. `images` is None where the model reads none.
    """

    state: str
    model_id: str
    ready: Ready | None
    stats: Stats | None
    n_waiting: int
    n_running: int
    batch_lines: Mapping[str, int] | None = None
    images: ImageFigures | None = None


class Metrics:
    """All metrics, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._engine = _EngineCollector()
        self._registry.register(self._engine)
        self._rates = RatesCollector()
        self._registry.register(self._rates)
        ProcessCollector(registry=self._registry)
        self.since = int(time.time())
        """Unix time since when it counts."""
        self._first = self._histogram("time_to_first_token_seconds", "From a request's arrival to its first token.")
        self._queue = self._histogram("queue_wait_seconds", "From arrival in the queue to a slot.")
        self._took = self._histogram("request_seconds", "From a request's arrival to its end.")
        self._prompt = self._histogram("request_prompt_tokens", "Tokens of a request's prompts.", _TOKENS)
        self._generated = self._histogram("request_generated_tokens", "Tokens of a request's answers.", _TOKENS)
        self._requests = self._counter(
            "requests", "Requests that the model worked for, by how they ended.", "key", "reason"
        )
        self._key_tokens = self._counter("key_tokens", "Tokens by key: cached, computed, generated.", "key", "kind")
        self._aborts = self._counter("aborts", "Requests that ended early, by a disconnect or an abort.", "reason")
        self._errors = self._counter("errors", "Answers that were errors, by their code.", "code")
        self._lost_prefixes = self._counter(
            "lost_prefixes", "Turns that could not reuse what was computed of their chat.", "cause", "place"
        )
        self._lost_tokens = self._counter("lost_prefix_tokens", "Tokens computed again in such turns.", "cause")
        self._llama = {name: self._like_llama_server(name, text) for name, text in _LLAMA_COUNTERS.items()}

    def _histogram(self, name: str, text: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
        return Histogram(f"ggufd_{name}", text, buckets=buckets, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"ggufd_{name}", text, labels, registry=self._registry)

    def _like_llama_server(self, name: str, text: str) -> Counter:
        return Counter(f"llamacpp:{name}", text, registry=self._registry)

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge whose value is read when somebody scrapes."""
        Gauge(f"ggufd_{name}", text, registry=self._registry).set_function(read)

    def watch_each(self, name: str, text: str, label: str, reads: Mapping[str, Callable[[], float]]) -> None:
        """Add a gauge of several values, by a label, which are read when somebody scrapes."""
        gauge = Gauge(f"ggufd_{name}", text, [label], registry=self._registry)
        for value, read in reads.items():
            gauge.labels(value).set_function(read)

    def observe(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        if record.reason and record.status >= 400:
            self._errors.labels(record.reason).inc()
        if record.is_work:
            self._observe_generation(record)

    def _observe_generation(self, record: RequestRecord) -> None:
        self._requests.labels(record.key, record.reason).inc()
        if record.reason in _ABORTS:
            self._aborts.labels(record.reason).inc()
        elif record.status == 200 and record.reason not in _WELL:
            # The error came when the headers were out.
            self._errors.labels(record.reason).inc()
        if not record.is_background:
            self._observe_waits(record)
        if record.first_s is not None:
            self._generated.observe(record.completion_tokens)
        if record.first_s is not None or record.reason in _WELL:
            self._observe_tokens(record)

    def _observe_waits(self, record: RequestRecord) -> None:
        """Times that somebody waited: lines of batches wait for hours, and nobody with them."""
        self._took.observe(record.took_s)
        if record.queue_s is not None:
            self._queue.observe(record.queue_s)
        if record.first_s is not None:
            self._first.observe(record.first_s)

    def _observe_tokens(self, record: RequestRecord) -> None:
        n_computed = record.prompt_tokens - record.cached_tokens
        self._prompt.observe(record.prompt_tokens)
        kinds = {"cached": record.cached_tokens, "computed": n_computed, "generated": record.completion_tokens}
        for kind, n_tokens in kinds.items():
            self._key_tokens.labels(record.key, kind).inc(n_tokens)
        self._rates.observe(record)
        self._llama["prompt_tokens"].inc(n_computed)
        self._llama["prompt_tokens_cached"].inc(record.cached_tokens)
        self._llama["prompt_seconds"].inc(record.prefill_s or 0.0)
        self._llama["tokens_predicted"].inc(record.completion_tokens)
        self._llama["tokens_predicted_seconds"].inc(record.decode_s)

    def observe_lost_prefix(self, lost: LostPrefix) -> None:
        """Count a turn whose prompt differed from the last one's early."""
        self._lost_prefixes.labels(lost.cause.value, lost.cost.place).inc()
        self._lost_tokens.labels(lost.cause.value).inc(lost.cost.tokens)

    def exposition(self, snapshot: Snapshot) -> bytes:
        """The text, of the type `MEDIA_TYPE`."""
        self._engine.snapshot = snapshot
        return generate_latest(self._registry)


_WELL = (FinishReason.STOP.value, FinishReason.LENGTH.value)

_LLAMA_COUNTERS = {
    "prompt_tokens": "Prompt tokens that were computed.",
    "prompt_tokens_cached": "Prompt tokens that were reused.",
    "prompt_seconds": "Time that computing prompts took.",
    "tokens_predicted": "Tokens that were generated.",
    "tokens_predicted_seconds": "Time that generating them took.",
}


class _EngineCollector(Collector):
    """Collector of the engine's own counters, as reported last."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing before the first scrape."""
        return ()

    def collect(self) -> Iterator[Metric]:
        snapshot = self.snapshot
        if snapshot is None:
            return
        state = GaugeMetricFamily("ggufd_engine_state", "1 of the state that the engine is in.", labels=["state"])
        state.add_metric([snapshot.state], 1)
        yield state
        info = GaugeMetricFamily(
            "ggufd_info", "Always 1; what is served by which version.", labels=["model", "version"]
        )
        info.add_metric([snapshot.model_id, __version__], 1)
        yield info
        yield from _like_vllm(snapshot)
        if snapshot.batch_lines is not None:
            text = "Lines of batches that have not ended, by what became of them."
            yield _gauge("ggufd_batch_lines", text, "state", snapshot.batch_lines)
        if snapshot.images is not None:
            yield from _images(snapshot.images)
        if snapshot.stats is not None and snapshot.ready is not None:
            yield from _sums(snapshot.stats)
            yield from _spreads(snapshot.stats)
            yield from _levels(snapshot.stats, snapshot.ready)


def _images(figures: ImageFigures) -> Iterator[Metric]:
    became = CounterMetricFamily("ggufd_images", "Images of requests, by what became of them.", labels=["outcome"])
    for outcome in ("encoded", "hits", "failed"):
        became.add_metric([outcome.removesuffix("s")], getattr(figures, outcome))
    yield became
    yield HistogramMetricFamily(
        "ggufd_image_encode_seconds",
        "Time of encoding one image.",
        buckets=_cumulated(figures.seconds),
        sum_value=figures.seconds.total,
    )
    yield CounterMetricFamily("ggufd_image_encoder_exits", "Unexpected ends of the encoder.", value=figures.exits)
    yield GaugeMetricFamily("ggufd_image_queue", "Images that wait to be encoded.", value=figures.waiting)
    yield GaugeMetricFamily("ggufd_image_rows_bytes", "Encoded images kept on disk.", value=figures.row_bytes)


def _like_vllm(snapshot: Snapshot) -> Iterator[GaugeMetricFamily]:
    """What routers in front of several servers look for, under vLLM's names; without the cache where nobody tells it.

    Chats that are kept for a next turn make room when it is needed, so they count as free, as they do there.
    """
    stats, ready = snapshot.stats, snapshot.ready
    values: dict[str, tuple[str, float]] = {
        "vllm:num_requests_waiting": ("Requests without a slot yet.", snapshot.n_waiting),
        "vllm:num_requests_running": ("Requests that run.", snapshot.n_running),
    }
    if stats is not None and ready is not None:
        running = [slot for slot in stats.slots if slot.request_id is not None]
        share = _n_tokens(running) / max(1, len(stats.slots) * ready.n_ctx)
        values |= dict.fromkeys(_CACHE_SHARES, ("Share of the KV cache that running requests hold, 0 to 1.", share))
    for name, (text, value) in values.items():
        family = GaugeMetricFamily(name, text, labels=["model_name"])
        family.add_metric([snapshot.model_id], value)
        yield family


_CACHE_SHARES = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
"""The name of today, which llm-d reads, and the one before, which vLLM's production stack still does."""


def _sums(stats: Stats) -> Iterator[CounterMetricFamily]:
    sums = (
        ("ggufd_steps", "Batches that were computed.", stats.steps),
        ("ggufd_computed_tokens", "Rows of all batches: prompt tokens and generated ones.", stats.computed_tokens),
        ("ggufd_cached_tokens", "Prompt tokens that were reused instead.", stats.cached_tokens),
        ("ggufd_generated_tokens", "Tokens that were sampled.", stats.generated_tokens),
        ("ggufd_embedded_tokens", "Tokens of texts that became vectors or scores.", stats.embedded_tokens),
        ("ggufd_drafted_tokens", "Draft tokens proposed by speculative decoding.", stats.drafted_tokens),
        ("ggufd_accepted_tokens", "Draft tokens accepted.", stats.accepted_tokens),
        (
            "ggufd_rejected_draft_seconds",
            "Expected time of draft tokens that were rejected, of all that steps took.",
            stats.rejected_draft_s,
        ),
        ("ggufd_model_drafted_tokens", "Draft tokens proposed by the draft model.", stats.model_drafted_tokens),
        ("ggufd_model_accepted_tokens", "Draft tokens of the draft model accepted.", stats.model_accepted_tokens),
        ("ggufd_preemptions", "Times that a sequence gave up its slot for a while.", stats.preemptions),
        ("ggufd_restores", "Chats that came back from host RAM.", stats.restores),
        ("ggufd_failed_restores", "Kept states that could not be used: computed anew.", stats.failed_restores),
        ("llamacpp:n_decode", "Calls of llama_decode.", stats.steps),
        ("llamacpp:spec_decode_num_draft_tokens", "Draft tokens proposed.", stats.drafted_tokens),
        ("llamacpp:spec_decode_num_accepted_tokens", "Draft tokens accepted.", stats.accepted_tokens),
    )
    for name, text, value in sums:
        yield CounterMetricFamily(name, text, value=value)
    evictions = CounterMetricFamily("ggufd_evictions", "Kept chats that had to go.", labels=["from"])
    evictions.add_metric(["slot"], stats.evictions)
    evictions.add_metric(["host_ram"], stats.host_evictions)
    yield evictions


def _spreads(stats: Stats) -> Iterator[HistogramMetricFamily]:
    spreads = (
        ("ggufd_step_seconds", "Time of one llama_decode.", stats.step_seconds),
        (
            "ggufd_step_gap_seconds",
            "From the end of one llama_decode to the next one's beginning.",
            stats.step_gap_seconds,
        ),
        ("ggufd_token_gap_seconds", "Between two tokens of one sequence.", stats.token_gap_seconds),
        ("ggufd_batch_tokens", "Rows of a batch.", stats.batch_rows),
        ("ggufd_step_cost_error_ratio", "Error of the time expected of a llama_decode.", stats.cost_errors),
    )
    for name, text, spread in spreads:
        yield HistogramMetricFamily(name, text, buckets=_cumulated(spread), sum_value=spread.total)


def _cumulated(spread: Spread) -> list[tuple[str, float]]:
    buckets, n_values = [], 0
    for bound, count in zip((*spread.bounds, float("inf")), spread.counts, strict=True):
        n_values += count
        buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), float(n_values)))
    return buckets


def _levels(stats: Stats, ready: Ready) -> Iterator[GaugeMetricFamily]:
    running = [slot for slot in stats.slots if slot.request_id is not None]
    kept = [slot for slot in stats.slots if slot.request_id is None]
    n_used = sum(slot.n_past > 0 for slot in kept)
    slots = {"running": len(running), "cached": n_used, "empty": len(kept) - n_used}
    cells = {"running": _n_tokens(running), "cached": _n_tokens(kept)}
    memory = {"buffers": ready.memory_bytes, "host_cache": stats.host_bytes, "resident": stats.resident_bytes}
    yield _gauge("ggufd_slots", "Slots, by what they do.", "state", slots)
    yield _gauge("ggufd_kv_tokens", "Tokens in the slots, of sequences that run or are kept.", "state", cells)
    yield _gauge(
        "ggufd_memory_bytes",
        "Of the engine: llama.cpp's buffers, chats in host RAM, and all that its process holds.",
        "of",
        memory,
    )
    levels = (
        ("ggufd_kv_capacity_tokens", "Tokens that all slots can hold.", len(stats.slots) * ready.n_ctx),
        ("ggufd_waiting_sequences", "Sequences in the queue.", stats.waiting),
        ("llamacpp:requests_processing", "Sequences that run.", stats.running),
        ("llamacpp:requests_deferred", "Sequences that wait.", stats.waiting),
        ("llamacpp:n_tokens_max", "Length of the longest sequence so far.", stats.longest),
        (
            "llamacpp:n_busy_slots_per_decode",
            "Sequences in a batch, on average.",
            stats.busy_slots / max(1, stats.steps),
        ),
    )
    for name, text, value in levels:
        yield GaugeMetricFamily(name, text, value=value)


def _n_tokens(slots: Iterable[SlotState]) -> int:
    return sum(slot.n_past for slot in slots)


def _gauge(name: str, text: str, label: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family
