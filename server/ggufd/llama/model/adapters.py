"""LoRA adapters and control vectors, loaded and applied to a context. Their files were checked before."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llama_cpp

from ggufd.errors import ModelError
from ggufd.llama.gguf.adapter_files import DIRECTION, read
from ggufd.llama.params import ControlVector

if TYPE_CHECKING:
    import numpy as np


class LoraAdapters:
    """The LoRA adapters of one model, by their places; freed with it. Raises ModelError where one does not load."""

    def __init__(self, model_handle: Any, paths: Sequence[str]) -> None:
        self._handles = []
        for path in paths:
            handle = llama_cpp.llama_adapter_lora_init(model_handle, os.fsencode(Path(path).expanduser()))
            if not handle:
                raise ModelError(f"llama.cpp could not load the adapter {path}")
            self._handles.append(handle)

    def __len__(self) -> int:
        return len(self._handles)

    def put_over(self, context_handle: Any, scales: Sequence[float]) -> None:
        """Apply the adapters with these scales; empty `scales` remove all."""
        n = len(scales)
        handles = (llama_cpp.llama_adapter_lora_p_ctypes * n)(*self._handles[:n])
        llama_cpp.llama_set_adapters_lora(context_handle, handles, n, (ctypes.c_float * n)(*scales))


def put_control_vectors_over(
    context_handle: Any, vectors: Sequence[ControlVector], layers: tuple[int, int] | None, n_embd: int, n_layer: int
) -> None:
    """Add the sum of all vectors to what leaves layers `layers`, both inclusive; None is all of them."""
    directions = _sum_of(vectors, n_embd, n_layer)
    first, last = layers or (1, n_layer)
    data = directions.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if llama_cpp.llama_set_adapter_cvec(context_handle, data, directions.size, n_embd, first, last) != 0:
        raise ModelError("llama.cpp could not use the control vectors")


def _sum_of(vectors: Sequence[ControlVector], n_embd: int, n_layer: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Shape `[n_layer, n_embd]`; the first row is layer 1's, since nothing is added before it."""
    # Here: the text process has no other use for it.
    import numpy as np

    total = np.zeros((n_layer, n_embd), np.float32)
    for vector in vectors:
        header = read(vector.path)
        for tensor in header.tensors:
            layer = int(tensor.name.removeprefix(DIRECTION))
            if layer <= n_layer:
                offset = header.data_offset + tensor.offset
                direction = np.fromfile(Path(vector.path).expanduser(), np.float32, n_embd, offset=offset)
                total[layer - 1] += vector.scale * direction
    return total
