"""Placement of a model and its draft model on GPUs and in RAM, where the settings leave that to the loader."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ggufd.engine.messages.config import DraftConfig, EngineConfig
from ggufd.errors import ModelError
from ggufd.llama.gguf import gguf_header, shape
from ggufd.llama.gguf.shape import Shape
from ggufd.llama.model import system
from ggufd.llama.model.placing import check_gpus, check_overrides, chosen_devices
from ggufd.llama.params import ContextParams, ModelParams
from ggufd.placement import draft_plan, host, projector_plan
from ggufd.placement.memory import Extras, estimate
from ggufd.placement.offload import Device, Machine, PlacementRequest, choose, cpu_placement, host_cache_bytes


class Placed(NamedTuple):
    """Settings with the layers on GPUs decided, the reason, and the VRAM that takes where the loader chose."""

    config: EngineConfig
    why: str
    vram_bytes: int = 0


def place(config: EngineConfig, devices: Sequence[system.DeviceMemory]) -> Placed:
    """Placement on GPUs, chosen where the settings leave it open. Raises ModelError for impossible settings."""
    gpus = usable_gpus(config, devices)
    if not gpus:
        return Placed(config, "")
    if config.model.n_gpu_layers is not None and config.draft is None:
        return Placed(config, "as configured")
    made = shape_of(config)
    ram = host.ram()
    machine = Machine(ram.free, ram.total, gpus, system.cpu_features(), config.vram_limit)
    machine = projector_plan.remaining(machine, config.beside)
    config, machine, draft_bytes = _place_draft(config, made, machine)
    if config.model.n_gpu_layers is not None:
        return Placed(config, "as configured")
    choice = choose(made, _wish(config), machine)
    placement = choice.placement
    model = dataclasses.replace(
        config.model, n_gpu_layers=placement.n_gpu_layers, n_cpu_moe=min(placement.n_cpu_moe, made.n_layers)
    )
    context = dataclasses.replace(config.context, n_ctx=choice.context.n_ctx)
    why = choice.why if config.vram_limit is None else f"{choice.why}, where more could not be allocated"
    vram_bytes = draft_bytes + choice.estimate.vram.total
    return Placed(dataclasses.replace(config, model=model, context=context), why, vram_bytes)


def usable_gpus(config: EngineConfig, devices: Sequence[system.DeviceMemory]) -> tuple[Device, ...]:
    """The GPUs that are used. Raises ModelError for what the settings say of placing and this machine cannot do."""
    if config.model.overrides:
        check_overrides(config.model.overrides, system.buffer_types())
    gpus = _gpus_of(config.model, chosen_devices(config.model.devices, devices))
    if not gpus:
        _refuse_draft_layers(config.draft)
    return gpus


def _refuse_draft_layers(draft: DraftConfig | None) -> None:
    """Raises ModelError where layers of the draft model are to be on a GPU, but there is none."""
    if draft is not None and draft.model.n_gpu_layers:
        raise ModelError(f"--n-gpu-layers-draft {draft.model.n_gpu_layers}: llama.cpp sees no GPU; leave it out")


def _place_draft(config: EngineConfig, made: Shape, machine: Machine) -> tuple[EngineConfig, Machine, int]:
    """The same with the draft model placed, what it leaves of the machine, and its bytes on GPUs."""
    if config.draft is None:
        return config, machine, 0
    params = config.draft.model
    taken = draft_plan.plan(shape_of(config.draft), params, made, config.context, machine)
    placed = dataclasses.replace(params, n_gpu_layers=taken.placement.n_gpu_layers)
    draft = dataclasses.replace(config.draft, model=placed)
    return dataclasses.replace(config, draft=draft), draft_plan.remaining(machine, taken), taken.vram.total


def draft_bytes(config: EngineConfig) -> int:
    """RAM that the draft model will take."""
    if config.draft is None:
        return 0
    machine = Machine(0, 0)
    made, params = shape_of(config.draft), config.draft.model
    return draft_plan.plan(made, params, shape_of(config), config.context, machine).needed


def with_host_cache(config: EngineConfig, params: ContextParams, ram: host.Ram) -> EngineConfig:
    """Settings with the size of the host cache decided: within a container's limit, beyond which it is killed."""
    n_bytes = config.cache_ram_bytes
    if n_bytes is None:
        machine = Machine(ram.free, ram.total, cpu_features=system.cpu_features())
        made = shape_of(config)
        placement = dataclasses.replace(
            cpu_placement(_wish(config), machine), n_gpu_layers=config.model.n_gpu_layers or 0
        )
        machine = projector_plan.remaining(machine, config.beside)
        _, machine, _ = _place_draft(config, made, machine)
        n_bytes = host_cache_bytes(estimate(made, params, placement), machine)
    return dataclasses.replace(
        config, cache_ram_bytes=n_bytes, rules=dataclasses.replace(config.rules, cache_ram_bytes=n_bytes)
    )


def _wish(config: EngineConfig) -> PlacementRequest:
    extras = Extras.of(config.model, embeds=config.embeddings, host_cache=config.cache_ram_bytes)
    model = config.model
    return PlacementRequest(
        config.context, None, model.n_cpu_moe, model.mmap, model.tensor_split, extras, model.overrides
    )


def shape_of(config: EngineConfig | DraftConfig) -> Shape:
    params = config.model
    return config.shape or shape.of(
        gguf_header.read(gguf_header.parts_of(Path(params.path))).with_metadata(dict(params.metadata))
    )


def _gpus_of(model: ModelParams, devices: Sequence[system.DeviceMemory]) -> tuple[Device, ...]:
    """The GPUs that are used: one where the model is not to be split. Raises ModelError for wishes without a GPU."""
    check_gpus(model, [one.description for one in devices])
    if devices and model.split_mode == "none":
        devices = [devices[model.main_gpu]]
    return tuple(Device(one.description, one.free, one.total, one.shares_ram) for one in devices)
