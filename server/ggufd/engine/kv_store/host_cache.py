"""Host RAM cache: KV states that were evicted from slots.

LRU within a byte budget. Entries are compared by tokens, never by hashes. Knows no context: states come and go as
bytes, and fit only the context that made them.
"""

from __future__ import annotations

import time
from array import array
from typing import TYPE_CHECKING

from ggufd.engine.backend.tokens import common_prefix
from ggufd.engine.kv_store.state_file import KeptState
from ggufd.engine.messages.requests import CacheScope

if TYPE_CHECKING:
    from ggufd.engine.kv_store.disk_cache import DiskCache, Fetch


class HostCache:
    """LRU cache of at most `max_bytes` of states, 0 for none. What is evicted goes to `disk`.

    With `only_whole` a state cannot be cut, so it matches only a prompt that begins with all of its tokens; prefixes of
    an entry are entries of their own.
    """

    def __init__(self, max_bytes: int, disk: DiskCache | None = None, *, only_whole: bool = False) -> None:
        self.max_bytes = max_bytes
        self._disk = disk if max_bytes else None
        self._only_whole = only_whole
        self._entries: list[KeptState] = []
        self._time = 0
        self.n_evicted = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def n_bytes(self) -> int:
        return sum(len(entry.state) for entry in self._entries)

    def match(self, tokens: array[int], cache_scope: CacheScope) -> tuple[KeptState, int] | None:
        """The entry of a cache scope with the longest common prefix with `tokens`, and its length; None without one.

        The last of `tokens` is always left to be computed.
        """
        best: tuple[KeptState, int] | None = None
        for entry in self._of(cache_scope):
            n = common_prefix(entry.tokens, tokens)
            is_usable = not self._only_whole or n == len(entry.tokens) < len(tokens)
            if is_usable and n > (best[1] if best else 0):
                best = (entry, n)
        return best

    def holds(self, tokens: array[int], cache_scope: CacheScope) -> bool:
        """Whether an entry of a cache scope matches every prompt that one of `tokens` would match."""
        return any(
            common_prefix(entry.tokens, tokens) == len(tokens) >= (len(entry.tokens) if self._only_whole else 0)
            for entry in self._of(cache_scope)
        )

    def longest_common(self, tokens: array[int], cache_scope: CacheScope) -> int:
        """Length of the longest common prefix with any entry of a cache scope, whether it can be reused or not."""
        return max((common_prefix(entry.tokens, tokens) for entry in self._of(cache_scope)), default=0)

    def fetch(self, tokens: array[int], cache_scope: CacheScope, n_known: int) -> Fetch | None:
        """Begin to read a longer prefix from disk than host RAM has, or a slot (`n_known`); None without one."""
        if self._disk is None:
            return None
        found = self.match(tokens, cache_scope)
        return self._disk.fetch(tokens, cache_scope, max(n_known, found[1] if found else 0))

    @property
    def disk(self) -> DiskCache | None:
        """Where evicted states go."""
        return self._disk

    def by_use(self) -> list[KeptState]:
        """All states, the most recently used first."""
        return sorted(self._entries, key=lambda entry: -entry.last_used)

    def close(self, timeout_s: float) -> None:
        """Write all entries to disk, the most recently used first, as far as the time allows."""
        if self._disk is None:
            return
        deadline_s = time.monotonic() + timeout_s
        for entry in self.by_use():
            self._disk.flush(max(0.0, deadline_s - time.monotonic()), n_left=1)
            if time.monotonic() < deadline_s:
                self._disk.store(entry)
        self._disk.flush(max(0.0, deadline_s - time.monotonic()))
        self._disk.close()

    @property
    def has_disk(self) -> bool:
        return self._disk is not None

    def insert(self, kept: KeptState) -> None:
        """Add a state, in place of its prefixes; evict the least recently used ones to stay in the budget."""
        if len(kept.state) > self.max_bytes:
            return
        for entry in self._of(kept.cache_scope):
            is_beginning = common_prefix(entry.tokens, kept.tokens) == len(entry.tokens)
            if is_beginning and (not self._only_whole or len(entry.tokens) == len(kept.tokens)):
                self._entries.remove(entry)
        while self.n_bytes + len(kept.state) > self.max_bytes:
            oldest = min(self._entries, key=lambda entry: entry.last_used)
            self._entries.remove(oldest)
            self.n_evicted += 1
            if self._disk is not None:
                self._disk.store(oldest)
        self._entries.append(kept)
        self.touch(kept)

    def drop(self, kept: KeptState) -> None:
        """Forget a state that could not be restored, here and on disk."""
        self._entries = [entry for entry in self._entries if entry.state is not kept.state]
        if self._disk is not None:
            self._disk.drop(kept)

    def drop_like(self, tokens: array[int], cache_scope: CacheScope, n_least: int) -> None:
        """Forget every state of a cache scope that has at least so many of the first `tokens`, here and on disk."""
        for entry in [one for one in self._of(cache_scope) if common_prefix(one.tokens, tokens) >= n_least]:
            self.drop(entry)

    @property
    def n_disk_bytes(self) -> int:
        """Bytes of all files on disk."""
        return 0 if self._disk is None else self._disk.n_bytes

    @property
    def max_disk_bytes(self) -> int:
        """Limit of the files on disk; 0 where none are kept."""
        return 0 if self._disk is None else self._disk.max_bytes

    @property
    def n_bad_files(self) -> int:
        """Files on disk that were broken."""
        return 0 if self._disk is None else self._disk.n_bad

    def _of(self, cache_scope: CacheScope) -> list[KeptState]:
        return [entry for entry in self._entries if entry.cache_scope == cache_scope]

    def touch(self, entry: KeptState) -> None:
        """Make an entry the most recently used."""
        self._time += 1
        entry.last_used = self._time
