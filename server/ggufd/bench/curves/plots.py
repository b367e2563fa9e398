"""Plots of curves, one file each. The one module that needs matplotlib (extra `bench`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ggufd.bench.curves.curve import Curve

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, so that the file is small
    "svg.hashsalt": "ggufd",  # the same curve is the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
_WIDTH, _HEIGHT = 3.3, 2.7
_ROOM_FOR_LEGEND = 1.4


def draw(curves: Sequence[Curve], folder: Path) -> list[Path]:
    """Write a plot of each curve that has points; returns the files. Raises OSError when it cannot."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_draw(curve, folder / f"curve-{curve.name}.svg") for curve in curves if curve.points]


def _draw(curve: Curve, path: Path) -> Path:
    with matplotlib.rc_context(_STYLE):
        units = curve.units
        figure = Figure(figsize=(_WIDTH * len(units), _HEIGHT), layout="constrained", facecolor="white")
        for axes, unit in zip(figure.subplots(1, len(units), squeeze=False)[0], units, strict=True):
            _panel(axes, curve, unit)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path


def _panel(axes: Axes, curve: Curve, unit: str) -> None:
    """Plot of the quantities of one unit: linear from zero, x axis logarithmic."""
    lines = curve.lines(unit)
    for quantity, points in lines.items():
        axes.plot([point.x for point in points], [point.value for point in points], "o-", ms=3.5, label=quantity)
    places = sorted({point.x for point in curve.points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [_short(place) for place in places])
    axes.minorticks_off()
    axes.set_xlabel(curve.x)
    axes.set_ylabel(unit)
    if len(lines) == 1:
        axes.set_title(next(iter(lines)), fontsize=9)
    else:
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    highest = max(point.value for points in lines.values() for point in points)
    axes.set_ylim(0, highest * (1.1 if len(lines) == 1 else _ROOM_FOR_LEGEND) or 1)


def _short(value: float) -> str:
    """1,024 as 1k."""
    return f"{value / 1024:g}k" if value >= 1024 and value % 1024 == 0 else f"{value:g}"
