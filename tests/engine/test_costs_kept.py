"""Costs of steps over a restart: the next engine begins with what the last one has learned."""

from __future__ import annotations

from pathlib import Path

import pytest

from ggufd.engine.costs.cost_file import CostFile
from tests.support.fakes.fake_llama import make_engine, make_request


@pytest.mark.parametrize(("n_tokens", "is_kept"), [(300, True), (20, False)])
def test_a_closed_engine_leaves_what_it_learned(tmp_path: Path, n_tokens: int, *, is_kept: bool) -> None:
    file = CostFile(tmp_path / "step-costs.json", "a machine and its model")
    rig = make_engine(n_slots=2, cost_file=file)
    rig.add(make_request(1, b"a prompt of some tokens", max_tokens=n_tokens, ignore_eos=True))
    rig.run()
    rig.engine.close(1.0)
    kept = file.read()
    assert (kept is not None) == is_kept
    if kept is not None:
        # The fake takes 10 ms a pass and half a millisecond a row.
        assert kept.pass_s + kept.row_s == pytest.approx(0.0105, rel=0.1)
