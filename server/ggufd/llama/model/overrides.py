"""Overrides of a model's metadata and of the buffers of its tensors, as llama.cpp takes them.

Patterns of tensors are searched for in a name; the first that matches counts.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp

from ggufd.llama.gguf.gguf_header import Scalar
from ggufd.llama.gguf.shape import MAX_LAYERS
from ggufd.llama.model import system
from ggufd.llama.model.placing import check_overrides

_KINDS: tuple[tuple[type, tuple[int, str]], ...] = (
    (bool, (llama_cpp.LLAMA_KV_OVERRIDE_TYPE_BOOL, "val_bool")),
    (int, (llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT, "val_i64")),
    (float, (llama_cpp.LLAMA_KV_OVERRIDE_TYPE_FLOAT, "val_f64")),
    (str, (llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR, "val_str")),
)
_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"


class _Override(ctypes.Structure):
    """`llama_model_tensor_buft_override`."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p))


def native_overrides(n_cpu_moe: int, overrides: tuple[tuple[str, str], ...]) -> tuple[Any, Any]:
    """Address of the tensor overrides, and what must stay referenced while C reads it; None where there are none.

    Raises ModelError for a buffer that this build does not have, or a pattern that is none.
    """
    wanted = [*overrides, *([(_experts_of(n_cpu_moe), "CPU")] if n_cpu_moe else [])]
    if not wanted:
        return None, None
    buffers = system.buffer_types()
    check_overrides(overrides, buffers)
    array = (_Override * (len(wanted) + 1))()
    for place, (pattern, name) in zip(array, wanted, strict=False):
        place.pattern, place.buft = pattern.encode(), buffers[name]
    return ctypes.cast(array, ctypes.c_void_p), array


def native_metadata(changes: Sequence[tuple[str, Scalar]]) -> Any:
    """Array of metadata overrides; an empty key ends it."""
    array = (llama_cpp.llama_model_kv_override * (len(changes) + 1))()
    for place, (key, value) in zip(array, changes, strict=False):
        # A bool is an int to Python.
        place.tag, name = next(kind for python, kind in _KINDS if isinstance(value, python))
        place.key = key.encode()
        setattr(place.value, name, value.encode() if isinstance(value, str) else value)
    return array


def _experts_of(n_layers: int) -> str:
    """One pattern of all expert tensors of the first layers: llama.cpp compiles each pattern again for every tensor."""
    if n_layers >= MAX_LAYERS:
        return _EXPERTS
    return rf"blk\.({'|'.join(map(str, range(n_layers)))}){_EXPERTS}"
