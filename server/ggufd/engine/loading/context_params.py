"""Parameters of the contexts with every "auto" decided: size, threads, flash attention, pooling."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ggufd.engine.loading.placing import draft_bytes
from ggufd.engine.messages.config import EngineConfig
from ggufd.errors import ModelError
from ggufd.llama.calibration.calibration import prefers_flash_attention
from ggufd.llama.gguf import gguf_header
from ggufd.llama.model import system
from ggufd.llama.model.model import Model
from ggufd.llama.params import SHORT_TEXT, ContextParams, EmbeddingParams, FlashAttention
from ggufd.placement import host

_DEFAULT_N_CTX = 8192
_MIN_N_CTX = 512
_MEMORY_SHARE = 0.8


def resolve(config: EngineConfig, model: Model) -> tuple[ContextParams, str]:
    """Parameters of the context for text, and why flash attention is on or off."""
    params = config.context
    n_threads = params.n_threads or host.compute_threads()
    n_ctx = params.n_ctx or fitting_n_ctx(model, params, draft_bytes(config))
    params = dataclasses.replace(params, n_threads=n_threads, n_ctx=n_ctx)
    if params.flash_attn != "auto":
        return params, "as configured"
    is_on, why = _flash_attention(config, model, params)
    return dataclasses.replace(params, flash_attn="on" if is_on else "off"), why


def _flash_attention(config: EngineConfig, model: Model, params: ContextParams) -> tuple[bool, str]:
    if params.cache_type_v not in ("f16", "f32", "bf16"):
        return True, "a quantised V cache needs it"
    if system.gpu_devices() and config.model.n_gpu_layers != 0:
        return True, "layers run on a GPU"
    if model.is_recurrent:
        return False, "not measured for recurrent models"
    memory = Path(config.cache_dir) / "flash-attention.json" if config.cache_dir else None
    return prefers_flash_attention(model, params, memory)


def fitting_n_ctx(model: Model, params: ContextParams, taken_bytes: int = 0) -> int:
    """Context size of a slot: the training context up to 8,192 tokens, halved until all slots fit into free memory.

    `taken_bytes` of that are spoken for.
    """
    n_ctx = min(model.n_ctx_train or _DEFAULT_N_CTX, _DEFAULT_N_CTX)
    budget = _MEMORY_SHARE * host.ram().free - taken_bytes
    while n_ctx > _MIN_N_CTX and model.kv_bytes_per_token * n_ctx * params.n_slots > budget:
        n_ctx //= 2
    return n_ctx


def vector_flash_attention(config: EngineConfig, n_ctx: int) -> tuple[FlashAttention, str]:
    """Flash attention of a context for vectors, and why.

    On a CPU short inputs are computed faster without it, but the attention scores of a long one take much memory.
    """
    if config.context.flash_attn != "auto":
        return config.context.flash_attn, "as configured"
    if system.gpu_devices() and config.model.n_gpu_layers != 0:
        return "on", "layers run on a GPU"
    return ("on", "texts may be long") if n_ctx > SHORT_TEXT else ("off", "texts are short")


def embedding_params(config: EngineConfig, model: Model, n_ctx: int, flash_attn: FlashAttention) -> EmbeddingParams:
    """Parameters of the context for vectors: inputs of up to `n_ctx` tokens, or of as many as the model was trained
    for; mean pooling where neither settings nor file name one.
    """
    pooling = config.pooling or model.pooling or "mean"
    if pooling == "rank" and not _has_classifier(model):
        raise ModelError(f"{model.params.path} has no classifier, so it gives no scores; use another pooling than rank")
    return EmbeddingParams(
        n_ctx=min(n_ctx, model.n_ctx_train or n_ctx),
        pooling=pooling,
        n_threads=config.context.n_threads_batch or config.context.n_threads or host.compute_threads(),
        flash_attn=flash_attn,
        kv_offload=config.context.kv_offload,
    )


def _has_classifier(model: Model) -> bool:
    header = gguf_header.read(gguf_header.parts_of(Path(model.params.path)))
    return any(tensor.name.startswith("cls") for tensor in header.tensors())
