"""`ggufd bench` against servers that it starts itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ggufd.bench.app import app
from ggufd.bench.curves.command import CURVES
from ggufd.bench.curves.curve import Curve
from ggufd.bench.curves.ground import QUICK

pytestmark = pytest.mark.timed


def test_a_real_server_has_a_curve_of_streams(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    flags = ["-m", str(tiny_model), "-t", "1", "--quick", "--only", "streams", "--json", str(out)]
    result = CliRunner().invoke(app, ["curves", *flags, "--plots", str(tmp_path)])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    (curve,) = map(Curve.of_json, found["curves"])
    assert {point.quantity for point in curve.points} >= {"a step", "all streams", "planning"}
    assert {point.x for point in curve.points} == set(QUICK.streams)
    assert all(0 < point.value < 100 for point in curve.points if point.unit == "% of a step")
    assert (tmp_path / "curve-streams.svg").exists()
    assert set(CURVES) == {"streams", "context", "chats", "gaps"}
