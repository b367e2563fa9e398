"""Placement choice: layers and experts on GPUs or in RAM, and the context size.

Decides from an estimate and from the free memory it is given, so it can also plan for another machine. Numbers that
the settings give are never changed. Knows nothing of how memory is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ggufd.llama.gguf.shape import Shape
from ggufd.llama.params import VECTOR_N_CTX, ContextParams
from ggufd.placement.memory import MIB, Estimate, Extras, Overrides, Placement, estimate

DEFAULT_N_CTX = 8192
MIN_N_CTX = 512
_N_CTX_STEP = 256

SERVER = 160 * MIB
"""Memory of the server's other two processes: HTTP, and text (templates, vocabulary)."""

_HOST_CACHE = 1024 * MIB
_HOST_CACHE_SHARE = 0.5
"""Default share of the RAM left beside a model for chats evicted from their slot."""

_RAM_MARGIN = 0.05
_VRAM_MARGIN = 512 * MIB
_VRAM_MARGIN_SHARE = 0.05
"""Left free on every GPU for its driver, the desktop, and other programs."""

SLOTS = (1, 2, 4, 8, 16)


class Device(NamedTuple):
    """GPU. Sizes in bytes; with `shares_ram` its memory is the host's."""

    name: str
    free: int
    total: int
    shares_ram: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """Free memory now, GPUs and CPU features, as llama.cpp's build names them, lower case."""

    ram_free: int
    ram_total: int
    devices: tuple[Device, ...] = ()
    cpu_features: frozenset[str] = frozenset()
    vram_limit: int | None = None
    """Most bytes to use on all GPUs together, set after a larger allocation failed; None is all that is free."""

    @property
    def ram_usable(self) -> int:
        return max(0, int(self.ram_free - _RAM_MARGIN * self.ram_total) - SERVER)

    def vram_usable(self, tensor_split: tuple[float, ...] = ()) -> int:
        """Usable VRAM of all GPUs together."""
        usable = self._vram_free(tensor_split)
        return usable if self.vram_limit is None else min(usable, self.vram_limit)

    def _vram_free(self, tensor_split: tuple[float, ...]) -> int:
        """Free VRAM, limited by the GPU that is full first by its share."""
        usable = [_usable(device) for device in self.devices]
        shares = [*tensor_split, *[0.0] * (len(usable) - len(tensor_split))][: len(usable)]
        if not tensor_split or sum(shares) <= 0:
            return sum(usable)
        return int(min(free * sum(shares) / share for free, share in zip(usable, shares, strict=True) if share > 0))


def _usable(device: Device) -> int:
    return max(0, device.free - max(_VRAM_MARGIN, int(_VRAM_MARGIN_SHARE * device.total)))


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """Placement settings. None, and a context of 0, mean an automatic choice."""

    context: ContextParams
    n_gpu_layers: int | None = None
    n_cpu_moe: int | None = None
    mmap: bool = True
    tensor_split: tuple[float, ...] = ()
    extras: Extras = field(default_factory=Extras)
    overrides: Overrides = ()


@dataclass(frozen=True, slots=True)
class PlacementChoice:
    """Chosen context and placement, with its memory, whether it fits, and the reason."""

    context: ContextParams
    estimate: Estimate
    fits: bool
    why: str

    @property
    def placement(self) -> Placement:
        return self.estimate.placement


def choose(shape: Shape, request: PlacementRequest, machine: Machine) -> PlacementChoice:
    """Best placement that fits: all on the GPU, else without some experts, else some layers; then the context."""
    context = replace(request.context, n_ctx=request.context.n_ctx or default_n_ctx(shape))
    placement, why = _place(shape, request, context, machine)
    if request.overrides and request.n_gpu_layers is None and machine.devices:
        why += ", apart from --override-tensor"
    if request.context.n_ctx == 0:
        context = replace(context, n_ctx=_fitting(shape, context, placement, machine, request))
    found = estimate(shape, context, placement)
    return PlacementChoice(context, found, fits(found, machine, request.tensor_split), why)


def default_n_ctx(shape: Shape) -> int:
    return min(shape.n_ctx_train, VECTOR_N_CTX if shape.only_embeds else DEFAULT_N_CTX)


def fits(one: Estimate, machine: Machine, tensor_split: tuple[float, ...] = ()) -> bool:
    """Whether an estimate fits in RAM and on the GPUs."""
    return _in_ram(one, machine) <= machine.ram_usable and one.vram.total <= machine.vram_usable(tensor_split)


def host_cache_bytes(one: Estimate, machine: Machine) -> int:
    """Default size of the host cache, in whole MiB, so that the rest still fits."""
    left = max(0, machine.ram_usable - _in_ram(one, machine))
    return min(_HOST_CACHE, int(_HOST_CACHE_SHARE * left)) // MIB * MIB


def _in_ram(one: Estimate, machine: Machine) -> int:
    return one.needed + (one.vram.total if _shares_ram(machine) else 0)


def _shares_ram(machine: Machine) -> bool:
    return bool(machine.devices) and all(device.shares_ram for device in machine.devices)


# --- layers ---------------------------------------------------------------------------------------------------------


def _place(shape: Shape, request: PlacementRequest, context: ContextParams, machine: Machine) -> tuple[Placement, str]:
    """Placement of the weights, and the reason. A configured number of layers is kept."""
    base = cpu_placement(request, machine)
    if request.n_gpu_layers is not None:
        return replace(base, n_gpu_layers=request.n_gpu_layers), "as configured"
    if not machine.devices:
        return base, "llama.cpp sees no GPU"
    for i, one in enumerate(_by_preference(shape, base, request.n_cpu_moe)):
        if estimate(shape, context, one).vram.total <= machine.vram_usable(request.tensor_split):
            is_whole = i == 0 and not one.n_cpu_moe
            return one, "the whole model fits on the GPU" if is_whole else _reason(shape, one)
    return base, "not even the output layer fits on the GPU"


def cpu_placement(request: PlacementRequest, machine: Machine) -> Placement:
    """Placement of everything in RAM."""
    return Placement(0, request.n_cpu_moe or 0, request.mmap, machine.cpu_features, request.extras, request.overrides)


def _by_preference(shape: Shape, base: Placement, n_cpu_moe: int | None) -> Iterator[Placement]:
    """Placements by preference: all on the GPU; then the experts of more and more layers in RAM; then fewer layers.

    Experts move to RAM first: a token uses few of their weights, while attention and the KV cache stay on the GPU.
    """
    everything = shape.n_layers + 1
    most = shape.n_layers if shape.n_experts and n_cpu_moe is None else base.n_cpu_moe
    for k in range(base.n_cpu_moe, most + 1):
        yield replace(base, n_gpu_layers=everything, n_cpu_moe=k)
    for n in range(everything - 1, 0, -1):
        yield replace(base, n_gpu_layers=n, n_cpu_moe=most)


def _reason(shape: Shape, placement: Placement) -> str:
    if placement.n_gpu_layers > shape.n_layers:
        return f"the experts of {min(placement.n_cpu_moe, shape.n_layers)} of {shape.n_layers} layers stay in RAM"
    return f"{placement.n_gpu_layers} of {shape.n_layers + 1} layers fit on the GPU"


def offload_steps(shape: Shape, context: ContextParams, base: Placement) -> list[Estimate]:
    """Estimates for every number of offloaded layers, from none to all."""
    return [estimate(shape, context, replace(base, n_gpu_layers=n)) for n in range(shape.n_layers + 2)]


# --- context and slots ----------------------------------------------------------------------------------------------


def _fitting(
    shape: Shape, context: ContextParams, placement: Placement, machine: Machine, request: PlacementRequest
) -> int:
    """Default context, halved until all slots' KV caches fit."""
    n_ctx = context.n_ctx
    while n_ctx > MIN_N_CTX:
        if fits(estimate(shape, replace(context, n_ctx=n_ctx), placement), machine, request.tensor_split):
            return n_ctx
        n_ctx //= 2
    return n_ctx


def largest_contexts(
    shape: Shape, context: ContextParams, placement: Placement, machine: Machine, tensor_split: tuple[float, ...] = ()
) -> list[tuple[int, int]]:
    """`(slots, tokens each)` that fit, up to the training context; 0 if not even the smallest does."""

    def fits_with(n_slots: int) -> Callable[[int], bool]:
        def has_room(n_ctx: int) -> bool:
            one = replace(context, n_slots=n_slots, n_ctx=n_ctx)
            return fits(estimate(shape, one, placement), machine, tensor_split)

        return has_room

    return [(n_slots, _largest(shape.n_ctx_train, fits_with(n_slots))) for n_slots in SLOTS]


def _largest(limit: int, has_room: Callable[[int], bool]) -> int:
    """Largest context up to `limit` that fits, in steps that llama.cpp does not round; by bisection."""
    if has_room(limit):
        return limit
    low, high = 0, limit // _N_CTX_STEP
    while low < high:
        middle = (low + high + 1) // 2
        if has_room(middle * _N_CTX_STEP):
            low = middle
        else:
            high = middle - 1
    return low * _N_CTX_STEP
