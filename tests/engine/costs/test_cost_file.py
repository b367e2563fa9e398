"""Costs that outlive the engine: by what they depend on, and nothing of a file that says something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ggufd.engine.costs.cost_file import CostFile
from ggufd.engine.costs.cost_model import Weights

SOME = Weights(0.012, 0.003, 1e-6, 5e-7)


def test_what_was_written_is_read_again_under_its_key_only(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "step-costs.json"
    assert CostFile(path, "a").read() is None
    CostFile(path, "a").write(SOME)
    CostFile(path, "b").write(SOME.scaled(2))
    assert CostFile(path, "a").read() == SOME
    assert CostFile(path, "b").read() == SOME.scaled(2)
    assert CostFile(path, "c").read() is None
    assert [one.name for one in path.parent.iterdir()] == ["step-costs.json"]


def test_the_oldest_entries_go(tmp_path: Path) -> None:
    path = tmp_path / "step-costs.json"
    for number in range(70):
        CostFile(path, str(number)).write(SOME)
    CostFile(path, "10").write(SOME)
    kept = list(json.loads(path.read_text()))
    assert kept == [*map(str, range(6, 10)), *map(str, range(11, 70)), "10"]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[1]", "null", '{"a": 1}', '{"a": [1, 2, 3]}', '{"a": [1, 2, 3, "4"]}', '{"a": [1, 2, 3, -4]}'),
        *('{"a": [1, 2, 3, NaN]}', '{"a": [1, 2, 3, Infinity]}', '{"a": [0, 0, 0, 0]}', '{"a": [1, 2, 3, null]}'),
    ],
)
def test_a_file_that_says_something_else_is_nothing_and_written_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "step-costs.json"
    path.write_text(text)
    assert CostFile(path, "a").read() is None
    CostFile(path, "a").write(SOME)
    assert CostFile(path, "a").read() == SOME


def test_nothing_is_kept_without_a_file_or_where_none_can_be_written(tmp_path: Path) -> None:
    CostFile(None, "a").write(SOME)
    assert CostFile(None, "a").read() is None
    (tmp_path / "file").write_text("")
    CostFile(tmp_path / "file" / "step-costs.json", "a").write(SOME)
    assert CostFile(tmp_path / "file" / "step-costs.json", "a").read() is None
