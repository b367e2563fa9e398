"""What a draft model takes beside the model that it guesses for, where it goes, and what is left of the machine.

It is placed first: one that is slow is of no use, and it is small. Pure arithmetic, as in `memory` and `offload`.
"""

from __future__ import annotations

from dataclasses import replace

from ggufd.llama.gguf.shape import Shape
from ggufd.llama.params import ContextParams, ModelParams
from ggufd.placement.memory import Estimate, without_process
from ggufd.placement.offload import Machine, PlacementRequest, choose, default_n_ctx

_N_BATCH = 256
"""It reads in short pieces."""


def context_of(context: ContextParams, n_ctx_train: int) -> ContextParams:
    """The draft model's context beside `context`, whose `n_ctx` is set: one stream, no longer than it was trained for.

    Only a sequence that runs alone is guessed for, so one chat is kept; another one is read anew. A stream a slot would
    take as many times the memory, for chats that go on in turns.
    """
    return ContextParams(
        n_ctx=min(context.n_ctx, n_ctx_train or context.n_ctx),
        n_slots=1,
        n_batch=_N_BATCH,
        n_ubatch=_N_BATCH,
        n_threads=context.n_threads,
        n_threads_batch=context.n_threads_batch,
        flash_attn=context.flash_attn,
        kv_offload=context.kv_offload,
    )


def plan(draft: Shape, params: ModelParams, model: Shape, context: ContextParams, machine: Machine) -> Estimate:
    """What it takes and where, for the longest context that `model` may get with these settings."""
    longest = replace(context, n_ctx=context.n_ctx or default_n_ctx(model))
    wish = PlacementRequest(context_of(longest, draft.n_ctx_train), params.n_gpu_layers, params.n_cpu_moe, params.mmap)
    return without_process(choose(draft, wish, machine).estimate, draft)


def beside(machine: Machine, taken: Estimate) -> Machine:
    """What is left of the machine; GPUs give in their order."""
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
