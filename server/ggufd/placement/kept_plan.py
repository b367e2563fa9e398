"""Memory of models that stay loaded beside the one that is planned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from ggufd.placement.offload import Machine


class KeptUse(NamedTuple):
    """Memory of one model that stays loaded, in bytes: RAM with its memory-mapped weights, and of all GPUs together."""

    name: str
    ram: int
    vram: int


def remaining(machine: Machine, kept: Iterable[KeptUse]) -> Machine:
    """Free memory of the machine beside them; GPUs are filled in their order."""
    for one in kept:
        machine = _without(machine, one)
    return machine


def _without(machine: Machine, one: KeptUse) -> Machine:
    left, devices = one.vram, []
    for device in machine.devices:
        part = min(left, device.free)
        devices.append(device._replace(free=device.free - part))
        left -= part
    limit = machine.vram_limit
    return replace(
        machine,
        ram_free=max(0, machine.ram_free - one.ram),
        devices=tuple(devices),
        vram_limit=None if limit is None else max(0, limit - one.vram),
    )
