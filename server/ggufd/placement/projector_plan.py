"""Memory of an image projector and its process, beside the model."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ggufd.llama.gguf.projector_file import ProjectorFile
from ggufd.placement.offload import Machine

PROCESS = 96 << 20
"""The encoder process without its weights: Python, llama.cpp's library, a vocabulary of 50,000 to 150,000 tokens."""

_COMPUTE = 64 << 20
"""Buffers of one image, in most projectors."""


class ProjectorUse(NamedTuple):
    """Bytes that images take: `ram` with all of the process, `vram` on the GPU."""

    ram: int = 0
    vram: int = 0


def use_of(projector: ProjectorFile | None, *, uses_gpu: bool) -> ProjectorUse:
    """Memory for a projector, on a GPU or not; nothing without one."""
    if projector is None:
        return ProjectorUse()
    weights = projector.n_bytes + _COMPUTE
    return ProjectorUse(PROCESS, weights) if uses_gpu else ProjectorUse(PROCESS + weights)


def remaining(machine: Machine, use: ProjectorUse) -> Machine:
    """Free memory of the machine without it; on GPUs it takes the first."""
    first, *others = machine.devices or (None,)
    devices = () if first is None else (first._replace(free=max(0, first.free - use.vram)), *others)
    limit = machine.vram_limit
    return replace(
        machine,
        ram_free=max(0, machine.ram_free - use.ram),
        devices=devices,
        vram_limit=None if limit is None else max(0, limit - use.vram),
    )
