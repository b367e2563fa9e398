"""Samples of a command that measures something else than a run on servers, and the machine they are of."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from server import __version__
from server.bench.report import busy, describe_machine
from server.bench.rows import Sample, results
from server.bench.site import Figure


@dataclass(slots=True)
class Sheet:
    """Sheet of samples, filled while the command runs. `sides` are their names; `date` is ISO 8601 with its offset."""

    sides: list[str]
    date: str = field(default_factory=lambda: datetime.datetime.now().astimezone().isoformat(timespec="seconds"))
    machine: dict[str, str | int] = field(default_factory=describe_machine)
    records: list[Sample] = field(default_factory=list)
    warnings: list[str] = field(default_factory=busy)

    def add(self, repetition: int, side: int, figures: Sequence[Figure]) -> None:
        """Add the figures of one repetition on one side."""
        self.records.extend(Sample(repetition, side, figure) for figure in figures)

    def as_json(self) -> dict[str, Any]:
        """Everything, in plain values."""
        return {
            "date": self.date,
            "ggufd": __version__,
            "machine": self.machine,
            "sides": self.sides,
            "warnings": self.warnings,
            "results": results(self.records, len(self.sides)),
        }
