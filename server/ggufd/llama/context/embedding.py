"""Context for embeddings and reranking: a vector of every row, or a score of every sequence.

Its sequences share one cache, since they live for a moment: an input is computed, its vector is read, it is forgotten.
No policy here: which inputs are computed when, and how their rows become one vector, is decided above.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp
import numpy as np

from ggufd.errors import EngineFailure
from ggufd.llama.context.batch import Vectors
from ggufd.llama.context.native_context import FLASH_ATTENTION, NativeContext
from ggufd.llama.model.model import Model
from ggufd.llama.params import EmbeddingParams


class EmbeddingContext(NativeContext):
    """A context over `model` beside the decoding one, if there is one. Every row of its batch asks for an output.

    An input of a model that is not causal sees all of itself, so it is computed in one batch. Raises `ModelError` when
    it cannot be made.
    """

    def __init__(self, model: Model, params: EmbeddingParams) -> None:
        self.n_ctx = params.n_ctx
        self.n_inputs = params.n_inputs
        self.can_split = model.is_causal
        self._width = model.n_scores if params.pooling == "rank" else model.n_embd_out
        n_batch = params.n_batch(model.vocabulary.n_vocab, is_causal=model.is_causal)
        super().__init__(model, _native_params(params, n_batch), f"a context for embeddings of {params.n_ctx} tokens")

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
        """Free the cells of a sequence."""
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
