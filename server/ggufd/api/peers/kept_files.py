"""Chats in the folder of the disk cache, as another server of the cluster sees them. Blocks: for a thread."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ggufd.engine.kv_store.state_head import SUFFIX, BadStateFile, read_head
from ggufd.engine.messages.config import DiskPlace

_DIGEST = re.compile("[0-9a-f]{32}")
_PIECE_BYTES = 1 << 20


class KeptFile(NamedTuple):
    """One chat on disk. `chat` is the conversation as the cluster named it, "" where it did not."""

    digest: str
    n_bytes: int
    n_tokens: int
    used_s: float
    chat: str


class OpenChat(NamedTuple):
    """A file that is open, and so stays whole when the cache drops it; with the SHA-256 of its bytes."""

    file: BinaryIO
    n_bytes: int
    used_s: float
    sha256: bytes


def is_digest(text: str) -> bool:
    """Whether a text is one that names a chat, and so a file of the folder and of no other."""
    return _DIGEST.fullmatch(text) is not None


def path_of(place: DiskPlace, digest: str) -> Path:
    """Where the file of a chat is, or would be."""
    return Path(place.folder) / f"{digest}{SUFFIX}"


def kept_files(place: DiskPlace) -> list[KeptFile]:
    """Chats of the model and settings that are served, the most recently used first."""
    found = []
    for path in Path(place.folder).glob(f"[0-9a-f]*{SUFFIX}"):
        # What is broken, or has just gone, is the cache's concern.
        with suppress(OSError, BadStateFile):
            stat, head = path.stat(), read_head(path)
            if head.fingerprint == place.fingerprint and is_digest(path.stem):
                found.append(KeptFile(path.stem, stat.st_size, len(head.tokens), stat.st_mtime, head.chat))
    return sorted(found, key=lambda one: -one.used_s)


def open_chat(place: DiskPlace, digest: str) -> OpenChat:
    """Open the file of a chat, and read it once for its digest. Raises OSError."""
    path = path_of(place, digest)
    file = path.open("rb")
    try:
        n_bytes, sha256 = 0, hashlib.sha256()
        while piece := file.read(_PIECE_BYTES):
            n_bytes += len(piece)
            sha256.update(piece)
        file.seek(0)
        return OpenChat(file, n_bytes, path.stat().st_mtime, sha256.digest())
    except OSError:
        file.close()
        raise
