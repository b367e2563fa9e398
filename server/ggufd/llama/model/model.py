"""GGUF models as llama.cpp loads them: vocabulary and metadata alone, or with the weights.

Holds no context and no policy.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cached_property
from typing import Any

import llama_cpp

from ggufd.errors import ModelError
from ggufd.llama.model import facts, system
from ggufd.llama.model.adapters import LoraAdapters
from ggufd.llama.model.overrides import native_metadata, native_overrides
from ggufd.llama.model.vocabulary import ModelVocabulary
from ggufd.llama.params import ModelParams, Pooling

_SPLIT_MODES = {
    "none": llama_cpp.LLAMA_SPLIT_MODE_NONE,
    "layer": llama_cpp.LLAMA_SPLIT_MODE_LAYER,
    "row": llama_cpp.LLAMA_SPLIT_MODE_ROW,
}
_POOLINGS: dict[str, Pooling] = {"1": "mean", "2": "cls", "3": "last", "4": "rank"}
_ALL_LAYERS = -1
_META_BYTES = 1 << 16

ProgressCallback = Callable[[float], bool]
"""Gets the share that is loaded, 0 to 1; False stops the loading."""


class GgufModel:
    """A GGUF without its weights: vocabulary, metadata, templates. `close` frees it.

    Raises `ModelError` when the file cannot be loaded; the reason is in llama.cpp's log.
    """

    def __init__(self, path: str) -> None:
        native = llama_cpp.llama_model_default_params()
        native.vocab_only = True
        native.n_gpu_layers = 0
        self._load(path, native)

    def _load(self, path: str, native: Any) -> None:
        llama_cpp.llama_backend_init()
        self.path = path
        self._native = native
        self.handle = llama_cpp.llama_model_load_from_file(os.fsencode(path), native)
        if not self.handle:
            raise ModelError(f"llama.cpp could not load {path}")
        self.vocabulary = ModelVocabulary(llama_cpp.llama_model_get_vocab(self.handle))

    def close(self) -> None:
        if self.handle:
            llama_cpp.llama_model_free(self.handle)
            self.handle = None

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The file's key-value pairs as llama.cpp writes them; arrays are shortened by it."""
        count = llama_cpp.llama_model_meta_count(self.handle)
        pairs = {}
        for i in range(count):
            key = self._read_meta(llama_cpp.llama_model_meta_key_by_index, i)
            pairs[key] = self._read_meta(llama_cpp.llama_model_meta_val_str_by_index, i)
        return pairs

    def _read_meta(self, read: Callable[..., int], index: int) -> str:
        buffer = ctypes.create_string_buffer(_META_BYTES)
        n = read(self.handle, index, buffer, _META_BYTES)
        if n >= _META_BYTES:
            buffer = ctypes.create_string_buffer(n + 1)
            read(self.handle, index, buffer, n + 1)
        return buffer.value.decode("utf-8", "replace")

    @property
    def chat_template(self) -> str | None:
        """The file's Jinja template, byte for byte, or None."""
        raw = llama_cpp.llama_model_chat_template(self.handle, None)
        return raw.decode("utf-8", "replace") if raw is not None else None

    @property
    def rerank_template(self) -> str | None:
        """The file's text with `{query}` and `{document}` that a reranker reads, or None."""
        raw = llama_cpp.llama_model_chat_template(self.handle, b"rerank")
        return raw.decode("utf-8", "replace") if raw is not None else None


class Model(GgufModel):
    """A model with its weights. Contexts made from it must be closed before it is. Raises `ModelError` as above."""

    def __init__(self, params: ModelParams, on_progress: ProgressCallback | None = None) -> None:
        self.params = params
        # Kept referenced until the load is over: C calls it and reads them.
        native, keep = _native_params(params, on_progress)
        self._load(params.path, native)
        del keep
        # Before any context: its graphs are sized by what there is.
        self.adapters = LoraAdapters(self.handle, () if params.no_alloc else params.loras)

    n_params = facts.number(llama_cpp.llama_model_n_params)
    size_bytes = facts.number(llama_cpp.llama_model_size)
    """Bytes of all tensors."""
    n_ctx_train = facts.number(llama_cpp.llama_model_n_ctx_train)
    n_embd = facts.number(llama_cpp.llama_model_n_embd)
    n_embd_inp = facts.number(llama_cpp.llama_model_n_embd_inp)
    """Width of the embedding rows that it takes in place of tokens."""
    n_embd_out = facts.number(llama_cpp.llama_model_n_embd_out)
    """Width of its embeddings."""
    n_layer = facts.number(llama_cpp.llama_model_n_layer)
    n_head = facts.number(llama_cpp.llama_model_n_head)
    n_head_kv = facts.number(llama_cpp.llama_model_n_head_kv)
    n_swa = facts.number(llama_cpp.llama_model_n_swa)
    """Width of the sliding window in tokens; 0 when attention is full."""
    n_scores = facts.number(llama_cpp.llama_model_n_cls_out)
    """Number of scores of a reranker or classifier."""
    has_decoder = facts.flag(llama_cpp.llama_model_has_decoder)
    has_encoder = facts.flag(llama_cpp.llama_model_has_encoder)

    @property
    def description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        llama_cpp.llama_model_desc(self.handle, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    @property
    def architecture(self) -> str:
        return self.metadata.get("general.architecture", "unknown")

    @property
    def ftype(self) -> str:
        """Type of most weights, as llama.cpp writes it: "Q4_0", "Q4_K - Medium"."""
        # A description is "architecture size type"; architectures and sizes hold no blank.
        return self.description.split(" ", 2)[-1]

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token takes in an f16 cache; an upper bound where some layers have none."""
        value_width = int(self.metadata.get(f"{self.architecture}.attention.value_length") or self.head_width)
        return 2 * self.n_layer * max(1, self.n_head_kv) * (self.head_width + value_width)

    @property
    def head_width(self) -> int:
        """Width of one attention head's keys."""
        width = self.metadata.get(f"{self.architecture}.attention.key_length")
        return int(width or self.n_embd // max(1, self.n_head))

    @property
    def is_recurrent(self) -> bool:
        """Whether some state is recurrent, so that a tail of a sequence cannot be dropped."""
        return bool(llama_cpp.llama_model_is_recurrent(self.handle) or llama_cpp.llama_model_is_hybrid(self.handle))

    @property
    def pooling(self) -> Pooling | None:
        """Pooling that the file names; None for a generative model."""
        number = self.metadata.get(f"{self.architecture}.pooling_type", "")
        return _POOLINGS.get(number)

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only those before it, so that text can be continued."""
        return self.metadata.get(f"{self.architecture}.attention.causal", "true") != "false"


def _native_params(params: ModelParams, on_progress: ProgressCallback | None) -> tuple[Any, list[Any]]:
    """llama.cpp's struct, and what must stay referenced while C reads it."""
    native = llama_cpp.llama_model_default_params()
    native.n_gpu_layers = _ALL_LAYERS if params.n_gpu_layers is None else params.n_gpu_layers
    native.split_mode = _SPLIT_MODES[params.split_mode]
    native.main_gpu = params.main_gpu
    native.load_mode = _load_mode(params)
    native.no_alloc = params.no_alloc
    native.tensor_buft_overrides, buffers = native_overrides(params.n_cpu_moe or 0, params.overrides)
    keep: list[Any] = [buffers]
    if params.metadata:
        native.kv_overrides = changes = native_metadata(params.metadata)
        keep.append(changes)
    if params.tensor_split:
        shares = (ctypes.c_float * llama_cpp.llama_max_devices())(*params.tensor_split)
        native.tensor_split = shares
        keep.append(shares)
    if params.devices:
        handles = system.device_handles(params.devices)
        native.devices = ctypes.cast(handles, ctypes.c_void_p)
        keep.append(handles)
    if on_progress is not None:
        callback = llama_cpp.llama_progress_callback(lambda fraction, _: on_progress(fraction))
        native.progress_callback = callback
        keep.append(callback)
    return native, keep


def _load_mode(params: ModelParams) -> int:
    if params.mmap:
        mode = llama_cpp.LLAMA_LOAD_MODE_MMAP_MLOCK if params.mlock else llama_cpp.LLAMA_LOAD_MODE_MMAP
    else:
        mode = llama_cpp.LLAMA_LOAD_MODE_MLOCK if params.mlock else llama_cpp.LLAMA_LOAD_MODE_NONE
    return int(mode)
