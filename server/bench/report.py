"""Report of a run on servers as JSON: samples, machine, warnings."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server import __version__
from server.bench.rows import Row, Sample, results, rows_of
from server.bench.site import MeasuredServer


@dataclass(slots=True)
class BenchReport:
    """Report, filled while the run goes on. Times in seconds; `date` is ISO 8601 with its offset."""

    seed: int
    date: str
    machine: dict[str, str | int]
    servers: list[MeasuredServer] = field(default_factory=list)
    records: list[Sample] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    tokens_per_word: float = 1.3
    cpu_s: float = 0.0
    clock_s: float = 0.0

    def warn(self, lines: Sequence[str]) -> None:
        """Add a warning for the reader of the figures."""
        self.warnings.extend(lines)

    def spent(self, cpu_s: float, clock_s: float) -> None:
        """Count the CPU time of the client itself."""
        self.cpu_s += cpu_s
        self.clock_s += clock_s

    @property
    def client_share(self) -> float:
        """The client's part of one core while it measured, 0 to 1."""
        return self.cpu_s / self.clock_s if self.clock_s else 0.0

    def rows(self) -> list[Row]:
        """One row a metric, in the order of measuring."""
        return rows_of(self.records, len(self.servers))

    def as_json(self) -> dict[str, Any]:
        """Everything, in plain values: each repetition of each metric with its raw samples."""
        return {
            "date": self.date,
            "seed": self.seed,
            "ggufd": __version__,
            "machine": self.machine,
            "servers": [_server(server) for server in self.servers],
            "tokens_per_word": self.tokens_per_word,
            "client": {"cpu_s": self.cpu_s, "clock_s": self.clock_s, "share_of_a_core": self.client_share},
            "warnings": self.warnings,
            "results": results(self.records, len(self.servers)),
        }


def _server(server: MeasuredServer) -> dict[str, Any]:
    return {
        "url": server.client.url,
        "model": server.model,
        "build": server.build,
        "n_ctx": server.n_ctx,
        "n_slots": server.n_slots,
    }


def describe_machine() -> dict[str, str | int]:
    """The machine this runs on; the servers are taken to run here, too."""
    return {
        "cpu": _cpu_name() or platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 0,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": sys.version.split()[0],
    }


def busy() -> list[str]:
    """A warning when other work was on the machine's cores in the last minute; none where the system does not say."""
    if not hasattr(os, "getloadavg"):
        return []
    load = os.getloadavg()[0]
    cores = os.cpu_count() or 1
    # A core's compute threads spin while they wait, so a little other work costs much more than its share.
    return [f"the machine was busy at the start: load {load:.1f} on {cores} cores"] if load > 0.25 * cores else []


def _cpu_name() -> str | None:
    """Name of the CPU, on Linux of /proc/cpuinfo; elsewhere it stays unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
