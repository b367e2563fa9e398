"""Image projector as libmtmd loads it: images become rows of floats, and the tokens around them.

Needs of the text model only its vocabulary. The file must have passed `llama.gguf.projector_file`: over some that are
damaged libmtmd ends the process. Decodes nothing: the rows are for whoever has the context.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llama_cpp
import numpy as np

from ggufd.errors import EngineFailure, ModelError
from ggufd.llama.model import system
from ggufd.llama.model.model import GgufModel
from ggufd.llama.params import ProjectorParams
from ggufd.llama.projector import binding
from ggufd.llama.projector.line_ends import Rows, repaired

Part = tuple[int, ...] | Rows
"""What stands in a prompt: tokens, or rows of an image or of a tile of it."""

_CHANNELS = 3
_NODES_A_PIECE = 32
"""So many operations are computed between two looks at whether to go on: tens of milliseconds on a CPU."""


_PROBES = ((64, 64), (2048, 1536))
"""Sizes of an image that is one piece, and of one that some projectors cut into tiles."""


class EncodingStopped(Exception):
    """End of an encoding that was told not to go on."""


class Projector:
    """Projector of images for the text model whose vocabulary is `model`. Raises ModelError; `close` frees it.

    `may_go_on` is asked again and again while an image is encoded, on the encoding thread.
    """

    def __init__(self, model: GgufModel, params: ProjectorParams, may_go_on: Callable[[], bool] = lambda: True) -> None:
        self._mtmd = binding.load()
        self._path = params.path
        self._n_embd = params.n_embd
        self._may_go_on = may_go_on
        self._n_nodes = 0
        self._was_stopped = False
        # Referenced as long as the projector lives: C calls it.
        self._on_node = llama_cpp.ggml_backend_sched_eval_callback(self._look_up)
        self.handle = self._mtmd.mtmd_init_from_file(os.fsencode(params.path), model.handle, self._native(params))
        if not self.handle:
            raise ModelError(f"llama.cpp could not load the projector {params.path}")
        try:
            self._check_fit(params.path)
        except ModelError:
            self.close()
            raise

    def close(self) -> None:
        if self.handle:
            self._mtmd.mtmd_free(self.handle)
            self.handle = None

    def layout(self, width: int, height: int) -> tuple[tuple[int, ...] | int, ...]:
        """Parts of any image of this size: tokens, and numbers of rows. May run beside `encode`, on another thread.

        Raises EngineFailure where the projector takes no such size.
        """
        with self._chunks(width, height, None) as chunks:
            return tuple(self._tokens(one) if self._is_text(one) else self._n_rows(one) for one in chunks)

    def encode(self, width: int, height: int, rgb: bytes) -> tuple[Part, ...]:
        """Parts of an image: its pixels row by row, three bytes each.

        Raises EngineFailure where it cannot be encoded, EncodingStopped when it may not go on.
        """
        if len(rgb) != _CHANNELS * width * height:
            raise EngineFailure(f"an image of {width} x {height} pixels came with {len(rgb)} bytes")
        with self._chunks(width, height, rgb) as chunks:
            return tuple(self._tokens(one) if self._is_text(one) else self._rows(one) for one in chunks)

    # --- loading ------------------------------------------------------------------------------------------------------

    def _native(self, params: ProjectorParams) -> Any:
        native = self._mtmd.mtmd_context_params_default()
        native.use_gpu = params.uses_gpu
        native.print_timings = False
        native.n_threads = params.n_threads
        native.image_min_tokens = params.min_tokens or -1
        native.image_max_tokens = params.max_tokens or -1
        native.cb_eval = self._on_node
        if params.uses_gpu and params.devices:
            native.device = system.device_handles(params.devices)[0]
        return native

    def _check_fit(self, path: str) -> None:
        """Check what the header does not tell: positions that depend on the text model, and tokens that it lacks."""
        if self._mtmd.mtmd_decode_use_mrope(self.handle) or self._mtmd.mtmd_decode_use_non_causal(self.handle, None):
            raise ModelError(f"{path}: with this model its rows are not decoded one after another, which is not served")
        try:
            parts = [part for size in _PROBES for part in self.layout(*size)]
        except EngineFailure as error:
            raise ModelError(f"{path}: cannot be used: {error.message}") from None
        # libmtmd gives -1 for a token that is not in the vocabulary.
        if any(token < 0 for part in parts if isinstance(part, tuple) for token in part):
            raise ModelError(
                f"{path}: puts tokens around images that this model's vocabulary has not; it belongs to another model"
            )

    # --- an image -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _chunks(self, width: int, height: int, rgb: bytes | None) -> Iterator[list[Any]]:
        """Pieces of an image as libmtmd cuts it; without pixels they have their sizes alone."""
        mtmd = self._mtmd
        pixels = None if rgb is None else (ctypes.c_uint8 * len(rgb)).from_buffer_copy(rgb)
        bitmap = mtmd.mtmd_bitmap_init(width, height, pixels)
        chunks = mtmd.mtmd_input_chunks_init()
        try:
            if not bitmap or not chunks:
                raise EngineFailure("the image needs more memory than there is")
            part = mtmd.mtmd_input_part(None, bitmap)
            parts = (ctypes.POINTER(mtmd.mtmd_input_part) * 1)(ctypes.pointer(part))
            if mtmd.mtmd_tokenize_from_parts(self.handle, chunks, parts, 1, False) != 0:
                raise EngineFailure(f"the projector takes no image of {width} x {height} pixels")
            yield [mtmd.mtmd_input_chunks_get(chunks, i) for i in range(mtmd.mtmd_input_chunks_size(chunks))]
        finally:
            if chunks:
                mtmd.mtmd_input_chunks_free(chunks)
            if bitmap:
                mtmd.mtmd_bitmap_free(bitmap)

    def _is_text(self, chunk: Any) -> bool:
        return bool(self._mtmd.mtmd_input_chunk_get_type(chunk) == self._mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT)

    def _n_rows(self, chunk: Any) -> int:
        return int(self._mtmd.mtmd_input_chunk_get_n_tokens(chunk))

    def _tokens(self, chunk: Any) -> tuple[int, ...]:
        n_tokens = ctypes.c_size_t(0)
        tokens = self._mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(n_tokens))
        return tuple(int(tokens[i]) for i in range(n_tokens.value))

    def _rows(self, chunk: Any) -> Rows:
        self._was_stopped = False
        code = self._mtmd.mtmd_encode_chunk(self.handle, chunk)
        if self._was_stopped:
            raise EncodingStopped
        output = self._mtmd.mtmd_get_output_embd(self.handle)
        if code != 0 or not output:
            raise EngineFailure("the projector could not encode this image")
        n_rows = self._n_rows(chunk)
        rows = np.ctypeslib.as_array(output, (n_rows * self._n_embd,)).reshape(n_rows, self._n_embd).copy()
        rows = repaired(rows, self._path)
        if not np.isfinite(rows).all():
            raise EngineFailure("the projector made rows that are no numbers of this image")
        return rows

    def _look_up(self, _node: Any, is_question: bool, _user_data: Any) -> bool:
        """Called before and after operations: True asks for a pause after this one, then False ends the computation."""
        if is_question:
            self._n_nodes += 1
            return self._was_stopped or self._n_nodes % _NODES_A_PIECE == 0
        self._was_stopped = self._was_stopped or not self._may_go_on()
        return not self._was_stopped
