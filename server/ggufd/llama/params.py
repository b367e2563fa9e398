"""Parameters of models, contexts and sampler chains: plain data that crosses process boundaries.

Does not import llama_cpp, so that any process may build and pickle these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ggufd.llama.gguf.gguf_header import Scalar

VECTOR_N_CTX = 2048
"""Longest input in tokens of the embedding context, where no setting says otherwise."""

SHORT_TEXT = 512
"""Tokens. Longer inputs need flash attention also on a CPU: their attention scores take much memory."""

_LOGITS = 1 << 24
"""llama.cpp computes logits beside the embeddings of a generative model, and keeps all of them: 64 MiB of floats."""

_MIN_BATCH, _MAX_BATCH = 32, 512

KV_UNIFIED = False
"""Whether slots share one stream of cells. They do not: a step pays only for the longest sequence in its batch."""

FlashAttention = Literal["auto", "on", "off"]

Pooling = Literal["none", "mean", "cls", "last", "rank"]
"""How the rows of an input become one vector: not at all, their mean, the first, the last, or a score instead."""


@dataclass(frozen=True, slots=True)
class ControlVector:
    """Control vector: a file of directions, and the scale of what is added."""

    path: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelParams:
    """Parameters of loading one GGUF; names are llama-server's.

    `devices` are the names of those to offload to, `("none",)` is no GPU; empty is all.
    `n_gpu_layers` None means all layers that the build can offload. `tensor_split` is the share of each device.
    Of the first `n_cpu_moe` layers the experts stay in RAM, None leaves it to the loader; `overrides` are
    `(pattern of tensor names, buffer)`, and go before.
    `rpc` are servers, host:port, whose devices are used as this machine's own are.
    `metadata` stands for what the file says under these keys.
    `loras` are files of adapters; a request names their scales. `control_vectors` are always added, to
    the layers of `control_layers`, first and last; None is all.
    `no_alloc` reads no weights and takes no memory: llama.cpp only says in its log what it would take (`mmap` off).
    """

    path: str
    n_gpu_layers: int | None = None
    split_mode: Literal["none", "layer", "row"] = "layer"
    main_gpu: int = 0
    tensor_split: tuple[float, ...] = ()
    devices: tuple[str, ...] = ()
    mmap: bool = True
    mlock: bool = False
    no_alloc: bool = False
    n_cpu_moe: int | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    rpc: tuple[str, ...] = ()
    metadata: tuple[tuple[str, Scalar], ...] = ()
    loras: tuple[str, ...] = ()
    control_vectors: tuple[ControlVector, ...] = ()
    control_layers: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class ContextParams:
    """Parameters of a decoding context. `n_ctx` is cells of ONE slot; the context gets `n_ctx * n_slots` cells.

    Zero for a RoPE, YaRN or thread number means: from the model, or as many as there are cores. Times in seconds.
    """

    n_ctx: int
    n_slots: int
    n_batch: int = 2048
    n_ubatch: int = 512
    n_threads: int = 0
    n_threads_batch: int = 0
    flash_attn: FlashAttention = "auto"
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    kv_offload: bool = True
    swa_full: bool = True
    rope_scaling: Literal["", "none", "linear", "yarn"] = ""
    rope_freq_base: float = 0.0
    rope_freq_scale: float = 0.0
    yarn_orig_ctx: int = 0
    yarn_ext_factor: float = -1.0
    yarn_attn_factor: float = -1.0
    yarn_beta_slow: float = -1.0
    yarn_beta_fast: float = -1.0


@dataclass(frozen=True, slots=True)
class EmbeddingParams:
    """Parameters of the embedding context. `n_ctx` is the longest input in tokens.

    `n_inputs` are computed at once at most, and share `n_ctx` cells. Zero threads are as many as there are cores.
    """

    n_ctx: int
    pooling: Pooling
    n_inputs: int = 16
    n_threads: int = 0
    flash_attn: FlashAttention = "auto"
    kv_offload: bool = True

    def n_batch(self, n_vocab: int, *, is_causal: bool) -> int:
        """Rows of one batch. An input of a model that is not causal sees all of itself: one batch."""
        if not is_causal:
            return max(self.n_ctx, _MAX_BATCH)
        fitting = _LOGITS // n_vocab // _MIN_BATCH * _MIN_BATCH
        return max(_MIN_BATCH, min(_MAX_BATCH, fitting))


@dataclass(frozen=True, slots=True)
class ProjectorParams:
    """Parameters of a projector. `n_embd` is the width of its rows, from its header; limits of tokens are of one image.

    `devices` are those of the model, by name; the first is used. Without `uses_gpu` none is.
    """

    path: str
    n_embd: int
    n_threads: int = 1
    uses_gpu: bool = False
    devices: tuple[str, ...] = ()
    min_tokens: int | None = None
    max_tokens: int | None = None


DEFAULT_SAMPLERS: tuple[str, ...] = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typ_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
)
"""llama.cpp's order. `adaptive_p` may be added; it picks the token, so it always runs last."""

DEFAULT_DRY_BREAKERS: tuple[str, ...] = ("\n", ":", '"', "*")


@dataclass(frozen=True, slots=True)
class ChainParams:
    """Parameters of a chain of llama.cpp's samplers, in its names; every default is "off".

    `repeat_last_n` and `dry_penalty_last_n` are in tokens, 0 = off, -1 = the whole context.
    `adaptive_target` < 0 is off, `top_n_sigma` <= 0 is off.
    """

    temperature: float = 1.0
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typ_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = DEFAULT_DRY_BREAKERS
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    min_keep: int = 0
    samplers: tuple[str, ...] = DEFAULT_SAMPLERS
