"""Memory estimate of a model before it is loaded: weights, KV cache, compute buffers, process; in RAM and on GPUs.

Pure arithmetic over a header and the settings, in bytes. The source of each formula stands above it; the tests compare
them with llama.cpp's own numbers and with the memory of real engine processes. Knows nothing of the machine: `offload`
decides what fits.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ggufd.llama.gguf import adapter_files
from ggufd.llama.gguf.gguf_header import Skipped, TensorInfo
from ggufd.llama.gguf.shape import Shape
from ggufd.llama.gguf.tensor_names import is_expert, layer_of
from ggufd.llama.gguf.tensor_types import BY_NAME
from ggufd.llama.params import SHORT_TEXT, VECTOR_N_CTX, ContextParams, EmbeddingParams, FlashAttention, ModelParams

MIB = 1 << 20

N_OUTPUTS = 64
"""Least rows of logits that a context reserves; see `llama.context.context`."""

# The engine's process without a model, measured: Python, numpy, llama.cpp's library, our objects.
_PROCESS = 32 * MIB
# Measured over vocabularies of 49,152 tokens with as many merges, and of 262,144 without.
_TOKEN, _MERGE, _VOCABULARY = 156, 143, 2 * MIB
# llguidance's copy of the vocabulary, made when first idle; measured over the same two.
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
"""Tensor types that a CPU with this feature computes from a repacked copy (ggml-cpu's repack.cpp, amx/common.h)."""

_REPACKED_ROWS = 8
"""Rows per repacked block; a tensor whose rows are not a multiple is not repacked."""


@dataclass(frozen=True, slots=True)
class Extras:
    """Memory besides model and slots: adapter tensors, control vectors, the context for embeddings, the host cache.

    `host_cache` is its configured size in bytes; 0 where it gets what is left.
    """

    adapters: tuple[TensorInfo, ...] = ()
    has_control_vectors: bool = False
    embeds: bool = False
    host_cache: int = 0

    @classmethod
    def of(cls, model: ModelParams, *, embeds: bool, host_cache: int | None) -> Extras:
        """Extras of a model; reads the adapters' headers. Raises ModelError for invalid ones."""
        adapters = tuple(tensor for path in model.loras for tensor in adapter_files.read(path).tensors)
        return cls(adapters, bool(model.control_vectors), embeds, host_cache or 0)


Overrides = tuple[tuple[str, str], ...]

_RAM_BUFFER = "CPU"
"""llama.cpp's name of the RAM buffer; every other buffer that a setting can name is a GPU's."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Placement of the weights on devices, and what else is loaded.

    `n_gpu_layers` as llama.cpp counts: the output is the last layer and is offloaded first. `n_cpu_moe`: number of
    layers, from the first, whose experts stay in RAM. `cpu_features`: what the build's CPU kernels use, lower case.
    `overrides`: patterns of tensor names and the buffer of each, with precedence over the numbers.
    """

    n_gpu_layers: int = 0
    n_cpu_moe: int = 0
    mmap: bool = True
    cpu_features: frozenset[str] = frozenset()
    extras: Extras = field(default_factory=Extras, repr=False)
    overrides: Overrides = ()


class MemoryUse(NamedTuple):
    """Bytes used of one kind of memory. `weights` are private copies: read or repacked, not memory-mapped.

    `adapters` are LoRA adapters and control vectors; `vectors` is the whole context for embeddings.
    """

    weights: int = 0
    cache: int = 0
    compute: int = 0
    adapters: int = 0
    vectors: int = 0

    @property
    def total(self) -> int:
        return sum(self)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Memory estimate of a model with these settings. `mapped` is the part of the file that is read memory-mapped.

    `host_cache` is the RAM that chats evicted from their slot may take.
    """

    placement: Placement
    ram: MemoryUse
    vram: MemoryUse
    process: int
    mapped: int
    file: int
    host_cache: int = 0

    @property
    def own(self) -> int:
        """Private memory (RssAnon) of the engine process when every slot is full and the host cache is empty."""
        return self.ram.total + self.process

    @property
    def needed(self) -> int:
        """RAM needed to run without reading the disk: private memory, memory-mapped weights and the host cache's
        configured size."""
        return self.own + self.mapped + self.host_cache


def estimate(shape: Shape, context: ContextParams, placement: Placement) -> Estimate:
    """Memory estimate of a load. `context.n_ctx` must be set.

    Flash attention "auto" is on where layers run on a GPU or a quantised V cache needs it; on a CPU a
    measurement at start decides, so the larger of both is counted.
    """
    if context.flash_attn == "auto":
        both = (
            estimate(shape, replace(context, flash_attn=option), placement)
            for option in _flash_attn_options(shape, context, placement)
        )
        return max(both, key=lambda one: one.own + one.vram.total)
    ram_weights, mapped, vram_weights = _weights(shape, placement)
    ram_slots, vram_slots = MemoryUse(), MemoryUse()
    if not shape.only_embeds:
        ram_slots, vram_slots = _slots(shape, context, placement)
    ram_adapters, vram_adapters = _adapters(shape, placement)
    ram_vectors, vram_vectors = _vectors(shape, context, placement)
    return Estimate(
        placement=placement,
        ram=ram_slots._replace(weights=ram_weights, adapters=ram_adapters, vectors=ram_vectors),
        vram=vram_slots._replace(weights=vram_weights, adapters=vram_adapters, vectors=vram_vectors),
        process=_process(shape, context, placement),
        mapped=mapped,
        file=shape.gguf.n_bytes,
        host_cache=0 if shape.only_embeds else placement.extras.host_cache,
    )


def _flash_attn_options(shape: Shape, context: ContextParams, placement: Placement) -> tuple[FlashAttention, ...]:
    """Values that flash attention "auto" may resolve to."""
    if placement.n_gpu_layers > 0 or BY_NAME[context.cache_type_v].block > 1:
        return ("on",)
    if shape.only_embeds:
        return ("on",) if vector_context(shape, context).n_ctx > SHORT_TEXT else ("off",)
    return ("off", "on")


def _slots(
    shape: Shape, context: ContextParams, placement: Placement, n_outputs: int = 1
) -> tuple[MemoryUse, MemoryUse]:
    """KV cache and compute buffers of a context, in RAM and in VRAM; `n_outputs` rows have an output at a time."""
    ram_cache, vram_cache = _cache(shape, context, placement)
    is_all_on_gpu = placement.n_gpu_layers > shape.n_layers and not _keeps_some_in_ram(shape, placement)
    ram_compute = (
        _inputs(shape, context) + _host_buffers(shape, context)
        if is_all_on_gpu
        else compute_in_ram(shape, context, n_outputs)
    )
    vram_compute = compute_buffer(shape, context, max(n_outputs, N_OUTPUTS)) if placement.n_gpu_layers > 0 else 0
    return MemoryUse(0, ram_cache, ram_compute), MemoryUse(0, vram_cache, vram_compute)


# --- weights --------------------------------------------------------------------------------------------------------


def _weights(shape: Shape, placement: Placement) -> tuple[int, int, int]:
    """Bytes of weights: private in RAM, memory-mapped, in VRAM."""
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
    # A pattern places both on the same device, where they are one tensor again.
    if tied is not None and placement.n_gpu_layers > 0 and _overridden(tied.name, placement.overrides) is None:
        vram += tied.n_bytes
    elif tied is not None and _can_be_repacked(tied, placement):
        # Rows are looked up in the mapped file, and the output is computed from a repacked copy.
        own += tied.n_bytes
    return own, mapped, vram


def is_on_gpu(tensor: TensorInfo, shape: Shape, placement: Placement) -> bool:
    """Whether llama.cpp places a tensor on a GPU: the first matching pattern decides, else the last `n_gpu_layers`, of
    which the output is the very last; token embeddings stay in RAM."""
    override = _overridden(tensor.name, placement.overrides) if placement.overrides else None
    if override is not None:
        return override
    layer = layer_of(tensor.name)
    if layer is None:
        return placement.n_gpu_layers > 0 and tensor.name.startswith("output")
    if is_expert(tensor.name) and layer < placement.n_cpu_moe:
        return False
    return layer >= shape.n_layers + 1 - placement.n_gpu_layers


@functools.lru_cache(maxsize=1 << 16)
def _overridden(name: str, overrides: Overrides) -> bool | None:
    """Whether a pattern places a tensor on a GPU; None if none matches. Adapter tensors follow the model's."""
    own = name.removesuffix(".lora_a").removesuffix(".lora_b")
    for pattern, buffer in overrides:
        if re.search(pattern, own):
            return buffer != _RAM_BUFFER
    return None


def _keeps_some_in_ram(shape: Shape, placement: Placement) -> bool:
    """Whether a step leaves the GPU between layers, for weights that are kept in RAM."""
    if placement.n_cpu_moe == 0 and not placement.overrides:
        return False
    return any(
        not is_on_gpu(tensor, shape, placement) for tensor in shape.tensors if not tensor.name.startswith("token_embd")
    )


def _tied_output(shape: Shape) -> TensorInfo | None:
    """Token embeddings that are also the output's weights: a second copy exists on a GPU, or repacked."""
    names = {tensor.name: tensor for tensor in shape.tensors}
    return None if "output.weight" in names else names.get("token_embd.weight")


def _is_repacked(tensor: TensorInfo, placement: Placement) -> bool:
    """Whether the CPU backend repacks this tensor at load; not the embeddings, whose rows are looked up."""
    return "token_embd" not in tensor.name and _can_be_repacked(tensor, placement)


def _can_be_repacked(tensor: TensorInfo, placement: Placement) -> bool:
    """Whether matrix products use a repacked copy. With offloaded layers nothing is repacked."""
    if placement.n_gpu_layers > 0 or len(tensor.shape) < 2 or tensor.shape[1] % _REPACKED_ROWS:
        return False
    features = placement.cpu_features
    return any(tensor.type.name in types for feature, types in _REPACKED.items() if _has(features, feature))


def _has(features: frozenset[str], feature: str) -> bool:
    """Whether the CPU has the feature and the build its repacking; AMX has its own, the others are optional."""
    return feature in features and ("repack" in features or feature == "amx_int8")


# --- the cache ------------------------------------------------------------------------------------------------------


def cells_of(context: ContextParams) -> int:
    """KV cells of one slot, as llama.cpp rounds them."""
    return _padded(max(1, context.n_ctx))


def window_cells(shape: Shape, context: ContextParams) -> int:
    """KV cells per slot of a layer with a sliding window."""
    cells = cells_of(context)
    if context.swa_full:
        return cells
    return min(cells, _padded(min(cells, shape.n_window + context.n_ubatch)))


def _padded(cells: int) -> int:
    return -(-cells // _CELL_PADDING) * _CELL_PADDING


def _cache(shape: Shape, context: ContextParams, placement: Placement) -> tuple[int, int]:
    """Bytes of all slots' KV caches, in RAM and in VRAM: with its layer, unless `kv_offload` is off."""
    ram = vram = 0
    first_on_gpu = shape.n_layers + 1 - placement.n_gpu_layers
    for i, n_bytes in enumerate(cache_by_layer(shape, context)):
        if context.kv_offload and i >= first_on_gpu:
            vram += n_bytes
        else:
            ram += n_bytes
    return ram, vram


def cache_by_layer(shape: Shape, context: ContextParams) -> list[int]:
    """Bytes per layer for all slots together: keys, values, recurrent state."""
    full, window = cells_of(context), window_cells(shape, context)
    # Without flash attention the values are transposed, and every layer gets the widest one's size.
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
    """Bytes of the compute buffer for a ubatch on its way through the layers.

    The allocator reuses memory, so the buffer is as large as the largest of three phases: attention
    (scores of all heads, without flash attention), the feed-forward part (its three inner rows), the output (logits,
    when the masks are no longer needed). A recurrent layer copies every slot's state. The numbers of rows
    were fitted to `sched_reserve`'s output: exact for dense and MoE models with and without flash attention, 1,024
    to 8,192 cells, ubatches of 512; within 6 % for a Mamba and a hybrid of it, 1 to 64 slots.
    """
    if shape.keeps_nothing:
        return _encoder_buffer(shape, context)
    n_tokens = ubatch(context)
    uses_flash = context.flash_attn == "on"
    residual, query = 4 * n_tokens * shape.width, 4 * n_tokens * max(shape.width, shape.query_width)
    scores = 0 if uses_flash else 4 * n_tokens * shape.n_heads * cells_of(context)
    attention = scores + residual + 4 * query + (_f16_cache_copy(shape, context) if uses_flash else 0)
    keeps_query = uses_flash and context.cache_type_k in ("f16", "bf16")
    feed_forward = 3 * 4 * n_tokens * shape.n_ff + (4 if keeps_query else 3) * residual
    n_rows = min(n_tokens, max(n_outputs, context.n_slots))
    output = 4 * n_rows * (_logits_width(shape) + shape.width) + residual
    layer = max(attention, feed_forward, _recurrent_rows(shape, n_tokens)) + _copied_states(shape, context)
    return max(_inputs(shape, context) + layer, output)


def _recurrent_rows(shape: Shape, n_tokens: int) -> int:
    return 4 * n_tokens * (6 * shape.state_width + shape.width) if shape.is_recurrent else 0


def _copied_states(shape: Shape, context: ContextParams) -> int:
    return 4 * context.n_slots * max(layer.state_elements for layer in shape.layers)


def _encoder_buffer(shape: Shape, context: ContextParams) -> int:
    """Compute buffer of a model with bidirectional attention: exact for BERT, 256 to 2,048 tokens."""
    n_tokens = ubatch(context)
    uses_flash = context.flash_attn == "on"
    residual = 4 * n_tokens * shape.width
    inner_rows = 3 if any("ffn_gate" in tensor.name for tensor in shape.tensors) else 1
    feed_forward = inner_rows * 4 * n_tokens * shape.n_ff + 3 * residual
    attention = 0 if uses_flash else 4 * n_tokens * shape.n_heads * n_tokens + 6 * residual
    return (2 if uses_flash else 4) * n_tokens * n_tokens + max(attention, feed_forward)


def _f16_cache_copy(shape: Shape, context: ContextParams) -> int:
    """f16 copy of an f32 cache that flash attention makes, of all slots, one layer at a time."""
    widest = max(
        (layer.key_width if context.cache_type_k == "f32" else 0)
        + (layer.value_width if context.cache_type_v == "f32" else 0)
        for layer in shape.layers
    )
    return 2 * widest * cells_of(context) * context.n_slots


def compute_in_ram(shape: Shape, context: ContextParams, n_outputs: int = 1) -> int:
    """Compute buffers in RAM: only rows of logits that are used, one per slot, and the CPU's work buffer."""
    logits = 4 * context.n_slots * shape.n_vocab
    return compute_buffer(shape, context, n_outputs) + _cpu_work_buffer(shape, context) + logits


def _logits_width(shape: Shape) -> int:
    """Width of the logits; 0 for a model with bidirectional attention, which has none."""
    return shape.n_vocab if shape.is_causal else 0


def ubatch(context: ContextParams) -> int:
    return min(context.n_ubatch, context.n_batch, cells_of(context) * context.n_slots)


def _inputs(shape: Shape, context: ContextParams) -> int:
    """Input tensors: attention masks and the KV cells of each token; one set for full and one for windowed layers."""
    n_tokens = ubatch(context)
    uses_flash = context.flash_attn == "on"
    cells = {layer.is_windowed: window_cells(shape, context) for layer in shape.layers if layer.key_width}
    if False in cells:
        cells[False] = cells_of(context)
    value_width = 1 if uses_flash else max(layer.value_width for layer in shape.layers)
    return sum(n_tokens * ((2 if uses_flash else 4) * n + 8 * value_width) for n in cells.values())


def _cpu_work_buffer(shape: Shape, context: ContextParams) -> int:
    """Work buffer of the CPU backend: matrix products convert their right operand to the left one's type, scores to f16
    as V is, feed-forward rows to 8 bits (f16 in an f16 model, not at all in an f32 one)."""
    n_tokens = ubatch(context)
    scores = 2 * n_tokens * shape.n_heads * cells_of(context)
    if context.flash_attn == "on" or context.cache_type_v == "f32" or shape.keeps_nothing:
        scores = 0
    bits = shape.bits_per_weight
    rows = n_tokens * max(shape.n_ff, shape.width) * (0 if bits > 24 else 2 if bits > 12 else 1.125)
    return max(scores, int(rows))


def _host_buffers(shape: Shape, context: ContextParams) -> int:
    """Host buffers with all layers on a GPU: token embeddings, which the CPU looks up, and logits."""
    return 4 * ubatch(context) * shape.width + 4 * context.n_slots * shape.n_vocab


# --- extras ---------------------------------------------------------------------------------------------------------


def _adapters(shape: Shape, placement: Placement) -> tuple[int, int]:
    """Bytes of adapters in RAM and in VRAM: LoRA tensors go with the model's, control vectors with their layers."""
    ram = vram = 0
    for tensor in placement.extras.adapters:
        if is_on_gpu(tensor, shape, placement):
            vram += tensor.n_bytes
        else:
            ram += tensor.n_bytes
    if placement.extras.has_control_vectors:
        n_on_gpu = min(shape.n_layers - 1, placement.n_gpu_layers)
        vram += 4 * shape.width * n_on_gpu
        ram += 4 * shape.width * (shape.n_layers - 1 - n_on_gpu)
    return ram, vram


def vector_context(shape: Shape, context: ContextParams) -> ContextParams:
    """Context for embeddings as a generating one: one slot that all inputs share, an output for every row."""
    longest = context.n_ctx if shape.only_embeds else min(context.n_ctx, VECTOR_N_CTX)
    params = EmbeddingParams(min(longest, shape.n_ctx_train), "none")
    n_batch = params.n_batch(shape.n_vocab, is_causal=shape.is_causal)
    return replace(
        context,
        n_ctx=params.n_ctx,
        n_slots=1,
        n_batch=n_batch,
        n_ubatch=n_batch,
        cache_type_k="f16",
        cache_type_v="f16",
    )


def _vectors(shape: Shape, context: ContextParams, placement: Placement) -> tuple[int, int]:
    """Bytes in RAM and in VRAM of the context for embeddings."""
    if not placement.extras.embeds and not shape.only_embeds:
        return 0, 0
    made = vector_context(shape, context)
    ram, vram = _slots(shape, made, placement, made.n_batch)
    outputs = 4 * made.n_batch * (shape.width + _logits_width(shape))
    # Each input has its own recurrent state, and those of one layer are all copied.
    n_more = EmbeddingParams(0, "none").n_inputs - 1
    states = n_more * 4 * sum(layer.state_elements for layer in shape.layers) + n_more * _copied_states(shape, made)
    return ram.total + outputs + states, vram.total


# --- the process ----------------------------------------------------------------------------------------------------


def _process(shape: Shape, context: ContextParams, placement: Placement) -> int:
    """Private memory of the engine's process besides weights, cache and compute buffers."""
    n_merges = _length(shape, "tokenizer.ggml.merges")
    vocabulary = _VOCABULARY + _TOKEN * shape.n_vocab + _MERGE * n_merges
    if not shape.only_embeds:
        vocabulary += _GRAMMARS + _GRAMMAR_TOKEN * shape.n_vocab
    contexts = [] if shape.only_embeds else [context]
    if placement.extras.embeds or shape.only_embeds:
        contexts.append(vector_context(shape, context))
    return _PROCESS + vocabulary + sum(_CONTEXT + _CELL * one.n_slots * cells_of(one) for one in contexts)


def without_process(one: Estimate, shape: Shape) -> Estimate:
    """Estimate for a second model in the same process, without the process itself and without grammars."""
    return replace(one, process=one.process - _PROCESS - _GRAMMARS - _GRAMMAR_TOKEN * shape.n_vocab)


def _length(shape: Shape, key: str) -> int:
    value = shape.gguf.metadata.get(key)
    if isinstance(value, Skipped):
        return value.length
    return len(value) if isinstance(value, tuple) else 0


def types_by_size(tensors: Iterable[TensorInfo]) -> list[tuple[str, int]]:
    """`(type, bytes)`, largest first: the quantisation as it is, whatever the file is called."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.n_bytes
    return sorted(sizes.items(), key=lambda item: -item[1])
