"""One GGUF model: its weights or only its vocabulary, tokenizing, pieces and metadata.

Holds no context and no policy. Whoever calls `tokenize` with a stranger's text does so in a process that may die:
some tokenizers of llama.cpp overflow their stack on long unbroken runs.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cached_property
from typing import Any

import llama_cpp

from server.errors import ModelError
from server.llama.adapters import Adapters
from server.llama.overrides import native_metadata, native_overrides
from server.llama.params import ModelParams, Pooling

_SPLIT_MODES = {
    "none": llama_cpp.LLAMA_SPLIT_MODE_NONE,
    "layer": llama_cpp.LLAMA_SPLIT_MODE_LAYER,
    "row": llama_cpp.LLAMA_SPLIT_MODE_ROW,
}
_POOLINGS: dict[str, Pooling] = {"1": "mean", "2": "cls", "3": "last", "4": "rank"}
_ALL_LAYERS = -1
_META_BYTES = 1 << 16
_PIECE_BYTES = 256

ProgressCallback = Callable[[float], bool]
"""Gets the share that is loaded, 0 to 1; False stops the loading."""


class Model:
    """A loaded model. `close` frees it; contexts made from it must be closed first.

    Raises `ModelError` when the file cannot be loaded; the reason is in llama.cpp's log.
    """

    def __init__(self, params: ModelParams, on_progress: ProgressCallback | None = None) -> None:
        llama_cpp.llama_backend_init()
        self.params = params
        self._pieces: dict[tuple[int, bool], bytes] = {}
        # Kept referenced until the load is over: C calls it and reads them.
        self._native, keep = _native_params(params, on_progress)
        self.handle = llama_cpp.llama_model_load_from_file(os.fsencode(params.path), self._native)
        del keep
        if not self.handle:
            raise ModelError(f"llama.cpp could not load {params.path}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.handle)
        # Before any context: its graphs are sized by what there is.
        self.adapters = Adapters(self.handle, () if params.vocab_only or params.no_alloc else params.loras)

    def close(self) -> None:
        if self.handle:
            llama_cpp.llama_model_free(self.handle)
            self.handle = None

    # --- the vocabulary -----------------------------------------------------------------------------------------

    @cached_property
    def n_vocab(self) -> int:
        return int(llama_cpp.llama_vocab_n_tokens(self.vocab))

    @property
    def vocab_type(self) -> int:
        """llama.cpp's number of the kind of tokenizer."""
        return int(llama_cpp.llama_vocab_type(self.vocab))

    @property
    def has_vocab(self) -> bool:
        """False for a model whose file carries no tokenizer."""
        return bool(self.vocab_type != llama_cpp.LLAMA_VOCAB_TYPE_NONE)

    @property
    def bos(self) -> int | None:
        return _token_or_none(llama_cpp.llama_vocab_bos(self.vocab))

    @property
    def eos(self) -> int | None:
        return _token_or_none(llama_cpp.llama_vocab_eos(self.vocab))

    @property
    def adds_bos(self) -> bool:
        """Whether tokenizing with `add_special` puts a BOS in front."""
        return bool(llama_cpp.llama_vocab_get_add_bos(self.vocab))

    @property
    def adds_eos(self) -> bool:
        return bool(llama_cpp.llama_vocab_get_add_eos(self.vocab))

    @property
    def sep(self) -> int | None:
        return _token_or_none(llama_cpp.llama_vocab_sep(self.vocab))

    @property
    def adds_sep(self) -> bool:
        """Whether a SEP stands between two texts that are judged together."""
        return bool(llama_cpp.llama_vocab_get_add_sep(self.vocab))

    @cached_property
    def eog_tokens(self) -> frozenset[int]:
        """Every token that ends generation."""
        is_eog = llama_cpp.llama_vocab_is_eog
        return frozenset(token for token in range(self.n_vocab) if is_eog(self.vocab, token))

    @cached_property
    def suppressed_tokens(self) -> tuple[int, ...]:
        """Tokens that the file says are never to be generated."""
        count = ctypes.c_int32(0)
        tokens = llama_cpp.llama_vocab_get_suppress_tokens(self.vocab, ctypes.byref(count))
        return tuple(tokens[i] for i in range(count.value))

    @cached_property
    def infill_tokens(self) -> tuple[int, int, int] | None:
        """`(prefix, suffix, middle)` for filling in the middle, or None when the model has none."""
        prefix = _token_or_none(llama_cpp.llama_vocab_fim_pre(self.vocab))
        suffix = _token_or_none(llama_cpp.llama_vocab_fim_suf(self.vocab))
        middle = _token_or_none(llama_cpp.llama_vocab_fim_mid(self.vocab))
        if prefix is None or suffix is None or middle is None:
            return None
        return prefix, suffix, middle

    @cached_property
    def repository_tokens(self) -> tuple[int | None, int | None]:
        """What begins a repository and a file of it in front of infill, where the model has such."""
        repository = _token_or_none(llama_cpp.llama_vocab_fim_rep(self.vocab))
        return repository, _token_or_none(llama_cpp.llama_vocab_fim_sep(self.vocab))

    def is_control(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_control(self.vocab, token))

    def is_special(self, token: int) -> bool:
        """Whether a token is a mark and no text: a control token, or one that was added and looks like one."""
        if self.is_control(token):
            return True
        attributes = llama_cpp.llama_vocab_get_attr(self.vocab, token)
        piece = self.piece(token, special=True)
        is_added = bool(attributes & llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED)
        return is_added and piece.startswith(b"<") and piece.endswith(b">")

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`; `add_special` adds BOS/EOS as the model wants, `parse_special` reads `<|…|>` as tokens.

        Raises `ValueError` when llama.cpp refuses the text.
        """
        data = text.encode("utf-8")
        capacity = len(data) + 8
        for _ in range(2):
            tokens = (llama_cpp.llama_token * capacity)()
            n = llama_cpp.llama_tokenize(self.vocab, data, len(data), tokens, capacity, add_special, parse_special)
            if n >= 0:
                return list(tokens[:n])
            capacity = -n
        raise ValueError("the text could not be tokenized")

    def piece(self, token: int, *, special: bool) -> bytes:
        """The bytes of one token, perhaps a part of a character; control tokens are empty unless `special`."""
        key = (token, special)
        piece = self._pieces.get(key)
        if piece is None:
            piece = self._pieces[key] = self._read_piece(token, special)
        return piece

    def _read_piece(self, token: int, special: bool) -> bytes:
        size = _PIECE_BYTES
        for _ in range(2):
            buffer = ctypes.create_string_buffer(size)
            n = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            size = -n
        raise ValueError(f"token {token} has no piece")

    # --- facts --------------------------------------------------------------------------------------------------

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
        """What most weights are stored in, as llama.cpp writes it: "Q4_0", "Q4_K - Medium"."""
        # A description is "architecture size type"; architectures and sizes hold no blank.
        return self.description.split(" ", 2)[-1]

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token takes in an f16 cache; an upper bound where some layers have none."""
        value_width = int(self.metadata.get(f"{self.architecture}.attention.value_length") or self.head_width)
        return 2 * self.n_layer * max(1, self.n_head_kv) * (self.head_width + value_width)

    @property
    def n_params(self) -> int:
        return int(llama_cpp.llama_model_n_params(self.handle))

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return int(llama_cpp.llama_model_size(self.handle))

    @property
    def n_ctx_train(self) -> int:
        return int(llama_cpp.llama_model_n_ctx_train(self.handle))

    @property
    def n_embd(self) -> int:
        return int(llama_cpp.llama_model_n_embd(self.handle))

    @property
    def n_layer(self) -> int:
        return int(llama_cpp.llama_model_n_layer(self.handle))

    @property
    def n_head(self) -> int:
        return int(llama_cpp.llama_model_n_head(self.handle))

    @property
    def n_head_kv(self) -> int:
        return int(llama_cpp.llama_model_n_head_kv(self.handle))

    @property
    def head_width(self) -> int:
        """Width of one attention head's keys."""
        width = self.metadata.get(f"{self.architecture}.attention.key_length")
        return int(width or self.n_embd // max(1, self.n_head))

    @property
    def n_swa(self) -> int:
        """Width of the sliding window in tokens; 0 when attention is full."""
        return int(llama_cpp.llama_model_n_swa(self.handle))

    @property
    def is_recurrent(self) -> bool:
        """Whether some state is recurrent, so that a tail of a sequence cannot be dropped."""
        return bool(llama_cpp.llama_model_is_recurrent(self.handle) or llama_cpp.llama_model_is_hybrid(self.handle))

    @property
    def pooling(self) -> Pooling | None:
        """How the file says that vectors are pooled; None for a model that was made to write."""
        number = self.metadata.get(f"{self.architecture}.pooling_type", "")
        return _POOLINGS.get(number)

    @property
    def is_causal(self) -> bool:
        """Whether a token sees only those before it, so that text can be continued."""
        return self.metadata.get(f"{self.architecture}.attention.causal", "true") != "false"

    @property
    def n_embd_out(self) -> int:
        """Width of the vectors that it makes."""
        return int(llama_cpp.llama_model_n_embd_out(self.handle))

    @property
    def n_scores(self) -> int:
        """How many scores a reranker or classifier gives."""
        return int(llama_cpp.llama_model_n_cls_out(self.handle))

    @property
    def has_decoder(self) -> bool:
        return bool(llama_cpp.llama_model_has_decoder(self.handle))

    @property
    def has_encoder(self) -> bool:
        return bool(llama_cpp.llama_model_has_encoder(self.handle))


def _native_params(params: ModelParams, on_progress: ProgressCallback | None) -> tuple[Any, list[Any]]:
    """llama.cpp's own struct, and what must stay referenced while C reads it."""
    native = llama_cpp.llama_model_default_params()
    native.vocab_only = params.vocab_only
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


def _token_or_none(token: int) -> int | None:
    """llama.cpp writes "there is no such token" as -1."""
    return int(token) if token >= 0 else None
