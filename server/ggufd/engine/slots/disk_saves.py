"""States that are written to disk ahead of need: before the engine ends, so that another one may have them."""

from __future__ import annotations

from array import array
from pathlib import Path

from ggufd.engine.kv_store.disk_cache import DiskCache, DiskEntry
from ggufd.engine.kv_store.host_cache import HostCache
from ggufd.engine.kv_store.state_file import KeptState
from ggufd.engine.kv_store.state_head import digest_of
from ggufd.engine.messages.requests import AdoptChat, CacheScope
from ggufd.engine.slots.cells import KVCells
from ggufd.engine.slots.slot_table import Slot, SlotTable
from ggufd.errors import EngineFailure


class DiskSaves:
    """Writes what idle slots of `table` and `host` hold to its disk. Running slots are left alone."""

    def __init__(self, table: SlotTable, cells: KVCells, host: HostCache) -> None:
        self._table = table
        self._cells = cells
        self._host = host
        self._begun: set[str] = set()
        """States by digest that were begun since nothing was left: what a full disk dropped is not written for ever."""

    def begin(self) -> int:
        """Begin to write states that have no file, the most recently used first; how many have none yet.

        As many as the disk takes at once, and of slots one, whose reading keeps requests waiting: to be called again
        until none is left.
        """
        disk = self._host.disk
        if disk is None:
            return 0
        slots, states = self._slots_without_file(disk), self._states_without_file(disk)
        left = [*slots, *(one for one in states if one not in slots)]
        for digest in left[: 1 if slots else len(left)]:
            if disk.has_room:
                self._begun.add(digest)
                if (kept := self._read(slots[digest]) if digest in slots else states[digest]) is not None:
                    disk.store(kept)
        n_left = sum(one not in self._begun for one in left) + disk.n_writing
        if n_left == 0:
            self._begun.clear()
        return n_left

    def adopt(self, chat: AdoptChat) -> None:
        """Take up a file that was put into the folder, where a disk is."""
        if self._host.disk is not None:
            entry = DiskEntry(Path(chat.path), chat.n_bytes, chat.used_s, chat.tokens, chat.cache_scope)
            self._host.disk.adopt(entry)

    def _slots_without_file(self, disk: DiskCache) -> dict[str, Slot]:
        """Idle slots by digest of their content, the most recently used first."""
        slots = [slot for slot in self._table.idle if slot.is_readable and not slot.is_background]
        found = {
            _digest(slot.tokens, slot.cache_scope): slot
            for slot in sorted(slots, key=lambda slot: -slot.last_used)
            if disk.lacks(slot.tokens, slot.cache_scope)
        }
        return {digest: slot for digest, slot in found.items() if digest not in self._begun}

    def _states_without_file(self, disk: DiskCache) -> dict[str, KeptState]:
        """States of host RAM by digest, the most recently used first."""
        lacking = [kept for kept in self._host.by_use() if disk.lacks(kept.tokens, kept.cache_scope)]
        found = {_digest(kept.tokens, kept.cache_scope): kept for kept in lacking}
        return {digest: kept for digest, kept in found.items() if digest not in self._begun}

    def _read(self, slot: Slot) -> KeptState | None:
        """The state of a slot; None of one that cannot be read, whose content is dropped."""
        try:
            state = self._cells.read(slot)
        except EngineFailure as error:
            self._cells.lose(slot, error)
            return None
        return KeptState(slot.tokens[:], state, slot.cache_scope, slot.person, slot.chat)


def _digest(tokens: array[int], cache_scope: CacheScope) -> str:
    return digest_of("", tokens, cache_scope)
