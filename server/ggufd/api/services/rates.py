"""Throughput since the last scrape, in llama-server's names: what was computed meanwhile, over the time that it took.

Who scrapes begins anew, so two who scrape share the figures; the counters beside them have no such fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ggufd.api.http.record import RequestRecord


@dataclass(slots=True)
class _Work:
    """Tokens, and the seconds that they took."""

    n_tokens: int = 0
    took_s: float = 0.0

    def take(self) -> float:
        """Tokens a second, 0 where nothing was done; begins anew."""
        rate = self.n_tokens / self.took_s if self.took_s > 0 else 0.0
        self.n_tokens, self.took_s = 0, 0.0
        return rate


class RatesCollector(Collector):
    """Collector of the two rates; requests count when they have ended."""

    def __init__(self) -> None:
        self._prompt = _Work()
        self._decode = _Work()

    def observe(self, record: RequestRecord) -> None:
        """Count a request. The first token of an answer comes with its prompt."""
        self._prompt.n_tokens += record.prompt_tokens - record.cached_tokens
        self._prompt.took_s += record.prefill_s or 0.0
        self._decode.n_tokens += record.decoded_tokens
        self._decode.took_s += record.decode_s

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing: to ask for names must not begin anew."""
        return ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        rates = (
            ("llamacpp:prompt_tokens_seconds", "Prompt tokens computed a second.", self._prompt),
            ("llamacpp:predicted_tokens_seconds", "Tokens generated a second.", self._decode),
        )
        for name, text, work in rates:
            yield GaugeMetricFamily(name, f"{text} Since the last scrape.", value=work.take())
