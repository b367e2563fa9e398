"""Findings of the bench's commands as JSON: samples of each side, the machine they are of, warnings."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ggufd import __version__
from ggufd.bench.measure.machine import busy, describe_machine
from ggufd.bench.measure.rows import Row, Sample, results, rows_of
from ggufd.bench.measure.site import Figure, MeasuredServer


@dataclass(slots=True, kw_only=True)
class Findings:
    """Samples, added while a command runs, and their circumstances. `date` is ISO 8601 with its offset."""

    date: str = field(default_factory=lambda: datetime.datetime.now().astimezone().isoformat(timespec="seconds"))
    machine: dict[str, str | int] = field(default_factory=describe_machine)
    warnings: list[str] = field(default_factory=busy)
    records: list[Sample] = field(default_factory=list)

    @property
    def sides(self) -> list[str]:
        """Names of what is compared."""
        raise NotImplementedError

    @property
    def when(self) -> str:
        """Date, and what else tells this run from others."""
        return self.date

    def add(self, repetition: int, side: int, figures: Sequence[Figure]) -> None:
        """Add the figures of one repetition on one side."""
        self.records.extend(Sample(repetition, side, figure) for figure in figures)

    def rows(self) -> list[Row]:
        """One row a metric, in the order of measuring."""
        return rows_of(self.records, len(self.sides))

    def as_json(self) -> dict[str, Any]:
        """Everything, in plain values: each repetition of each metric with its raw samples."""
        return {
            "date": self.date,
            "ggufd": __version__,
            "machine": self.machine,
            "warnings": self.warnings,
            "results": results(self.records, len(self.sides)),
        }


@dataclass(slots=True)
class Sheet(Findings):
    """Findings on anything but servers over HTTP; `names` are those of the sides."""

    names: list[str]

    @property
    def sides(self) -> list[str]:
        return self.names

    def as_json(self) -> dict[str, Any]:
        return Findings.as_json(self) | {"sides": self.sides}


@dataclass(slots=True)
class BenchReport(Findings):
    """Findings of a run on servers. `cpu_s` of `clock_s` seconds were the client's own."""

    seed: int
    servers: list[MeasuredServer] = field(default_factory=list)
    tokens_per_word: float = 1.3
    cpu_s: float = 0.0
    clock_s: float = 0.0

    @property
    def sides(self) -> list[str]:
        return [_described(server) for server in self.servers]

    @property
    def when(self) -> str:
        return f"{self.date}; seed {self.seed}; this client took {self.client_share:.1%} of a core"

    def spent(self, cpu_s: float, clock_s: float) -> None:
        """Count the CPU time of the client itself."""
        self.cpu_s += cpu_s
        self.clock_s += clock_s

    @property
    def client_share(self) -> float:
        """The client's part of one core while it measured, 0 to 1."""
        return self.cpu_s / self.clock_s if self.clock_s else 0.0

    def as_json(self) -> dict[str, Any]:
        return Findings.as_json(self) | {
            "seed": self.seed,
            "servers": [_server(server) for server in self.servers],
            "tokens_per_word": self.tokens_per_word,
            "client": {"cpu_s": self.cpu_s, "clock_s": self.clock_s, "share_of_a_core": self.client_share},
        }


def _described(server: MeasuredServer) -> str:
    known = [server.client.url, server.model, server.build]
    if server.n_slots is not None:
        known.append(f"{server.n_slots} slots")
    if server.n_ctx is not None:
        known.append(f"{server.n_ctx:,} tokens of context a slot")
    return ", ".join(part for part in known if part)


def _server(server: MeasuredServer) -> dict[str, Any]:
    return {
        "url": server.client.url,
        "model": server.model,
        "build": server.build,
        "n_ctx": server.n_ctx,
        "n_slots": server.n_slots,
    }
