"""`ggufd bench cluster`: what it says is what was on its way."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ggufd.bench.app import app
from ggufd.bench.cluster import _Passage
from ggufd.bench.measure.client import BenchError, TimedAnswer

QUICK = ["cluster", "--streams", "2", "--tokens", "10", "--rounds", "1", "--pace", "100"]


def an_answer(sent: float, words: list[float], delays: list[float]) -> TimedAnswer:
    text = "".join(f" {round(word * 1e9)}" for word in words)
    times = tuple(word + delay for word, delay in zip(words, delays, strict=True))
    return TimedAnswer(sent, times, text, None, None, None)


def test_a_delay_is_the_time_from_the_words_own_to_its_arrival() -> None:
    begun = time.perf_counter()
    first = an_answer(begun, [begun + 0.5, begun + 1.0], [0.010, 0.012])
    second = an_answer(begun, [begun + 0.7, begun + 1.0], [0.030, 0.014])
    found = _Passage([first, second], cpu_s=0.004)
    assert found.first_s == pytest.approx(0.62)
    assert found.delay_s == pytest.approx(0.013, abs=1e-6)
    assert found.tail_s == pytest.approx(0.030, abs=1e-6)
    assert found.cpu_s == pytest.approx(0.001)


def test_words_of_another_server_are_no_measurement() -> None:
    with pytest.raises(BenchError, match="paced program"):
        _Passage([TimedAnswer(0.0, (1.0, 2.0), " two words", None, None, None)], cpu_s=0.0)


@pytest.mark.e2e
def test_both_ways_are_measured_and_the_ingress_has_its_cpu_time(tmp_path: Path) -> None:
    written = tmp_path / "samples.json"
    done = CliRunner().invoke(app, [*QUICK, "--json", str(written)])
    assert done.exit_code == 0, done.output
    results = {row["quantity"]: row for row in json.loads(written.read_text())["results"]}
    assert set(results) == {"first byte", "delay a token", "delay a token, p99", "CPU a token"}
    assert {row["case"] for row in results.values()} == {"2 streams"}
    through, direct = results["delay a token"]["medians"]
    assert 0 < direct < through
    assert results["CPU a token"]["medians"][0] > 0
    assert results["CPU a token"]["medians"][1] is None


@pytest.mark.e2e
def test_another_ingress_may_be_measured() -> None:
    command = f"{sys.executable} -m ggufd.cluster.ingress {{port}} other={{direct}}"
    done = CliRunner().invoke(app, [*QUICK, "--ingress", command])
    assert done.exit_code == 0, done.output
    assert "through the ingress" in done.output
