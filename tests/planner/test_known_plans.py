"""Plans of all known models: what the loaded one takes counts as free."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ggufd.placement.offload import Machine
from ggufd.planner import known_plans, machine
from ggufd.settings import sources
from tests.support.models.tiny_model import write_tiny_model


async def test_each_has_its_plan_and_what_cannot_be_planned_says_why(tmp_path: Path) -> None:
    paths = {name: str(write_tiny_model(tmp_path / f"{name}.gguf")) for name in ("a", "b")}
    configs = {name: sources.load(None, {"model": path}, {}) for name, path in paths.items()}
    configs["gone"] = sources.load(None, {"model": str(tmp_path / "gone.gguf")}, {})
    plans = await known_plans.plan_known(configs, "a")
    assert plans["a"]["best"]["fits"] is True
    assert plans["b"]["file"] == paths["b"]
    assert "no such file" in plans["gone"]["error"]


def test_the_loaded_model_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write_tiny_model(tmp_path / "a.gguf"))
    configs = {name: sources.load(None, {"model": path}, {}) for name in ("a", "b")}
    real = machine.this_machine

    def nearly_full(config: object) -> Machine:
        return dataclasses.replace(real(config), ram_free=1 << 30, ram_total=2 << 30)  # type: ignore[arg-type]

    monkeypatch.setattr(machine, "this_machine", nearly_full)
    configs["stays"] = sources.load(None, {"model": path, "ctx_size": 64, "parallel": 1}, {})
    plans = known_plans.plan_each(configs, "a", ["stays"])
    own, kept = (plans[name]["best"]["ram"]["own"] for name in ("a", "stays"))
    assert own > kept > 0
    assert plans["b"]["machine"]["ram_free"] == plans["a"]["machine"]["ram_free"] == (1 << 30) + own
    # What stays gives nothing back to the others: for itself alone what it takes is free.
    assert plans["stays"]["machine"]["ram_free"] == (1 << 30) + kept
