"""Memory and placement of a draft model beside the large model.

The draft model is placed first: it is small, and useless when slow. Pure arithmetic, as in `memory` and `offload`.
"""

from __future__ import annotations

from dataclasses import replace

from ggufd.llama.gguf.shape import Shape
from ggufd.llama.params import ContextParams, ModelParams
from ggufd.placement.memory import Estimate, without_process
from ggufd.placement.offload import Machine, PlacementRequest, choose, default_n_ctx

MAX_DRAFTED = 4
"""Most sequences that run where any has a draft: with more of them a batch is well used already."""

_N_BATCH = 256
"""Batch size of the draft model, whose inputs are short."""


def context_of(context: ContextParams, n_ctx_train: int) -> ContextParams:
    """Context of the draft model for `context`, whose `n_ctx` is set: at most its training context.

    A few sequences get draft tokens of it at once: more slots would take memory only for chats that take turns.
    """
    return ContextParams(
        n_ctx=min(context.n_ctx, n_ctx_train or context.n_ctx),
        n_slots=min(context.n_slots, MAX_DRAFTED),
        n_batch=_N_BATCH,
        n_ubatch=_N_BATCH,
        n_threads=context.n_threads,
        n_threads_batch=context.n_threads_batch,
        flash_attn=context.flash_attn,
        kv_offload=context.kv_offload,
    )


def plan(draft: Shape, params: ModelParams, model: Shape, context: ContextParams, machine: Machine) -> Estimate:
    """Estimate for the draft model, with the longest context that `model` may get with these settings."""
    longest = replace(context, n_ctx=context.n_ctx or default_n_ctx(model))
    request = PlacementRequest(
        context_of(longest, draft.n_ctx_train), params.n_gpu_layers, params.n_cpu_moe, params.mmap
    )
    return without_process(choose(draft, request, machine).estimate, draft)


def remaining(machine: Machine, taken: Estimate) -> Machine:
    """Free memory of the machine after `taken`; GPUs are filled in their order."""
    left = taken.vram.total
    devices = []
    for device in machine.devices:
        part = min(left, device.free)
        devices.append(device._replace(free=device.free - part))
        left -= part
    limit = machine.vram_limit
    return replace(
        machine,
        ram_free=max(0, machine.ram_free - taken.needed),
        devices=tuple(devices),
        vram_limit=None if limit is None else max(0, limit - taken.vram.total),
    )
