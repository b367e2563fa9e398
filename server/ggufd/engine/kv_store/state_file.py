"""State file: the KV state of a chat with its tokens, its owner, and the fingerprint of what computed it.

numpy's `.npz`, a zip archive whose checksums are verified as it is read. A file is written whole or not at all, and
only its owner may read it. The state goes back to llama.cpp, which checks its shape: trust the folder, and who puts
files there, as the servers of a cluster do.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ggufd.engine.kv_store.state_head import FORMAT, BadStateFile, read_head
from ggufd.engine.messages.requests import EVERYBODYS, CacheScope
from ggufd.llama.context.batch import State


def write(path: Path, kept: KeptState, fingerprint: str) -> int:
    """Write a state, all of it or nothing; the size of the file in bytes. Raises OSError."""
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(
                file,
                format=FORMAT,
                mark=fingerprint,
                namespace=kept.cache_scope.namespace,
                adapters=np.array(kept.cache_scope.adapters, np.float64),
                asker=kept.person,
                chat=kept.chat,
                tokens=np.array(kept.tokens, np.int32),
                state=kept.state,
            )
        os.replace(part, path)
    except OSError:
        with suppress(OSError):
            os.unlink(part)
        raise
    return path.stat().st_size


def read(path: Path) -> tuple[KeptState, str]:
    """Read a state and its fingerprint. Raises OSError and BadStateFile."""
    head = read_head(path)
    with _opened(path) as data:
        state = _row(data, "state", np.uint8)
        if not len(state):
            raise BadStateFile("it has no state")
    return KeptState(head.tokens, state, head.cache_scope, head.person, head.chat), head.fingerprint


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as data:
                yield data
        except Exception as error:
            # numpy, zipfile, zlib and struct have many words for a file that is broken.
            raise BadStateFile(str(error) or type(error).__name__) from None


def _row(data: Any, name: str, kind: type[np.generic]) -> Any:
    """A one-dimensional part of the file, shape `[n]`. Raises BadStateFile for any other."""
    part = data[name]
    if part.dtype != kind or part.ndim != 1:
        raise BadStateFile(f"its {name} are of shape {part.shape} and type {part.dtype}")
    return part


@dataclass(slots=True, eq=False)
class KeptState:
    """The state of a slot that held `tokens`, shape `[n_bytes]`; `person` had them computed, in one `cache_scope`.

    `chat` is what the last request called the conversation.
    """

    tokens: array[int]
    state: State
    cache_scope: CacheScope = EVERYBODYS
    person: str = ""
    chat: str = ""
    last_used: int = 0
