"""What a model will take: weights, cache, compute buffers and the process, in RAM and on GPUs, before it is loaded.

Pure arithmetic over a header and the settings, in bytes. Where each formula comes from stands above it; the tests
hold them to llama.cpp's own account and to the memory of real engine processes. Knows nothing of the machine: what
fits is `offload`'s matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from server.llama.gguf import Skipped, TensorInfo
from server.llama.params import ContextParams, FlashAttention
from server.llama.shape import Shape, is_expert, layer_of
from server.llama.tensor_types import BY_NAME

MIB = 1 << 20

N_OUTPUTS = 64
"""Rows of logits that a context reserves at least; see `llama.context`."""

# The engine's process without a model, measured: Python, numpy, llama.cpp's library, our own objects.
_PROCESS = 32 * MIB
# Measured over vocabularies of 49,152 tokens with as many merges, and of 262,144 without.
_TOKEN, _MERGE, _VOCABULARY = 156, 143, 2 * MIB
# llguidance's view of the vocabulary, made at the first idle moment; measured over the same two.
_GRAMMAR_TOKEN, _GRAMMARS = 410, 3 * MIB
# A context's own tables, and llama.cpp's record of every cell.
_CONTEXT, _CELL = 3 * MIB // 2, 100

_CELL_PADDING = 256
"""llama.cpp rounds a slot's context, and a window's cache, up to this."""

_REPACKED = {
    "avx2": {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"},
    "avx512": {"Q2_K"},
    "amx_int8": {"Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"},
    "dotprod": {"Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4", "Q8_0", "Q1_0"},
}
"""Types that a CPU of this kind computes from a rearranged copy (ggml-cpu's repack.cpp and amx/common.h)."""

_REPACKED_ROWS = 8
"""A rearranged block takes rows from so many; a tensor whose rows are not a multiple stays as it is."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the weights go. `n_gpu_layers` as llama.cpp counts it: the output is the last of them and moves first.

    `n_cpu_moe`: of so many layers, from the first, the experts stay in RAM. `cpu_features`: what the build's CPU
    kernels use, lower case.
    """

    n_gpu_layers: int = 0
    n_cpu_moe: int = 0
    mmap: bool = True
    cpu_features: frozenset[str] = frozenset()


class Share(NamedTuple):
    """What one kind of memory holds. `weights` are the process's own: read or rearranged, not mapped."""

    weights: int = 0
    cache: int = 0
    compute: int = 0

    @property
    def total(self) -> int:
        return sum(self)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a model takes with these settings. `mapped` is the part of the file that steps read in place."""

    placement: Placement
    ram: Share
    vram: Share
    process: int
    mapped: int
    file: int

    @property
    def own(self) -> int:
        """The engine process's own memory (RssAnon) when every slot is full."""
        return self.ram.total + self.process

    @property
    def needed(self) -> int:
        """RAM that must be there to run without reading the disk: its own, and the weights it reads in the file."""
        return self.own + self.mapped


def estimate(shape: Shape, context: ContextParams, placement: Placement) -> Estimate:
    """What a load takes. `context.n_ctx` must be set.

    Flash attention "auto" is on where layers run on a GPU or a quantised V cache needs it; on a CPU it is measured at
    start, so the larger of both is counted.
    """
    if context.flash_attn == "auto":
        is_on = placement.n_gpu_layers > 0 or BY_NAME[context.cache_type_v].block > 1
        sides: tuple[FlashAttention, ...] = ("on",) if is_on else ("off", "on")
        both = (estimate(shape, replace(context, flash_attn=side), placement) for side in sides)
        return max(both, key=lambda one: one.own + one.vram.total)
    ram_weights, mapped, vram_weights = _weights(shape, placement)
    ram_cache, vram_cache = _cache(shape, context, placement)
    on_gpu = placement.n_gpu_layers > 0
    is_all_on_gpu = placement.n_gpu_layers > shape.n_layers and placement.n_cpu_moe == 0
    ram_compute = (
        _inputs(shape, context) + _work_of_host(shape, context) if is_all_on_gpu else compute_in_ram(shape, context)
    )
    return Estimate(
        placement=placement,
        ram=Share(ram_weights, ram_cache, ram_compute),
        vram=Share(vram_weights, vram_cache, compute_buffer(shape, context) if on_gpu else 0),
        process=_process(shape, context),
        mapped=mapped,
        file=shape.gguf.n_bytes,
    )


# --- weights --------------------------------------------------------------------------------------------------------


def _weights(shape: Shape, placement: Placement) -> tuple[int, int, int]:
    """Own bytes in RAM, mapped bytes, bytes in VRAM."""
    own = mapped = vram = 0
    for tensor in shape.tensors:
        if is_on_gpu(tensor, shape, placement):
            vram += tensor.n_bytes
            continue
        if _is_repacked(tensor, placement) or not placement.mmap:
            own += tensor.n_bytes
        else:
            mapped += tensor.n_bytes
    tied = _tied_output(shape)
    if tied is not None and placement.n_gpu_layers > 0:
        vram += tied.n_bytes
    return own, mapped, vram


def is_on_gpu(tensor: TensorInfo, shape: Shape, placement: Placement) -> bool:
    """llama.cpp's rule: the last layers go, the output first of all; token embeddings always stay in RAM."""
    layer = layer_of(tensor.name)
    if layer is None:
        return placement.n_gpu_layers > 0 and tensor.name.startswith("output")
    if is_expert(tensor.name) and layer < placement.n_cpu_moe:
        return False
    return layer >= shape.n_layers + 1 - placement.n_gpu_layers


def _tied_output(shape: Shape) -> TensorInfo | None:
    """The embeddings, where they are the output's weights too: on a GPU they are held once more."""
    names = {tensor.name: tensor for tensor in shape.tensors}
    return None if "output.weight" in names else names.get("token_embd.weight")


def _is_repacked(tensor: TensorInfo, placement: Placement) -> bool:
    """Whether the CPU rearranges this tensor at load. With a GPU in the build's list it keeps them as they are."""
    if placement.n_gpu_layers > 0 or len(tensor.shape) < 2 or tensor.shape[1] % _REPACKED_ROWS:
        return False
    if "token_embd" in tensor.name:
        # Rows are looked up in it, which the rearranged form cannot do.
        return False
    features = placement.cpu_features
    return any(tensor.type.name in types for feature, types in _REPACKED.items() if _has(features, feature))


def _has(features: frozenset[str], feature: str) -> bool:
    """AMX has a rearranged form of its own; the others are a part of the build that may be left out."""
    return feature in features and ("repack" in features or feature == "amx_int8")


# --- the cache ------------------------------------------------------------------------------------------------------


def cells_of(context: ContextParams) -> int:
    """Cells of one slot, as llama.cpp rounds them."""
    return _padded(max(1, context.n_ctx))


def window_cells(shape: Shape, context: ContextParams) -> int:
    """Cells that a layer with a sliding window keeps of a slot."""
    cells = cells_of(context)
    if context.swa_full:
        return cells
    return min(cells, _padded(min(cells, shape.n_window + context.n_ubatch)))


def _padded(cells: int) -> int:
    return -(-cells // _CELL_PADDING) * _CELL_PADDING


def _cache(shape: Shape, context: ContextParams, placement: Placement) -> tuple[int, int]:
    """Bytes of all slots' caches, in RAM and in VRAM: a layer's cache is where the layer is, unless told otherwise."""
    ram = vram = 0
    first_on_gpu = shape.n_layers + 1 - placement.n_gpu_layers
    for i, n_bytes in enumerate(cache_by_layer(shape, context)):
        if context.kv_offload and i >= first_on_gpu:
            vram += n_bytes
        else:
            ram += n_bytes
    return ram, vram


def cache_by_layer(shape: Shape, context: ContextParams) -> list[int]:
    """Bytes that every layer keeps for all slots together: keys, values, recurrent state."""
    full, window = cells_of(context), window_cells(shape, context)
    # Without flash attention the values lie transposed, and all layers get the widest one's room.
    widest = 0 if context.flash_attn == "on" else max(layer.value_width for layer in shape.layers)
    sizes = []
    for layer in shape.layers:
        cells = window if layer.is_windowed else full
        value_width = widest if widest and layer.value_width else layer.value_width
        row = _row(context.cache_type_k, layer.key_width) + _row(context.cache_type_v, value_width)
        sizes.append(context.n_slots * (cells * row + 4 * layer.state_elements))
    return sizes


def _row(type_name: str, width: int) -> int:
    kind = BY_NAME[type_name]
    return -(-width // kind.block) * kind.block_bytes


# --- compute buffers ------------------------------------------------------------------------------------------------


def compute_buffer(shape: Shape, context: ContextParams, n_outputs: int = N_OUTPUTS) -> int:
    """Bytes of the buffer that holds a ubatch on its way through the layers.

    The allocator keeps what lives at one time, so the buffer is as large as the largest of three moments: attention
    (scores of all heads, without flash attention), the feed-forward part (its three inner rows), the output (logits,
    when the masks are no longer needed). The counts of rows beside them were fitted to `sched_reserve`'s own figures:
    exact for dense and MoE models with and without flash attention, 1,024 to 8,192 cells, ubatches of 512.
    """
    n_tokens = ubatch(context)
    uses_flash = context.flash_attn == "on"
    residual, query = 4 * n_tokens * shape.width, 4 * n_tokens * max(shape.width, shape.query_width)
    scores = 0 if uses_flash else 4 * n_tokens * shape.n_heads * cells_of(context)
    attention = scores + residual + 4 * query + (_halved_cache(shape, context) if uses_flash else 0)
    keeps_query = uses_flash and context.cache_type_k in ("f16", "bf16")
    feed_forward = 3 * 4 * n_tokens * shape.n_ff + (4 if keeps_query else 3) * residual
    n_rows = min(n_tokens, max(n_outputs, context.n_slots))
    output = 4 * n_rows * (shape.n_vocab + shape.width) + residual
    return max(_inputs(shape, context) + max(attention, feed_forward), output)


def _halved_cache(shape: Shape, context: ContextParams) -> int:
    """Flash attention reads f16: of an f32 cache it makes a copy, a layer at a time, of all slots."""
    widest = max(
        (layer.key_width if context.cache_type_k == "f32" else 0)
        + (layer.value_width if context.cache_type_v == "f32" else 0)
        for layer in shape.layers
    )
    return 2 * widest * cells_of(context) * context.n_slots


def compute_in_ram(shape: Shape, context: ContextParams) -> int:
    """What a CPU really touches of it: only the logits of rows that are asked for, one a slot; and the work buffer."""
    logits = 4 * context.n_slots * shape.n_vocab
    return compute_buffer(shape, context, 1) + _work_of_cpu(shape, context) + logits


def ubatch(context: ContextParams) -> int:
    return min(context.n_ubatch, context.n_batch, cells_of(context) * context.n_slots)


def _inputs(shape: Shape, context: ContextParams) -> int:
    """Attention masks, and where each token's key and value go; one set for full and one for windowed layers."""
    n_tokens = ubatch(context)
    uses_flash = context.flash_attn == "on"
    cells = {layer.is_windowed: window_cells(shape, context) for layer in shape.layers if layer.key_width}
    if False in cells:
        cells[False] = cells_of(context)
    value_width = 1 if uses_flash else max(layer.value_width for layer in shape.layers)
    return sum(n_tokens * ((2 if uses_flash else 4) * n + 8 * value_width) for n in cells.values())


def _work_of_cpu(shape: Shape, context: ContextParams) -> int:
    """Matrix products turn their right side into the left side's own type first: scores to f16 where V is, rows of
    the feed-forward part to 8 bits (f16 in a model that is not quantised)."""
    n_tokens = ubatch(context)
    scores = 2 * n_tokens * shape.n_heads * cells_of(context)
    if context.flash_attn == "on" or context.cache_type_v == "f32":
        scores = 0
    wide = shape.bits_per_weight > 12
    rows = n_tokens * max(shape.n_ff, shape.width) * (2 if wide else 1.125)
    return max(scores, int(rows))


def _work_of_host(shape: Shape, context: ContextParams) -> int:
    """With all layers on a GPU the CPU looks up embeddings and hands them over."""
    return 4 * ubatch(context) * shape.width + 4 * context.n_slots * shape.n_vocab


# --- the process ----------------------------------------------------------------------------------------------------


def _process(shape: Shape, context: ContextParams) -> int:
    """Everything else that the engine's process owns."""
    n_merges = _length(shape, "tokenizer.ggml.merges")
    vocabulary = _VOCABULARY + _GRAMMARS + (_TOKEN + _GRAMMAR_TOKEN) * shape.n_vocab + _MERGE * n_merges
    cells = context.n_slots * cells_of(context)
    return _PROCESS + vocabulary + _CONTEXT + _CELL * cells


def without_process(one: Estimate, shape: Shape) -> Estimate:
    """The same for a model in a process that another one has made, and whose vocabulary is used by no grammar."""
    return replace(one, process=one.process - _PROCESS - _GRAMMARS - _GRAMMAR_TOKEN * shape.n_vocab)


def _length(shape: Shape, key: str) -> int:
    value = shape.gguf.metadata.get(key)
    if isinstance(value, Skipped):
        return value.length
    return len(value) if isinstance(value, tuple) else 0


def types_by_size(tensors: Iterable[TensorInfo]) -> list[tuple[str, int]]:
    """`(type, bytes)`, the type that takes most first: the quantisation as it is, whatever the file is called."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.n_bytes
    return sorted(sizes.items(), key=lambda item: -item[1])
