"""A context that computes vectors instead of next tokens: an output of every row, or a score of every sequence.

Its sequences share one cache, since they live for a moment: an input is computed, its vector is read, it is forgotten.
No policy here: which inputs are computed when, and how their rows become one vector, is decided above.
"""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llama_cpp
import numpy as np

from server.errors import EngineFailure, ModelError
from server.llama.adapters import put_control_vectors_over
from server.llama.batch import Batch, NoRoomError, Vectors
from server.llama.context import FLASH_ATTENTION, NativeBatch
from server.llama.model import Model
from server.llama.params import EmbeddingParams


class EmbeddingContext:
    """A context over `model` beside the one that writes, if there is one; `close` frees it before the model is.

    An input of a model that is not causal sees all of itself, so it is computed in one batch. Raises `ModelError` when
    it cannot be made.
    """

    def __init__(self, model: Model, params: EmbeddingParams) -> None:
        self.n_ctx = params.n_ctx
        self.n_inputs = params.n_inputs
        self.can_split = model.is_causal
        self.n_batch = params.n_batch(model.vocabulary.n_vocab, is_causal=model.is_causal)
        self._is_ranking = params.pooling == "rank"
        self._width = model.n_scores if self._is_ranking else model.n_embd_out
        self.handle = llama_cpp.llama_init_from_model(model.handle, _native_params(params, self.n_batch))
        if not self.handle:
            raise ModelError(f"llama.cpp could not make a context for embeddings of {params.n_ctx} tokens")
        self._memory = llama_cpp.llama_get_memory(self.handle)
        self._batch = NativeBatch(self.n_batch)
        self._adapters = model.adapters
        self._scales: tuple[float, ...] = ()
        vectors = model.params.control_vectors
        if vectors:
            put_control_vectors_over(self.handle, vectors, model.params.control_layers, model.n_embd, model.n_layer)

    def close(self) -> None:
        if self.handle:
            llama_cpp.llama_free(self.handle)
            self.handle = None

    @property
    def batch(self) -> Batch:
        """The context's own batch: clear it, fill it with rows that all ask for an output, `decode` it."""
        return self._batch.rows

    def set_adapters(self, scales: tuple[float, ...]) -> None:
        """The scale of every LoRA adapter in the next decodes; empty for the model alone."""
        if scales != self._scales:
            self._scales = scales
            self._adapters.put_over(self.handle, scales)

    def decode(self) -> float:
        """Compute the batch; returns the seconds it took.

        Raises `NoRoomError` when the cache is full, `EngineFailure` when llama.cpp failed otherwise.
        """
        start = time.perf_counter()
        status = llama_cpp.llama_decode(self.handle, self._batch.native())
        llama_cpp.llama_synchronize(self.handle)
        if status == 1:
            raise NoRoomError
        if status != 0:
            raise EngineFailure(f"llama_decode failed with status {status}")
        return time.perf_counter() - start

    def rows(self) -> Vectors:
        """The vectors of all rows of the last `decode`, shape `[n_rows, width]`; the next one overwrites them."""
        return self._view(llama_cpp.llama_get_embeddings(self.handle), self.batch.n_rows)

    def scores(self, sequence: int) -> Vectors:
        """A reranker's scores of a sequence whose last token was in the last `decode`, shape `[1, n_scores]`."""
        return self._view(llama_cpp.llama_get_embeddings_seq(self.handle, sequence), 1)

    def _view(self, pointer: Any, n_rows: int) -> Vectors:
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        if address is None:
            raise EngineFailure("llama.cpp has no embeddings")
        buffer = (ctypes.c_float * (n_rows * self._width)).from_address(address)
        return np.ctypeslib.as_array(buffer).reshape(n_rows, self._width)

    def forget(self, sequence: int) -> None:
        """Free what a sequence holds."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, -1, -1)


def _native_params(params: EmbeddingParams, n_batch: int) -> Any:
    native = llama_cpp.llama_context_default_params()
    native.n_ctx = params.n_ctx
    native.n_batch = native.n_ubatch = native.n_outputs_max = n_batch
    native.n_seq_max = params.n_inputs
    native.n_threads = native.n_threads_batch = params.n_threads
    native.flash_attn_type = FLASH_ATTENTION[params.flash_attn]
    native.offload_kqv = params.kv_offload
    native.kv_unified = True
    native.no_perf = True
    native.embeddings = True
    # Rows are pooled by us: an input that is computed in pieces would else be pooled a piece at a time.
    is_ranking = params.pooling == "rank"
    native.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_RANK if is_ranking else llama_cpp.LLAMA_POOLING_TYPE_NONE
    return native
