"""Head of a state file: what its state is of. Read without numpy, so that the HTTP side may look at one too.

A state file is numpy's `.npz`: a zip archive, not packed, with one array in each member, behind a short description.
"""

from __future__ import annotations

import ast
import hashlib
import zipfile
from array import array
from pathlib import Path
from typing import NamedTuple

from ggufd.engine.messages.requests import CacheScope

SUFFIX = ".npz"

FORMAT = 1
"""Of this format the part that names the person is `asker`, the fingerprint `mark`; the earliest have no `chat`."""

_MAGIC = b"\x93NUMPY"
_MAX_BYTES = 1 << 28
"""Of a part of the head: tokens of any context fit."""


class BadStateFile(Exception):
    """A file that is broken, or no state file at all."""


class Head(NamedTuple):
    """The parts of a file before its state."""

    tokens: array[int]
    cache_scope: CacheScope
    person: str
    chat: str
    fingerprint: str

    @property
    def digest(self) -> str:
        """Digest of what the state is of, 32 hex digits: the same for the same, and tells nothing of it."""
        return digest_of(self.fingerprint, self.tokens, self.cache_scope)


def digest_of(fingerprint: str, tokens: array[int], cache_scope: CacheScope) -> str:
    """Digest of what a state is of: who computed it, in which scope, of which tokens."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((fingerprint, (cache_scope.namespace, cache_scope.adapters))).encode())
    digest.update(tokens.tobytes())
    return digest.hexdigest()


def read_head(path: Path) -> Head:
    """Read a file without its state, which is most of it. Raises OSError and BadStateFile."""
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _head(archive)
        except BadStateFile:
            raise
        except Exception as error:
            # zipfile, zlib and ast have many words for a file that is broken.
            raise BadStateFile(str(error) or type(error).__name__) from None


def _head(archive: zipfile.ZipFile) -> Head:
    if int.from_bytes(_part(archive, "format", "<i8", 0), "little") != FORMAT:
        raise BadStateFile("it was written by another version")
    tokens, adapters = array("i", _part(archive, "tokens", "<i4", 1)), array("d", _part(archive, "adapters", "<f8", 1))
    if not len(tokens):
        raise BadStateFile("it has no tokens")
    names = {one.filename for one in archive.infolist()}
    chat = _text(archive, "chat") if "chat.npy" in names else ""
    cache_scope = CacheScope(_text(archive, "namespace"), tuple(adapters))
    return Head(tokens, cache_scope, _text(archive, "asker"), chat, _text(archive, "mark"))


def _text(archive: zipfile.ZipFile, name: str) -> str:
    return _part(archive, name, "<U", 0).decode("utf-32-le").rstrip("\0")


def _part(archive: zipfile.ZipFile, name: str, kind: str, n_dimensions: int) -> bytes:
    """Bytes of an array, whose type begins with `kind`. Raises BadStateFile for any other."""
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED or member.file_size > _MAX_BYTES:
        raise BadStateFile(f"its {name} are packed, or too many")
    raw = archive.read(member)
    if raw[: len(_MAGIC)] != _MAGIC:
        raise BadStateFile(f"its {name} are no array")
    n_size = 2 if raw[len(_MAGIC)] == 1 else 4
    start = len(_MAGIC) + 2 + n_size
    end = start + int.from_bytes(raw[start - n_size : start], "little")
    about = ast.literal_eval(raw[start:end].decode("latin-1"))
    if not about["descr"].startswith(kind) or len(about["shape"]) != n_dimensions:
        raise BadStateFile(f"its {name} are of shape {about['shape']} and type {about['descr']}")
    return raw[end:]
