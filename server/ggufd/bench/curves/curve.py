"""Curve: quantities over one growing number. Plain data, to JSON and back."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Point:
    """The median of `raw` at `x`."""

    x: float
    quantity: str
    unit: str
    value: float
    raw: tuple[float, ...]


@dataclass(slots=True)
class Curve:
    """`x` says what the numbers below are; quantities of one unit belong into one picture."""

    name: str
    x: str
    points: list[Point] = field(default_factory=list)

    def add(self, x: float, quantity: str, unit: str, raw: Sequence[float]) -> None:
        """The median of what was measured at `x`; nothing where there is nothing."""
        if raw:
            self.points.append(Point(x, quantity, unit, statistics.median(raw), tuple(raw)))

    @property
    def units(self) -> list[str]:
        """In the order of measuring."""
        return list(dict.fromkeys(point.unit for point in self.points))

    def lines(self, unit: str) -> dict[str, list[Point]]:
        """The quantities of a unit, each with its points by ascending x."""
        found: dict[str, list[Point]] = {}
        for point in sorted(self.points, key=lambda point: point.x):
            if point.unit == unit:
                found.setdefault(point.quantity, []).append(point)
        return found

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> Curve:
        """Back from `as_json`."""
        points = [Point(**{**point, "raw": tuple(point["raw"])}) for point in value["points"]]
        return cls(value["name"], value["x"], points)
