"""Native context that decoding and embedding share: creation, adapters, computing a batch, release."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import llama_cpp
import numpy as np

from ggufd.errors import EngineFailure, ModelError
from ggufd.llama.context.batch import Batch, NoRoomError
from ggufd.llama.model.adapters import put_control_vectors_over
from ggufd.llama.model.model import Model

FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}


class NativeContext:
    """A context over `model`, made with llama.cpp's own parameters; `close` frees it before the model is.

    Raises `ModelError`, which names it as `name`, when it cannot be made (memory, an impossible cache type).
    """

    def __init__(self, model: Model, native_params: Any, name: str) -> None:
        self.model = model
        self.handle = llama_cpp.llama_init_from_model(model.handle, native_params)
        if not self.handle:
            raise ModelError(f"llama.cpp could not make {name}")
        self.n_batch = int(llama_cpp.llama_n_batch(self.handle))
        self._memory = llama_cpp.llama_get_memory(self.handle)
        self._batch = _NativeBatch(self.n_batch, model.n_embd_inp)
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
        """The context's own batch: clear it, fill it, `decode` it."""
        return self._batch.rows

    def set_adapters(self, scales: tuple[float, ...]) -> None:
        """Set the scale of every LoRA adapter in the next decodes; empty for the model alone."""
        if scales != self._scales:
            self._scales = scales
            self.model.adapters.put_over(self.handle, scales)

    def decode(self) -> float:
        """Compute the batch; returns the seconds it took.

        Raises `NoRoomError` when the cache is full, `EngineFailure` when llama.cpp failed otherwise.
        """
        if self.batch.is_mixed:
            raise EngineFailure("tokens and embedding rows cannot share a batch")
        start = time.perf_counter()
        status = llama_cpp.llama_decode(self.handle, self._batch.native())
        llama_cpp.llama_synchronize(self.handle)
        if status == 1:
            raise NoRoomError
        if status != 0:
            raise EngineFailure(f"llama_decode failed with status {status}")
        return time.perf_counter() - start


class _NativeBatch:
    """A `Batch` that lives in the memory of a `llama_batch`, which has either tokens or embedding rows."""

    def __init__(self, n_batch: int, n_embd: int) -> None:
        self.rows = Batch.with_capacity(n_batch, n_embd)
        self._n_seq_id = np.ones(n_batch, np.int32)
        first = self.rows.seq_id.ctypes.data
        # One pointer a row, each to that row's single sequence id.
        self._seq_pointers = np.arange(n_batch, dtype=np.uintp) * 4 + first
        self._native = llama_cpp.llama_batch()
        for name, array in (
            ("pos", self.rows.pos),
            ("n_seq_id", self._n_seq_id),
            ("seq_id", self._seq_pointers),
            ("logits", self.rows.output),
        ):
            setattr(self._native, name, _pointer(name, array.ctypes.data))
        self._is_embedded: bool | None = None

    def native(self) -> Any:
        self._native.n_tokens = self.rows.n_rows
        is_embedded = self.rows.n_embedded > 0
        if is_embedded != self._is_embedded:
            self._is_embedded = is_embedded
            self._native.token = None if is_embedded else _pointer("token", self.rows.token.ctypes.data)
            self._native.embd = _pointer("embd", self.rows.embd.ctypes.data) if is_embedded else None
        return self._native


def _pointer(name: str, address: int) -> Any:
    """The address as a field of `llama_batch` takes it."""
    return ctypes.cast(address, dict(llama_cpp.llama_batch._fields_)[name])
