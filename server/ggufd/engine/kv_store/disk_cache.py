"""Disk cache: KV states that were evicted from host RAM, in files; they survive a restart.

LRU within a byte budget. A file (`state_file`) names the model and settings that made it (`fingerprint`) and holds its
tokens, which are compared to match it. Reading and writing happen on a thread: a step never waits for a disk. An error
costs no more than the file.
"""

from __future__ import annotations

import logging
import os
import time
from array import array
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ggufd.engine.backend.tokens import common_prefix
from ggufd.engine.kv_store import state_file
from ggufd.engine.kv_store.disk_folder import DiskFolder
from ggufd.engine.kv_store.state_file import KeptState
from ggufd.engine.kv_store.state_head import SUFFIX, BadStateFile, digest_of, read_head
from ggufd.engine.messages.config import DiskPlace
from ggufd.engine.messages.requests import CacheScope

logger = logging.getLogger(__name__)

MIN_TOKENS = 256
"""A shorter state is not worth a file: computing it again is quicker."""

_MAX_WRITING = 4
"""So many states may wait to be written: they hold RAM meanwhile."""


@dataclass(slots=True, eq=False)
class DiskEntry:
    """One file of the cache, with the state of `tokens`; `used_s` is its last use, as the file system tells it."""

    path: Path
    n_bytes: int
    used_s: float
    tokens: array[int]
    cache_scope: CacheScope


class Fetch:
    """A read from disk that is under way."""

    def __init__(self, future: Future[KeptState | None]) -> None:
        self._future = future

    @property
    def is_ready(self) -> bool:
        return self._future.done()

    @property
    def kept(self) -> KeptState | None:
        """The state that was read; None when it could not be. Only when it is ready."""
        return self._future.result()


def open_disk_cache(place: DiskPlace | None, *, only_whole: bool = False) -> DiskCache | None:
    """The disk cache that the settings ask for; None, and a warning, where its folder cannot be used."""
    if place is None:
        return None
    try:
        claim = DiskFolder(Path(place.folder))
        return DiskCache(claim.path, place.max_bytes, place.fingerprint, only_whole=only_whole, claim=claim)
    except OSError as error:
        logger.warning("chats are not kept on disk: %s", error)
        return None


class DiskCache:
    """LRU cache of at most `max_bytes` of files in `folder`, for one engine at a time (`claim`). Raises OSError.

    With `only_whole` a state matches only a prompt that begins with all of its tokens, as in `HostCache`.
    `n_bad` counts files that were broken.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        fingerprint: str,
        *,
        only_whole: bool = False,
        claim: DiskFolder | None = None,
    ) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self._claim = claim
        self.max_bytes = max_bytes
        self._only_whole = only_whole
        self._fingerprint = fingerprint
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="disk-cache")
        self._writing: dict[Future[DiskEntry | None], KeptState] = {}
        self._has_failed = False
        self.n_bad = 0
        self._entries = self._scan()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def place(self) -> DiskPlace:
        """Where it is, and for what."""
        return DiskPlace(str(self.folder), self.max_bytes, self._fingerprint)

    @property
    def n_bytes(self) -> int:
        return sum(entry.n_bytes for entry in self._entries)

    # --- reading ------------------------------------------------------------------------------------------------------

    def fetch(self, tokens: array[int], cache_scope: CacheScope, n_known: int) -> Fetch | None:
        """Begin to read the file with the longest common prefix with `tokens`, if that is worth it.

        `n_known` tokens need no disk. The last of `tokens` is always left to be computed.
        """
        self._collect()
        best, n_best = None, n_known + MIN_TOKENS - 1
        for entry in self._entries:
            n = common_prefix(entry.tokens, tokens) if entry.cache_scope == cache_scope else 0
            is_usable = not self._only_whole or n == len(entry.tokens) < len(tokens)
            if is_usable and n > n_best:
                best, n_best = entry, n
        return None if best is None else Fetch(self._thread.submit(self._read, best))

    def _read(self, entry: DiskEntry) -> KeptState | None:
        try:
            kept, _ = state_file.read(entry.path)
        except (OSError, BadStateFile) as error:
            logger.warning("%s could not be read, so this chat is computed again: %s", entry.path.name, error)
            self.n_bad += 1
            _remove(entry.path)
            entry.tokens, entry.n_bytes = array("i"), 0
            return None
        with suppress(OSError):
            os.utime(entry.path)
            entry.used_s = entry.path.stat().st_mtime
        return kept

    def _scan(self) -> list[DiskEntry]:
        """Files of earlier runs. Those of another model or other settings match nothing until they are evicted."""
        entries = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            try:
                stat, head = path.stat(), read_head(path)
            except (OSError, BadStateFile) as error:
                logger.warning("%s is no saved chat and is deleted: %s", path.name, error)
                self.n_bad += 1
                _remove(path)
                continue
            tokens = head.tokens if head.fingerprint == self._fingerprint else array("i")
            entries.append(DiskEntry(path, stat.st_size, stat.st_mtime, tokens, head.cache_scope))
        for leftover in self.folder.glob(f".*{SUFFIX}.*"):
            _remove(leftover)
        return entries

    # --- writing ------------------------------------------------------------------------------------------------------

    def store(self, kept: KeptState) -> bool:
        """Begin to write a state, unless a file has it or too many wait to be written; whether it will be there."""
        self._collect()
        if not _is_worth_it(kept.tokens, kept.cache_scope) or len(kept.state) > self.max_bytes:
            return False
        if any(self._holds(entry, kept.tokens, kept.cache_scope) for entry in self._entries):
            return True
        if not self.has_room:
            return False
        self._writing[self._thread.submit(self._write, kept)] = kept
        return True

    @property
    def has_room(self) -> bool:
        """Whether one more state may wait to be written."""
        return len(self._writing) < _MAX_WRITING

    @property
    def n_writing(self) -> int:
        """States that wait to be written, or are being written."""
        self._collect()
        return len(self._writing)

    def lacks(self, tokens: array[int], cache_scope: CacheScope) -> bool:
        """Whether the state of these tokens is worth a file, and none has it or is about to."""
        self._collect()
        if not _is_worth_it(tokens, cache_scope):
            return False
        written = (kept for kept in self._writing.values() if kept.cache_scope == cache_scope)
        if any(kept.tokens == tokens for kept in written):
            return False
        return not any(self._holds(entry, tokens, cache_scope) for entry in self._entries)

    def adopt(self, entry: DiskEntry) -> None:
        """Take up a file that was put into the folder, as if it had been written here."""
        self._collect()
        self._add(entry)
        self._evict()

    def flush(self, timeout_s: float, n_left: int = 0) -> None:
        """Wait until at most `n_left` states are still to be written, that long at most."""
        deadline_s = time.monotonic() + timeout_s
        while len(self._writing) > n_left and (left_s := deadline_s - time.monotonic()) > 0:
            wait(self._writing, left_s, FIRST_COMPLETED)
            self._collect()

    def drop(self, kept: KeptState) -> None:
        """Delete the file of a state that could not be restored, if there is one."""
        for entry in [
            one for one in self._entries if one.cache_scope == kept.cache_scope and one.tokens == kept.tokens
        ]:
            self._delete(entry)

    def close(self) -> None:
        """Stop the thread: no more is read or written."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._claim is not None:
            self._claim.release()

    def _collect(self) -> None:
        """Add files that were written, in place of those that they continue; evict to stay in the budget."""
        for future in [future for future in self._writing if future.done()]:
            del self._writing[future]
            entry = future.result()
            if entry is not None:
                self._add(entry)
        self._evict()

    def _add(self, entry: DiskEntry) -> None:
        self._entries = [old for old in self._entries if old.path != entry.path]
        for old in [old for old in self._entries if self._is_continued(old, entry)]:
            self._delete(old)
        self._entries.append(entry)

    def _evict(self) -> None:
        while self.n_bytes > self.max_bytes:
            self._delete(min(self._entries, key=lambda entry: entry.used_s))

    def _holds(self, entry: DiskEntry, tokens: array[int], cache_scope: CacheScope) -> bool:
        """Whether the file matches every prompt that a state of `tokens` would match."""
        n_least = len(entry.tokens) if self._only_whole else 0
        n_common = common_prefix(entry.tokens, tokens) if entry.cache_scope == cache_scope else 0
        return n_common == len(tokens) >= n_least

    def _is_continued(self, old: DiskEntry, new: DiskEntry) -> bool:
        """Whether `old` is a prefix of `new`, which matches every prompt that `old` would match."""
        if self._only_whole or old.cache_scope != new.cache_scope:
            return False
        return 0 < len(old.tokens) == common_prefix(old.tokens, new.tokens)

    def _delete(self, entry: DiskEntry) -> None:
        self._entries.remove(entry)
        _remove(entry.path)

    def _write(self, kept: KeptState) -> DiskEntry | None:
        name = digest_of(self._fingerprint, kept.tokens, kept.cache_scope)
        path = self.folder / f"{name}{SUFFIX}"
        try:
            n_bytes = state_file.write(path, kept, self._fingerprint)
            used_s = path.stat().st_mtime
        except OSError as error:
            if not self._has_failed:
                logger.warning("chats cannot be kept on disk: %s", error)
            self._has_failed = True
            return None
        return DiskEntry(path, n_bytes, used_s, kept.tokens[:], kept.cache_scope)


def _is_worth_it(tokens: array[int], cache_scope: CacheScope) -> bool:
    """Whether a state may have a file: of a deterministic one it names neither its threads nor its chunks."""
    return len(tokens) >= MIN_TOKENS and not cache_scope.is_deterministic


def _remove(path: Path) -> None:
    """Delete a file; one that cannot be deleted is found at the next start."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
