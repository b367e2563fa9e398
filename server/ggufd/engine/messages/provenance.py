"""Provenance of a text: all that a deterministic answer depends on besides its request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

Scalar = str | int | float | bool


class FileDigest(NamedTuple):
    """A file by its name, its size in bytes, and the digest of its contents (`engine.kv_store.model_file`)."""

    name: str
    n_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """What computed a text. `libraries` is the digest of llama.cpp's and ggml's; `cpu` what they were compiled for.

    `adapters` are those that are loaded, of which each request has scales. `settings` are names and values.
    """

    model: tuple[FileDigest, ...]
    adapters: tuple[FileDigest, ...]
    control_vectors: tuple[FileDigest, ...]
    build: str
    libraries: str
    cpu: str
    devices: tuple[str, ...]
    settings: tuple[tuple[str, Scalar], ...]
