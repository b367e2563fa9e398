"""Fingerprint of a KV state's origin: equal exactly where a saved state may be restored."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from ggufd.engine.kv_store.model_file import contents, model_contents
from ggufd.llama.model import system
from ggufd.llama.params import KV_UNIFIED, ContextParams, ModelParams


def fingerprint(model: ModelParams, context: ContextParams) -> str:
    """Digest, 32 hex digits, of the files, the build, and all settings that change a state or its layout.

    Of the context that is all but how much is computed at once, and by how many threads. The number of slots counts: a
    state names its streams. So does flash attention, as it was decided: without it the V cache lies transposed.
    Raises OSError.
    """
    digest = hashlib.blake2b(digest_size=16)
    beside = [*model.loras, *(vector.path for vector in model.control_vectors)]
    files = [model_contents(model.path), *(contents(Path(path).expanduser()) for path in beside)]
    layout = dataclasses.replace(context, n_batch=0, n_ubatch=0, n_threads=0, n_threads_batch=0)
    scales = [vector.scale for vector in model.control_vectors]
    build = system.build(), contents(system.library())
    parts = (files, layout, KV_UNIFIED, model.metadata, scales, model.control_layers, build)
    digest.update(repr(parts).encode())
    return digest.hexdigest()
