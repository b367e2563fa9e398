"""A name for a model with its settings: the same one where what was computed before is still good."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from server.llama import gguf, system
from server.llama.params import ContextParams, ModelParams

_HEAD_BYTES = 1 << 20
_PIECES = 64
_PIECE_BYTES = 4096


def fingerprint(model: ModelParams, context: ContextParams) -> str:
    """32 hex digits over the model's files, the build, and all settings that change what is computed or how it lies.

    Files are told apart by their size, their beginning and pieces of their weights: reading all of a large one would
    take longer than computing a chat again.
    """
    digest = hashlib.blake2b(digest_size=16)
    vectors = [vector.path for vector in model.control_vectors]
    for path in [*gguf.parts_of(Path(model.path)), *map(Path, [*model.loras, *vectors])]:
        _add_file(digest, path.expanduser())
    neutral = dataclasses.replace(context, n_batch=0, n_ubatch=0, n_slots=0, n_threads=0, n_threads_batch=0)
    scales = [vector.scale for vector in model.control_vectors]
    digest.update(repr((neutral, model.metadata, scales, model.control_layers, system.build())).encode())
    return digest.hexdigest()


def _add_file(digest: hashlib.blake2b, path: Path) -> None:
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_HEAD_BYTES))
        for piece in range(_PIECES):
            file.seek(size * piece // _PIECES)
            digest.update(file.read(_PIECE_BYTES))
