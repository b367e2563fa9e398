"""Chooses where a model goes: layers and experts on GPUs or in RAM, the context, the number of slots.

Decides from an estimate and from what is free, which it is given; so a machine that is not there can be planned for
too. What was asked for by number is never changed. Knows nothing of how memory is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ggufd.llama.gguf.shape import Shape
from ggufd.llama.params import VECTOR_N_CTX, ContextParams
from ggufd.placement.memory import MIB, Beside, Estimate, Overrides, Placement, estimate

DEFAULT_N_CTX = 8192
MIN_N_CTX = 512
_STEP = 256

SERVER = 160 * MIB
"""The other two processes of the server: HTTP, and the vocabulary for a stranger's text."""

_HOST_CACHE = 1024 * MIB
_HOST_CACHE_SHARE = 0.5
"""Of the RAM that is left beside a model: what chats get which lost their slot, when nobody says otherwise."""

_RAM_MARGIN = 0.05
_VRAM_MARGIN = 512 * MIB
_VRAM_MARGIN_SHARE = 0.05
"""Left free on every GPU: its driver's own, the desktop, and what other programs ask for later."""

SLOTS = (1, 2, 4, 8, 16)


class Device(NamedTuple):
    """A GPU. Sizes in bytes. One that shares the host's memory gives what it has from RAM."""

    name: str
    free: int
    total: int
    shares_ram: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """What is free now. `cpu_features` as llama.cpp's build names them, lower case."""

    ram_free: int
    ram_total: int
    devices: tuple[Device, ...] = ()
    cpu_features: frozenset[str] = frozenset()
    vram_limit: int | None = None
    """No more than this on all GPUs together, whatever is free: more could not be had before."""

    @property
    def ram_usable(self) -> int:
        return max(0, int(self.ram_free - _RAM_MARGIN * self.ram_total) - SERVER)

    def vram_usable(self, tensor_split: tuple[float, ...] = ()) -> int:
        """What may be used on all GPUs together."""
        usable = self._vram_free(tensor_split)
        return usable if self.vram_limit is None else min(usable, self.vram_limit)

    def _vram_free(self, tensor_split: tuple[float, ...]) -> int:
        """The GPU that is full first, by its share, is the limit."""
        usable = [_usable(device) for device in self.devices]
        shares = [*tensor_split, *[0.0] * (len(usable) - len(tensor_split))][: len(usable)]
        if not tensor_split or sum(shares) <= 0:
            return sum(usable)
        return int(min(free * sum(shares) / share for free, share in zip(usable, shares, strict=True) if share > 0))


def _usable(device: Device) -> int:
    return max(0, device.free - max(_VRAM_MARGIN, int(_VRAM_MARGIN_SHARE * device.total)))


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """What the settings say. None, and a context of 0, leave the choice to us."""

    context: ContextParams
    n_gpu_layers: int | None = None
    n_cpu_moe: int | None = None
    mmap: bool = True
    tensor_split: tuple[float, ...] = ()
    beside: Beside = field(default_factory=Beside)
    overrides: Overrides = ()


@dataclass(frozen=True, slots=True)
class PlacementChoice:
    """What will be run, what it takes, whether that fits, and why it was chosen."""

    context: ContextParams
    estimate: Estimate
    fits: bool
    why: str

    @property
    def placement(self) -> Placement:
        return self.estimate.placement


def choose(shape: Shape, wish: PlacementRequest, machine: Machine) -> PlacementChoice:
    """The best that fits: all on the GPU, else without some experts, else without some layers; then the context."""
    context = replace(wish.context, n_ctx=wish.context.n_ctx or default_n_ctx(shape))
    placement, why = _place(shape, wish, context, machine)
    if wish.overrides and wish.n_gpu_layers is None and machine.devices:
        why += ", --override-tensor aside"
    if wish.context.n_ctx == 0:
        context = replace(context, n_ctx=_fitting(shape, context, placement, machine, wish))
    found = estimate(shape, context, placement)
    return PlacementChoice(context, found, fits(found, machine, wish.tensor_split), why)


def default_n_ctx(shape: Shape) -> int:
    return min(shape.n_ctx_train, VECTOR_N_CTX if shape.only_embeds else DEFAULT_N_CTX)


def fits(one: Estimate, machine: Machine, tensor_split: tuple[float, ...] = ()) -> bool:
    """Whether there is room for it, in RAM and on the GPUs."""
    return _in_ram(one, machine) <= machine.ram_usable and one.vram.total <= machine.vram_usable(tensor_split)


def host_cache_bytes(one: Estimate, machine: Machine) -> int:
    """RAM for chats that lost their slot, where that is left to us: whole MiB, so that what runs still fits."""
    left = max(0, machine.ram_usable - _in_ram(one, machine))
    return min(_HOST_CACHE, int(_HOST_CACHE_SHARE * left)) // MIB * MIB


def _in_ram(one: Estimate, machine: Machine) -> int:
    return one.needed + (one.vram.total if _shares_ram(machine) else 0)


def _shares_ram(machine: Machine) -> bool:
    return bool(machine.devices) and all(device.shares_ram for device in machine.devices)


# --- layers ---------------------------------------------------------------------------------------------------------


def _place(shape: Shape, wish: PlacementRequest, context: ContextParams, machine: Machine) -> tuple[Placement, str]:
    """Where the weights go, and why. A number that was given is obeyed."""
    made = in_ram(wish, machine)
    if wish.n_gpu_layers is not None:
        return replace(made, n_gpu_layers=wish.n_gpu_layers), "as configured"
    if not machine.devices:
        return made, "llama.cpp sees no GPU"
    for i, one in enumerate(_by_preference(shape, made, wish.n_cpu_moe)):
        if estimate(shape, context, one).vram.total <= machine.vram_usable(wish.tensor_split):
            is_whole = i == 0 and not one.n_cpu_moe
            return one, "the whole model fits on the GPU" if is_whole else _reason(shape, one)
    return made, "not even the output layer fits on the GPU"


def in_ram(wish: PlacementRequest, machine: Machine) -> Placement:
    """Nothing on a GPU."""
    return Placement(0, wish.n_cpu_moe or 0, wish.mmap, machine.cpu_features, wish.beside, wish.overrides)


def _by_preference(shape: Shape, made: Placement, n_cpu_moe: int | None) -> Iterator[Placement]:
    """Everything; then experts of ever more layers in RAM; then ever fewer layers.

    Experts go first: most of their weights are not used by a token, so RAM reads little of them, while attention and
    the cache stay on the GPU.
    """
    everything = shape.n_layers + 1
    most = shape.n_layers if shape.n_experts and n_cpu_moe is None else made.n_cpu_moe
    for k in range(made.n_cpu_moe, most + 1):
        yield replace(made, n_gpu_layers=everything, n_cpu_moe=k)
    for n in range(everything - 1, 0, -1):
        yield replace(made, n_gpu_layers=n, n_cpu_moe=most)


def _reason(shape: Shape, placement: Placement) -> str:
    if placement.n_gpu_layers > shape.n_layers:
        return f"the experts of {min(placement.n_cpu_moe, shape.n_layers)} of {shape.n_layers} layers stay in RAM"
    return f"{placement.n_gpu_layers} of {shape.n_layers + 1} layers fit on the GPU"


def offload_steps(shape: Shape, context: ContextParams, made: Placement) -> list[Estimate]:
    """What every number of offloaded layers takes, from none to all."""
    return [estimate(shape, context, replace(made, n_gpu_layers=n)) for n in range(shape.n_layers + 2)]


# --- context and slots ----------------------------------------------------------------------------------------------


def _fitting(
    shape: Shape, context: ContextParams, placement: Placement, machine: Machine, wish: PlacementRequest
) -> int:
    """The default context, halved until all slots' caches fit."""
    n_ctx = context.n_ctx
    while n_ctx > MIN_N_CTX:
        if fits(estimate(shape, replace(context, n_ctx=n_ctx), placement), machine, wish.tensor_split):
            return n_ctx
        n_ctx //= 2
    return n_ctx


def largest_contexts(
    shape: Shape, context: ContextParams, placement: Placement, machine: Machine, tensor_split: tuple[float, ...] = ()
) -> list[tuple[int, int]]:
    """`(slots, tokens each)` that fit, the training context at most; 0 where not even the least does."""

    def room(n_slots: int) -> Callable[[int], bool]:
        def has_room(n_ctx: int) -> bool:
            one = replace(context, n_slots=n_slots, n_ctx=n_ctx)
            return fits(estimate(shape, one, placement), machine, tensor_split)

        return has_room

    return [(n_slots, _largest(shape.n_ctx_train, room(n_slots))) for n_slots in SLOTS]


def _largest(limit: int, has_room: Callable[[int], bool]) -> int:
    """The largest context up to `limit` that has room, in steps that llama.cpp does not round; by halving."""
    if has_room(limit):
        return limit
    low, high = 0, limit // _STEP
    while low < high:
        middle = (low + high + 1) // 2
        if has_room(middle * _STEP):
            low = middle
        else:
            high = middle - 1
    return low * _STEP
