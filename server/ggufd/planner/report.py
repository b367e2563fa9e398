"""Plan of one model as plain data, for the table, JSON and model cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ggufd.images.encoder import row_store
from ggufd.llama.gguf.shape import Shape
from ggufd.llama.gguf.tensor_types import FILE_TYPES
from ggufd.llama.params import ContextParams
from ggufd.models.hub import ModelFile
from ggufd.placement import draft_plan, kept_plan, projector_plan
from ggufd.placement.kept_plan import KeptUse
from ggufd.placement.memory import Estimate, Extras, estimate, types_by_size
from ggufd.placement.offload import (
    Machine,
    PlacementChoice,
    PlacementRequest,
    choose,
    cpu_placement,
    default_n_ctx,
    host_cache_bytes,
    largest_contexts,
    offload_steps,
)
from ggufd.placement.projector_plan import ProjectorUse
from ggufd.settings import encoder_settings, engine_settings
from ggufd.settings.config import Config, settings


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """Plan for one model on one machine. Sizes in bytes. `contexts` are `(slots, tokens each)` that fit."""

    model: ModelFile
    shape: Shape
    machine: Machine
    context: ContextParams
    in_ram: Estimate
    steps: list[Estimate]
    choice: PlacementChoice
    contexts: list[tuple[int, int]]
    draft: Estimate | None = None
    images: ProjectorUse | None = None
    """Memory of the image projector and its process; None without one."""
    cache_ram: int | None = None
    """Configured bytes for chats evicted from their slot; None is automatic."""
    other_flags: tuple[str, ...] = ()
    """Further flags that the plan depends on."""
    kept: tuple[KeptUse, ...] = ()
    """Models that stay loaded beside."""

    @property
    def own(self) -> int:
        """Private RAM, with the draft model's."""
        return self.in_ram.own + (self.draft.own if self.draft else 0) + (self.images.ram if self.images else 0)

    @property
    def needed(self) -> int:
        """RAM with the memory-mapped weights."""
        return self.in_ram.needed + (self.draft.needed if self.draft else 0) + (self.images.ram if self.images else 0)

    @property
    def host_cache(self) -> int:
        """RAM that chats evicted from their slot may take, with the best setting."""
        if self.shape.only_embeds:
            return 0
        if self.cache_ram is not None:
            return self.cache_ram
        left = kept_plan.remaining(self.machine, self.kept)
        left = left if self.images is None else projector_plan.remaining(left, self.images)
        left = left if self.draft is None else draft_plan.remaining(left, self.draft)
        return host_cache_bytes(self.choice.estimate, left)

    @property
    def file_type(self) -> str:
        """Quantisation as the file names it (`general.file_type`); empty if it does not."""
        return FILE_TYPES.get(self.shape.gguf.integer("general.file_type", -1), "")

    @property
    def types(self) -> list[tuple[str, float]]:
        """`(type, share of the bytes)`, the largest first."""
        total = max(1, self.shape.n_weight_bytes)
        return [(name, size / total) for name, size in types_by_size(self.shape.tensors)]


def make(
    model: ModelFile, config: Config, context: ContextParams, machine: Machine, kept: Sequence[KeptUse] = ()
) -> ModelPlan:
    """Plan one model, beside those that are `kept` loaded. `context.n_ctx` 0 is automatic; the tables then show the
    default context.
    """
    shape = model.shape
    assert shape is not None
    request = placement_request(config, context, model)
    whole, machine = machine, kept_plan.remaining(machine, kept)
    images = _images(model, config, machine)
    machine = machine if images is None else projector_plan.remaining(machine, images)
    draft = _draft(model, config, context, machine)
    machine = machine if draft is None else draft_plan.remaining(machine, draft)
    choice = choose(shape, request, machine)
    shown = context if context.n_ctx else replace(context, n_ctx=default_n_ctx(shape))
    in_ram = cpu_placement(request, machine)
    return ModelPlan(
        model=model,
        shape=shape,
        machine=whole,
        context=shown,
        in_ram=estimate(shape, shown, in_ram),
        steps=offload_steps(shape, shown, in_ram),
        choice=choice,
        contexts=largest_contexts(shape, choice.context, choice.placement, machine, request.tensor_split),
        draft=draft,
        images=images,
        cache_ram=engine_settings.engine_config(config, model).cache_ram_bytes,
        other_flags=other_flags(config),
        kept=tuple(kept),
    )


_CHOSEN = {
    "model",
    "model_draft",
    "n_gpu_layers",
    "n_cpu_moe",
    "ctx_size",
    "parallel",
    "cache_type_k",
    "cache_type_v",
}


def other_flags(config: Config) -> tuple[str, ...]:
    """Flags of non-default model and context settings, besides those that the plan chooses."""
    flags: list[str] = []
    for one in settings():
        value = getattr(getattr(config, one.section), one.key)
        if one.section not in ("model", "context") or one.key in _CHOSEN or value == one.field.default:
            continue
        if one.is_switch:
            flags.append(one.flags[-1] if value else one.flags[-1].replace("--", "--no-", 1))
        else:
            parts = value if isinstance(value, tuple) else (value,)
            flags += [one.flags[-1], ",".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts)]
    return tuple(flags)


def _draft(model: ModelFile, config: Config, context: ContextParams, machine: Machine) -> Estimate | None:
    if model.draft is None:
        return None
    assert model.shape is not None
    assert model.draft.shape is not None
    return draft_plan.plan(
        model.draft.shape, engine_settings.draft_params(config, model.draft), model.shape, context, machine
    )


def _images(model: ModelFile, config: Config, machine: Machine) -> ProjectorUse | None:
    if model.projector is None:
        return None
    uses_gpu = bool(machine.devices) and encoder_settings.may_use_gpu(config)
    return projector_plan.use_of(model.projector, uses_gpu=uses_gpu)


def placement_request(config: Config, context: ContextParams, model: ModelFile) -> PlacementRequest:
    """Placement settings that the planner keeps to."""
    layers = config.model.n_gpu_layers
    engine = engine_settings.engine_config(config, model)
    return PlacementRequest(
        context=context,
        n_gpu_layers=None if layers == "auto" else layers,
        n_cpu_moe=engine_settings.n_cpu_moe(config),
        mmap=config.model.mmap,
        tensor_split=config.model.tensor_split,
        overrides=engine.model.overrides,
        extras=Extras.of(engine.model, embeds=engine.embeddings, host_cache=engine.cache_ram_bytes),
    )


def as_json(report: ModelPlan) -> dict[str, Any]:
    """JSON form for programs: all numbers in bytes, tokens or layers."""
    shape = report.shape
    return {
        "file": str(report.model.path),
        "parts": report.model.n_parts,
        "size": shape.gguf.n_bytes,
        "architecture": shape.architecture,
        "quantisation": report.file_type,
        "bits_per_weight": round(shape.bits_per_weight, 3),
        "types": {name: round(share, 4) for name, share in report.types},
        "parameters": shape.n_params,
        "active_parameters": shape.n_params_active,
        "experts": shape.n_experts,
        "experts_used": shape.n_experts_used,
        "layers": shape.n_layers,
        "training_context": shape.n_ctx_train,
        "context": {"slots": report.context.n_slots, "tokens_each": report.context.n_ctx},
        "without_offload": _estimate(report.in_ram),
        "draft": None if report.draft is None else _estimate(report.draft),
        "projector": _projector_json(report),
        "beside": [one._asdict() for one in report.kept],
        "offload": [_estimate(step) for step in report.steps],
        "best": {
            "n_gpu_layers": report.choice.placement.n_gpu_layers,
            "n_cpu_moe": report.choice.placement.n_cpu_moe,
            "slots": report.choice.context.n_slots,
            "tokens_each": report.choice.context.n_ctx,
            "fits": report.choice.fits,
            "why": report.choice.why,
            "cache_ram": report.host_cache,
            **_estimate(report.choice.estimate),
        },
        "contexts_that_fit": [{"slots": slots, "tokens_each": n_ctx} for slots, n_ctx in report.contexts],
        "machine": {
            "ram_free": report.machine.ram_free,
            "ram_total": report.machine.ram_total,
            "devices": [device._asdict() for device in report.machine.devices],
        },
    }


def _projector_json(report: ModelPlan) -> dict[str, Any] | None:
    projector, use = report.model.projector, report.images
    if projector is None or use is None:
        return None
    return {
        "file": str(projector.path),
        "type": projector.kind,
        "size": projector.n_bytes,
        "ram": use.ram,
        "vram": use.vram,
        "rows_on_disk": row_store.MAX_BYTES,
    }


def _estimate(one: Estimate) -> dict[str, Any]:
    return {
        "n_gpu_layers": one.placement.n_gpu_layers,
        "ram": {
            "own_weights": one.ram.weights,
            "cache": one.ram.cache,
            "compute": one.ram.compute,
            "adapters": one.ram.adapters,
            "embeddings": one.ram.vectors,
            "process": one.process,
            "own": one.own,
            "mapped_weights": one.mapped,
            "chats_without_a_slot": one.host_cache,
            "needed": one.needed,
        },
        "vram": {**one.vram._asdict(), "total": one.vram.total},
    }
