"""Plans of all known models, made in one process of their own: `python -m ggufd.planner.known_plans`.

What the loaded model takes counts as free for the others, since it makes room for them. What models take that stay
loaded beside it counts as taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from ggufd.errors import GgufdError
from ggufd.models import hub
from ggufd.placement.offload import Machine
from ggufd.settings.config import Config

_TIMEOUT_S_EACH = 20.0
_NICE = 10


async def plan_known(
    configs: Mapping[str, Config], loaded: str, kept: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """Plan of each model by its name, or `{"error": ...}`; nothing where it takes too long. `loaded` is served now, and
    those that are `kept` stay beside it.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "ggufd.planner.known_plans", loaded, *kept),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    sent = json.dumps({name: config.model_dump_json() for name, config in configs.items()}).encode()
    try:
        out, _ = await asyncio.wait_for(process.communicate(sent), _TIMEOUT_S_EACH * (len(configs) + 1))
        found: dict[str, dict[str, Any]] = json.loads(out)
    except (TimeoutError, ValueError):
        return {}
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return found


def plan_each(configs: Mapping[str, Config], loaded: str, kept: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """Plans in this process."""
    plans: dict[str, dict[str, Any]] = {}
    freed = _Freed()
    for name in sorted(configs, key=lambda name: name != loaded):
        try:
            if name in kept:
                plans[name], _ = _plan_resident(configs[name])
            elif name == loaded:
                plans[name], freed = _plan_resident(configs[name])
            else:
                plans[name] = _plan(configs[name], freed)
        except GgufdError as error:
            plans[name] = {"error": error.message}
    return plans


class _Freed(NamedTuple):
    """Memory that a model gives back which is loaded now, in bytes."""

    ram: int = 0
    vram: int = 0


def _plan_resident(config: Config) -> tuple[dict[str, Any], _Freed]:
    """Plan of a model that is loaded now, and what it takes."""
    # Planned beside itself: how much it takes does not depend on what is free, but for automatic choices.
    best = _plan(config, _Freed())["best"]
    freed = _Freed(best["ram"]["own"], best["vram"]["total"])
    return _plan(config, freed), freed


def _plan(config: Config, freed: _Freed) -> dict[str, Any]:
    from ggufd.planner import report
    from ggufd.planner.machine import this_machine
    from ggufd.settings import adapters, engine_settings, model_files

    found = hub.find(config.model.model, may_fetch=False)
    model = hub.with_metadata(found, engine_settings.metadata_of(config))
    model = model_files.with_draft(config, model, may_fetch=False)
    adapters.check(config, model)
    machine = _with(this_machine(engine_settings.engine_config(config, model)), freed)
    return report.as_json(report.make(model, config, engine_settings.context_params(config), machine))


def _with(machine: Machine, freed: _Freed) -> Machine:
    """The machine with so much memory given back; on several GPUs in equal parts."""
    devices = tuple(
        one._replace(free=min(one.total, one.free + freed.vram // len(machine.devices))) for one in machine.devices
    )
    return dataclasses.replace(machine, ram_free=min(machine.ram_total, machine.ram_free + freed.ram), devices=devices)


def main() -> None:
    """Read the settings of all models from standard input, and write their plans."""
    with contextlib.suppress(OSError, AttributeError):
        # Whoever is served goes first.
        os.nice(_NICE)
    configs = {name: Config.model_validate_json(text) for name, text in json.load(sys.stdin).items()}
    print(json.dumps(plan_each(configs, sys.argv[1], sys.argv[2:])))


if __name__ == "__main__":
    main()
