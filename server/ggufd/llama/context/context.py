"""Context for decoding: independent KV cache slots, their state, logits of a batch.

Every slot (`seq_id` 0 to n_slots - 1) has its own stream of `n_ctx` cells. A step computes the rows of one `Batch`;
rows of consecutive slots with equal token counts are computed together, so callers add rows by ascending slot.
No policy here: what to compute, keep or copy is decided above.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

from ggufd.errors import EngineFailure, ModelError
from ggufd.llama.context.batch import Logits, State
from ggufd.llama.context.native_context import FLASH_ATTENTION, NativeContext
from ggufd.llama.context.sampler import SamplerChain
from ggufd.llama.model.model import Model
from ggufd.llama.params import KV_UNIFIED, ChainParams, ContextParams

_MIN_OUTPUTS = 64
_CACHE_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "iq4_nl": 20,
    "bf16": 30,
}
_FLOAT_TYPES = ("f16", "bf16", "f32")
_QUANT_BLOCK = 32
_ROPE_SCALING = {"": -1, "none": 0, "linear": 1, "yarn": 2}


class Context(NativeContext):
    """A context of `n_slots` slots over `model`. Raises `ModelError` when it cannot be made."""

    def __init__(self, model: Model, params: ContextParams) -> None:
        _check_cache_types(model, params)
        self.params = params
        self.n_slots = params.n_slots
        self.n_outputs_max = max(params.n_slots, _MIN_OUTPUTS)
        name = f"a context of {params.n_slots} slots x {params.n_ctx} tokens"
        super().__init__(model, _native_params(params, self.n_outputs_max), name)
        self.n_ctx = int(llama_cpp.llama_n_ctx_seq(self.handle))
        self.n_vocab = model.vocabulary.n_vocab
        self.n_embd = model.n_embd_inp
        self.n_threads = int(llama_cpp.llama_n_threads(self.handle))
        self._n_threads_now: int | None = None
        self._logits: tuple[int, int, Logits] | None = None

    def set_threads(self, n_threads: int | None) -> None:
        """Set the compute threads of the next decodes; None is what the context was made with."""
        if n_threads != self._n_threads_now:
            self._n_threads_now = n_threads
            n_batch = n_threads or self.params.n_threads_batch or self.n_threads
            llama_cpp.llama_set_n_threads(self.handle, n_threads or self.n_threads, n_batch)

    @property
    def n_adapters(self) -> int:
        """Number of LoRA adapters."""
        return len(self.model.adapters)

    @property
    def can_trim(self) -> bool:
        """Whether any tail of a slot can be dropped: not with recurrent state or a windowed cache."""
        return not self.model.is_recurrent and (self.model.n_swa == 0 or self.params.swa_full)

    @property
    def copies_all(self) -> bool:
        """Whether a copy of a slot can be cut back as the slot itself can.

        Of layers with a sliding window llama.cpp writes no more than the window, however much the cache keeps.
        """
        return self.can_trim and self.model.n_swa == 0

    def decode(self) -> float:
        if self.batch.n_outputs > self.n_outputs_max:
            raise EngineFailure(f"{self.batch.n_outputs} outputs in one batch, at most {self.n_outputs_max} fit")
        return super().decode()

    def logits(self) -> Logits:
        """All outputs of the last `decode`, shape `[n_outputs, n_vocab]`: a view that the next decode overwrites."""
        address = ctypes.cast(llama_cpp.llama_get_logits(self.handle), ctypes.c_void_p).value
        n_outputs = self.batch.n_outputs
        if address is None:
            raise EngineFailure("llama.cpp has no logits")
        if self._logits is None or self._logits[:2] != (address, n_outputs):
            buffer = (ctypes.c_float * (n_outputs * self.n_vocab)).from_address(address)
            view = np.ctypeslib.as_array(buffer).reshape(n_outputs, self.n_vocab)
            self._logits = (address, n_outputs, view)
        return self._logits[2]

    # --- the memory of the slots -----------------------------------------------------------------------------------

    def trim(self, slot: int, n_keep: int) -> bool:
        """Drop all but the first `n_keep` tokens of a slot; False when this model's cache cannot (nothing is done)."""
        if n_keep and self._is_window_gone(slot, n_keep):
            return False
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, slot, n_keep, -1))

    def _is_window_gone(self, slot: int, n_keep: int) -> bool:
        """Whether a sliding window at `n_keep` reaches back to cells that are gone: llama.cpp does not check."""
        n_swa = self.model.n_swa
        if n_swa == 0:
            return False
        first = int(llama_cpp.llama_memory_seq_pos_min(self._memory, slot))
        return first > max(0, n_keep - n_swa + 1)

    @property
    def can_shift(self) -> bool:
        """Whether tokens of a slot can be moved to other positions.

        Not with a sliding window: llama.cpp puts what comes next into cells that have left it, which a later prompt
        may go back to, as soon as moving has made holes.
        """
        return self.copies_all and bool(llama_cpp.llama_memory_can_shift(self._memory))

    def move(self, slot: int, source: int, target: int, n: int) -> None:
        """Drop tokens `[target, source)` of a slot and move `[source, source + n)` to `target`; positions rotate.

        What stood behind them stays behind, at positions of its own: trim or move it before the next decode.
        """
        llama_cpp.llama_memory_seq_rm(self._memory, slot, target, source)
        llama_cpp.llama_memory_seq_add(self._memory, slot, source, source + n, target - source)

    def n_past(self, slot: int) -> int:
        """Tokens in a slot, by llama.cpp's own account."""
        return int(llama_cpp.llama_memory_seq_pos_max(self._memory, slot)) + 1

    def get_state(self, slot: int) -> State:
        """A copy of everything a slot holds, shape `[n_bytes]`."""
        size = llama_cpp.llama_state_seq_get_size(self.handle, slot)
        try:
            state = np.empty(size, np.uint8)
        except MemoryError:
            raise EngineFailure(f"there is no memory for the state of slot {slot} ({size >> 20} MiB)") from None
        written = llama_cpp.llama_state_seq_get_data(self.handle, _bytes_of(state), size, slot)
        if written != size:
            raise EngineFailure(f"the state of slot {slot} could not be read ({written} of {size} bytes)")
        return state

    def set_state(self, slot: int, state: State) -> None:
        """Replace what a slot holds by a copy that `get_state` made. Raises EngineFailure; the slot is empty then."""
        self.trim(slot, 0)
        read = llama_cpp.llama_state_seq_set_data(self.handle, _bytes_of(state), len(state), slot)
        if read == 0 or read != len(state):
            # Of a model with two caches the first is filled before the second one refuses.
            self.trim(slot, 0)
            raise EngineFailure(f"the state of slot {slot} could not be restored ({read} of {len(state)} bytes)")

    # --- what a sequence needs besides ------------------------------------------------------------------------------

    def new_chain(self, params: ChainParams, seed: int, prompt: Sequence[int], *, can_rewind: bool) -> SamplerChain:
        """Sampler chain over this context's logits; `prompt` is the history that penalties and DRY see."""
        chain = SamplerChain(self.model.vocabulary, self.handle, params, seed=seed, n_ctx=self.n_ctx, prompt=prompt)
        if can_rewind:
            chain.keep_history()
        return chain


def _check_cache_types(model: Model, params: ContextParams) -> None:
    """Check of quantised cache types: llama.cpp ends the process where a head's width is no multiple of their block."""
    for name in (params.cache_type_k, params.cache_type_v):
        if name not in _FLOAT_TYPES and model.head_width % _QUANT_BLOCK:
            raise ModelError(
                f"a cache of type {name} needs heads whose width is a multiple of {_QUANT_BLOCK}; those of this model "
                f"are {model.head_width} wide. Use one of {', '.join(_FLOAT_TYPES)}"
            )


def _bytes_of(state: State) -> Any:
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _native_params(params: ContextParams, n_outputs_max: int) -> Any:
    native = llama_cpp.llama_context_default_params()
    native.n_ctx = params.n_ctx * params.n_slots
    # Every slot must be able to decode in the same step.
    native.n_batch = max(params.n_batch, params.n_slots)
    native.n_ubatch = params.n_ubatch
    native.n_seq_max = params.n_slots
    native.n_outputs_max = n_outputs_max
    native.n_threads = params.n_threads
    native.n_threads_batch = params.n_threads_batch or params.n_threads
    native.flash_attn_type = FLASH_ATTENTION[params.flash_attn]
    native.type_k = _CACHE_TYPES[params.cache_type_k]
    native.type_v = _CACHE_TYPES[params.cache_type_v]
    native.offload_kqv = params.kv_offload
    native.swa_full = params.swa_full
    native.kv_unified = KV_UNIFIED
    native.no_perf = True
    native.rope_scaling_type = _ROPE_SCALING[params.rope_scaling]
    for name in (
        "rope_freq_base",
        "rope_freq_scale",
        "yarn_orig_ctx",
        "yarn_ext_factor",
        "yarn_attn_factor",
        "yarn_beta_slow",
        "yarn_beta_fast",
    ):
        setattr(native, name, getattr(params, name))
    return native
