"""Provenance of what an engine computes: digests of its files and libraries, and the settings that change a text."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from ggufd.engine.kv_store.model_file import contents
from ggufd.engine.messages.provenance import FileDigest, Provenance, Scalar
from ggufd.llama.gguf import gguf_header
from ggufd.llama.model import system
from ggufd.llama.params import ContextParams, ModelParams

_LIBRARIES = (".so", ".dylib", ".dll")

_NOT_FELT = frozenset(("n_slots", "n_batch"))
"""Parameters that change no text of a request that is computed by itself, in chunks that fit into a batch."""


def files_of(model: ModelParams) -> Provenance:
    """Provenance without what is only known of a loaded model. Reads files; raises OSError."""
    return Provenance(
        model=tuple(_digest(path) for path in gguf_header.parts_of(Path(model.path).expanduser())),
        adapters=tuple(_digest(Path(path).expanduser()) for path in model.loras),
        control_vectors=tuple(_digest(Path(vector.path).expanduser()) for vector in model.control_vectors),
        build=system.build(),
        libraries=_libraries(system.library()),
        cpu=system.info(),
        devices=(),
        settings=(),
    )


def completed(files: Provenance, model: ModelParams, context: ContextParams, *, n_gpu_layers: int) -> Provenance:
    """The provenance of what is computed in a context, of which every "auto" is decided."""
    own = {field.name: getattr(context, field.name) for field in dataclasses.fields(context)}
    settings: dict[str, Scalar] = {name: value for name, value in own.items() if name not in _NOT_FELT}
    settings["n_threads_batch"] = context.n_threads_batch or context.n_threads
    settings["n_gpu_layers"] = n_gpu_layers
    settings.update((f"override.{key}", value) for key, value in model.metadata)
    settings.update((f"control_scale.{i}", vector.scale) for i, vector in enumerate(model.control_vectors))
    if model.control_layers is not None:
        settings["control_layers"] = "{}-{}".format(*model.control_layers)
    if n_gpu_layers:
        placed = (model.split_mode, model.main_gpu, model.tensor_split, model.n_cpu_moe, model.overrides)
        settings["placement"] = repr(placed)
    devices = system.gpu_devices() if n_gpu_layers else ()
    return dataclasses.replace(files, devices=devices, settings=tuple(settings.items()))


def _digest(path: Path) -> FileDigest:
    return FileDigest(path.name, path.stat().st_size, contents(path))


def _libraries(library: Path) -> str:
    """Digest, 32 hex digits, of the libraries that lie beside llama.cpp's: the kernels are in ggml's."""
    beside = {one.resolve() for one in library.parent.iterdir() if any(end in one.name for end in _LIBRARIES)}
    named = sorted((one.name, contents(one)) for one in beside)
    return hashlib.blake2b(repr(named).encode(), digest_size=16).hexdigest()
