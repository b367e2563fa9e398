"""Architecture sizes of a model, read from its header: layers, heads, windows, experts, recurrent state.

The same numbers that llama.cpp's `load_hparams` takes from the file; what would abort there is a ModelError here
(`header_checks`). Knows nothing of memory or of settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

from ggufd.errors import ModelError
from ggufd.llama.gguf.gguf_header import Gguf, TensorInfo
from ggufd.llama.gguf.header_checks import check_kind, check_metadata, check_tensors, required
from ggufd.llama.gguf.tensor_names import is_expert

MAX_LAYERS = 512
MAX_EXPERTS = 1024
"""llama.cpp's own arrays; it aborts beyond them."""

_MAX_WIDTH = 1 << 24

_WINDOW_PERIOD = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "cohere2": 4,
    "gpt-oss": 2,
    "llama4": 4,
    "olmo2": 4,
    "exaone4": 4,
}
"""Every so many layers one sees everything, the others a window; where the file has no pattern of its own."""

_WINDOW_DEFAULT = {"gemma2": 4096, "llama4": 8192}

_RECURRENT = {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}
_RECURRENT_WITHOUT_HEADS = {"jamba", "granitehybrid", "plamo2", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe"}
_RECURRENT_BY_INTERVAL = {"qwen3next", "qwen35", "qwen35moe"}
_RECURRENT_BESIDE_ATTENTION = {"falcon-h1"}

_WITHOUT_CACHE = {
    "bert",
    "jina-bert-v2",
    "jina-bert-v3",
    "nomic-bert",
    "nomic-bert-moe",
    "neo-bert",
    "eurobert",
    "modern-bert",
    "gemma-embedding",
}
"""Architectures that compute a text as a whole, without a KV cache."""


class Layer(NamedTuple):
    """One layer's cache: widths of a key and a value in elements, all heads together; 0 where it keeps none."""

    key_width: int
    value_width: int
    is_windowed: bool = False
    state_elements: int = 0
    """32-bit numbers of recurrent state a slot."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. `n_window` is in tokens, 0 without sliding window; widths are in elements."""

    gguf: Gguf
    architecture: str
    n_ctx_train: int
    n_vocab: int
    width: int
    n_heads: int
    query_width: int
    n_ff: int
    """Inner elements of the feed-forward part that a token computes: of a MoE layer, those of all experts used."""
    n_experts: int
    n_experts_used: int
    n_window: int
    layers: tuple[Layer, ...]
    is_causal: bool = True
    state_width: int = 0
    """Inner elements of a recurrent layer; 0 without any."""
    pools: bool = False
    """Whether the file names a pooling."""

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def only_embeds(self) -> bool:
        """Whether it is an embedding or reranking model, which generates nothing."""
        return self.pools or not self.is_causal

    @property
    def keeps_nothing(self) -> bool:
        """Whether it has no cache and no state: each input is computed in one batch."""
        return not any(layer.key_width or layer.state_elements for layer in self.layers)

    @property
    def is_recurrent(self) -> bool:
        return any(layer.state_elements for layer in self.layers)

    @cached_property
    def tensors(self) -> tuple[TensorInfo, ...]:
        return tuple(self.gguf.tensors())

    @cached_property
    def n_params(self) -> int:
        return sum(tensor.n_elements for tensor in self.tensors)

    @cached_property
    def n_params_active(self) -> int:
        """Weights that take part in one token: of the experts only those used."""
        experts = sum(tensor.n_elements for tensor in self.tensors if is_expert(tensor.name))
        if not self.n_experts:
            return self.n_params
        return self.n_params - experts + experts * self.n_experts_used // self.n_experts

    @cached_property
    def n_weight_bytes(self) -> int:
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.n_weight_bytes / max(1, self.n_params)


def of(gguf: Gguf) -> Shape:
    """Read the sizes of a model. Raises ModelError, one line, for what llama.cpp could not load."""
    architecture = gguf.architecture
    check_kind(gguf)
    n_layers = required(gguf, "block_count", MAX_LAYERS)
    width = required(gguf, "embedding_length", _MAX_WIDTH)
    heads = gguf.per_layer("{arch}.attention.head_count", n_layers)
    tensors = {tensor.name: tensor for tensor in gguf.tensors()}
    check_tensors(gguf, tensors, n_layers)
    check_metadata(gguf)
    n_experts, n_experts_used = _experts(gguf, n_layers)
    layers = tuple(_layers(gguf, n_layers, width, heads))
    return Shape(
        gguf=gguf,
        architecture=architecture,
        n_ctx_train=required(gguf, "context_length", 1 << 31),
        n_vocab=tensors["token_embd.weight"].shape[1],
        width=width,
        n_heads=max(heads),
        query_width=max(heads) * gguf.integer("{arch}.attention.key_length", width // max(1, heads[0])),
        n_ff=_n_ff(gguf, n_layers, n_experts_used),
        n_experts=n_experts,
        n_experts_used=n_experts_used,
        n_window=_window(gguf),
        layers=layers,
        is_causal=gguf.metadata.get(f"{architecture}.attention.causal") is not False,
        state_width=_state_width(gguf, width) if any(layer.state_elements for layer in layers) else 0,
        pools=gguf.integer("{arch}.pooling_type") > 0,
    )


def _experts(gguf: Gguf, n_layers: int) -> tuple[int, int]:
    count = gguf.integer("{arch}.expert_count")
    used = max(gguf.per_layer("{arch}.expert_used_count", n_layers))
    if count > MAX_EXPERTS or count < 0 or not (0 < used <= count or used == count == 0):
        raise ModelError(
            f"{gguf.name}: {used} of {count} experts are used; llama.cpp takes 1 to all of at most {MAX_EXPERTS}"
        )
    return count, used


def _n_ff(gguf: Gguf, n_layers: int, n_experts_used: int) -> int:
    dense = max(gguf.per_layer("{arch}.feed_forward_length", n_layers))
    if not n_experts_used:
        return dense
    one = max(gguf.per_layer("{arch}.expert_feed_forward_length", n_layers)) or dense
    has_dense = gguf.integer("{arch}.leading_dense_block_count") > 0
    return max(n_experts_used * one, dense if has_dense else 0)


def _window(gguf: Gguf) -> int:
    architecture = gguf.architecture
    n_window = gguf.integer("{arch}.attention.sliding_window", _WINDOW_DEFAULT.get(architecture, 0))
    has_pattern = architecture in _WINDOW_PERIOD or gguf.has("{arch}.attention.sliding_window_pattern")
    # llama.cpp takes phi3's window for a mistake of old files.
    return n_window if has_pattern and architecture != "phi3" else 0


def _is_windowed(gguf: Gguf, n_layers: int) -> tuple[bool, ...]:
    if _window(gguf) <= 0:
        return (False,) * n_layers
    pattern = gguf.metadata.get(f"{gguf.architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, tuple) and len(pattern) >= n_layers:
        return tuple(bool(one) for one in pattern[:n_layers])
    period = pattern if isinstance(pattern, int) and pattern > 0 else _WINDOW_PERIOD.get(gguf.architecture, 1)
    return tuple(i % period < period - 1 for i in range(n_layers))


def _layers(gguf: Gguf, n_layers: int, width: int, heads: tuple[int, ...]) -> Iterator[Layer]:
    kv_heads = tuple(
        n if gguf.has("{arch}.attention.head_count_kv") else heads[i]
        for i, n in enumerate(gguf.per_layer("{arch}.attention.head_count_kv", n_layers))
    )
    head_width = width // heads[0] if heads[0] > 0 else 0
    key, value = (gguf.integer(f"{{arch}}.attention.{name}_length", head_width) for name in ("key", "value"))
    key_w = gguf.integer("{arch}.attention.key_length_swa", key)
    value_w = gguf.integer("{arch}.attention.value_length_swa", value)
    is_mla = gguf.integer("{arch}.attention.key_length_mla") > 0
    windowed = _is_windowed(gguf, n_layers)
    n_with_cache = _layers_with_cache(gguf, n_layers)
    for i, state in enumerate(_states(gguf, n_layers, width, heads[0], kv_heads)):
        has_cache = i < n_with_cache and (state == 0 or gguf.architecture in _RECURRENT_BESIDE_ATTENTION)
        n = kv_heads[i] if has_cache else 0
        wide_value = 0 if is_mla else (value_w if windowed[i] else value)
        yield Layer(n * (key_w if windowed[i] else key), n * wide_value, windowed[i], state)


def _layers_with_cache(gguf: Gguf, n_layers: int) -> int:
    """Layers with a cache of their own: some models' last layers read that of earlier ones, some have none at all."""
    if gguf.architecture in _WITHOUT_CACHE:
        return 0
    if gguf.architecture == "gemma3n":
        return min(20, n_layers)
    return n_layers - gguf.integer("{arch}.attention.shared_kv_layers")


def _states(gguf: Gguf, n_layers: int, width: int, n_heads: int, kv_heads: tuple[int, ...]) -> Iterator[int]:
    """Numbers of recurrent state that each layer keeps for a slot: llama.cpp's `n_embd_r + n_embd_s`."""
    size = _state_elements(gguf, width, n_heads)
    architecture = gguf.architecture
    flags = gguf.metadata.get(f"{architecture}.attention.recurrent_layers")
    interval = gguf.integer("{arch}.full_attention_interval", 4)
    feed_forward = gguf.per_layer("{arch}.feed_forward_length", n_layers)
    for i in range(n_layers):
        if architecture in _RECURRENT | _RECURRENT_BESIDE_ATTENTION:
            is_recurrent = True
        elif isinstance(flags, tuple) and i < len(flags):
            is_recurrent = bool(flags[i])
        elif architecture in _RECURRENT_BY_INTERVAL:
            is_recurrent = interval > 0 and (i + 1) % interval != 0
        elif architecture in _RECURRENT_WITHOUT_HEADS:
            is_recurrent = kv_heads[i] == 0 and not (architecture.startswith("nemotron") and feed_forward[i])
        else:
            is_recurrent = False
        yield size if is_recurrent else 0


def _state_width(gguf: Gguf, width: int) -> int:
    return gguf.integer("{arch}.ssm.inner_size") or width


def _state_elements(gguf: Gguf, width: int, n_heads: int) -> int:
    def number(key: str) -> int:
        return gguf.integer("{arch}." + key)

    if wkv := number("wkv.head_size"):
        return gguf.integer("{arch}.token_shift_count", 2) * width + width * wkv
    if shortconv := number("shortconv.l_cache"):
        return width * (shortconv - 1)
    if kda := number("kda.head_dim"):
        return 3 * (max(number("ssm.conv_kernel"), 4) - 1) * n_heads * kda + kda * kda * n_heads
    inner, state = number("ssm.inner_size"), number("ssm.state_size")
    kernel = max(1, number("ssm.conv_kernel"))
    return (kernel - 1) * (inner + 2 * number("ssm.group_count") * state) + prod((inner, state))
