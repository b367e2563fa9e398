"""`ggufd bench goodput` against two real servers, in its short form: every rate is said, with no figure asserted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ggufd.bench.app import app
from ggufd.bench.goodput.load import RequestKind
from tests.support.programs.live_server import LiveServer, live_server

N_REQUESTS = 8


@pytest.fixture(scope="module")
def servers(tiny_model: Path) -> Iterator[tuple[LiveServer, LiveServer]]:
    flags = ("-m", str(tiny_model), "-np", "2", "-c", "1024", "--max-queue", "500")
    flags += ("--api-key", "heavy", "--api-key", "light")
    with live_server(*flags) as one, live_server(*flags) as two:
        yield one, two


def test_every_rate_of_both_is_said(servers: tuple[LiveServer, LiveServer], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    urls = [servers[0].url, "--against", servers[1].url]
    flags = ["--quick", "--requests", str(N_REQUESTS), "--rate", "4", "--max-rate", "4"]
    # A busy machine must not make a search of it.
    flags += ["--ttft-ms", "600000", "--itl-p95-ms", "600000"]
    keys = ["--heavy-key", "heavy", "--light-key", "light", "--light-rate", "10"]
    result = CliRunner().invoke(app, ["goodput", *urls, *flags, *keys, "--json", str(out)])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    said = re.findall(r"^([AB]), .* requests/s: \d+% of \d+ kept it, .* light user \d+%", result.output, re.MULTILINE)
    assert said == ["A", "B"] * 2, "the one rate, and three times as much"
    assert [(rate["server"], rate["rate"]) for rate in found["rates"]] == [(0, 4), (1, 4), (0, 12), (1, 12)]
    assert {(row["case"], row["quantity"]) for row in found["results"]} == {
        ("90% of requests keep the objective", "highest rate"),
        ("the light user, at any rate", "least share kept"),
    }
    assert all(None not in row["medians"] for row in found["results"])
    assert found["objective"]["ttft_s"] == 600
    for rate in found["rates"]:
        assert rate["errors"] == 0, rate
        assert len(rate["requests"]) >= N_REQUESTS
        assert len(rate["light_requests"]) >= 20
        assert {request["kind"] for request in rate["requests"]} == {kind.value for kind in RequestKind}
        assert all(request["ttft_s"] > 0 for request in rate["requests"] + rate["light_requests"])
    assert "objective: TTFT up to" in result.output


def test_a_key_that_is_missing_is_asked_for(servers: tuple[LiveServer, LiveServer]) -> None:
    result = CliRunner().invoke(app, ["goodput", servers[0].url, "--quick"])
    assert result.exit_code == 1
    assert "give it with --api-key" in result.output
