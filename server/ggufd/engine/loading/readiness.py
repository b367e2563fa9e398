"""Report of a loaded engine on itself: `Ready` and its parts."""

from __future__ import annotations

from pathlib import Path

from ggufd.engine.backend.interfaces import Decoder, VectorDecoder
from ggufd.engine.loading.load_log import LoadLog
from ggufd.engine.messages.reports import DraftInfo, EmbeddingInfo, ModelInfo, Ready
from ggufd.llama.context.context import Context
from ggufd.llama.gguf.gguf_header import Scalar
from ggufd.llama.model import system
from ggufd.llama.model.model import Model
from ggufd.llama.model.vocabulary import ModelVocabulary
from ggufd.llama.params import ContextParams, EmbeddingParams


def ready_of(
    model: Model,
    log: LoadLog,
    context: Decoder | VectorDecoder,
    params: ContextParams | EmbeddingParams,
    flash_why: str,
    embedding: EmbeddingInfo,
    *,
    n_slots: int,
    reuse: str,
) -> Ready:
    """Report of an engine of either kind; `params` are those of `context`."""
    return Ready(
        model=_model_info(model),
        n_ctx=context.n_ctx,
        n_slots=n_slots,
        n_batch=context.n_batch,
        n_threads=params.n_threads,
        n_gpu_layers=log.n_gpu_layers,
        devices=system.gpu_devices(),
        flash_attn=params.flash_attn == "on",
        flash_attn_why=flash_why,
        reuse=reuse,
        memory_bytes=log.memory_bytes,
        buffers=tuple(log.buffers),
        build=system.build(),
        buffer_types=tuple(system.buffer_types()),
        has_rpc=system.has_rpc(),
        embedding=embedding,
    )


def _model_info(model: Model) -> ModelInfo:
    metadata, vocabulary = model.metadata, model.vocabulary
    return ModelInfo(
        name=metadata.get("general.name") or Path(model.params.path).stem,
        path=model.params.path,
        architecture=model.architecture,
        description=model.description,
        ftype=model.ftype,
        n_params=model.n_params,
        size_bytes=model.size_bytes,
        n_vocab=vocabulary.n_vocab,
        n_ctx_train=model.n_ctx_train,
        n_embd=model.n_embd,
        n_layer=model.n_layer,
        chat_template=model.chat_template,
        bos_piece=_piece_text(vocabulary, vocabulary.bos),
        eos_piece=_piece_text(vocabulary, vocabulary.eos),
        metadata={key: value for key, value in metadata.items() if key != "tokenizer.chat_template"}
        | {key: _as_llama_writes(value) for key, value in model.params.metadata},
        vocab_type=vocabulary.vocab_type,
    )


def draft_info(model: Model, context: Context, *, n_gpu_layers: int) -> DraftInfo:
    """Report of a draft model over `context`."""
    return DraftInfo(
        name=model.metadata.get("general.name") or Path(model.params.path).stem,
        path=model.params.path,
        ftype=model.ftype,
        n_params=model.n_params,
        size_bytes=model.size_bytes,
        n_ctx=context.n_ctx,
        n_gpu_layers=n_gpu_layers,
    )


def embedding_info(model: Model, params: EmbeddingParams, *, is_asked_for: bool) -> EmbeddingInfo:
    """Report of how vectors are made; `is_asked_for` where a setting or the file asks for them."""
    width = model.n_scores if params.pooling == "rank" else model.n_embd_out
    return EmbeddingInfo(params.pooling, width, params.n_ctx, is_asked_for)


def _as_llama_writes(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _piece_text(vocabulary: ModelVocabulary, token: int | None) -> str:
    return "" if token is None else vocabulary.piece(token, special=True).decode("utf-8", "replace")
