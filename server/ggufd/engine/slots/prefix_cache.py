"""Prefix cache: slots keep what they computed, and a new prompt reuses its longest common prefix.

Its parts, each over the same slots; callers get the ones that they need:

    table        who runs where, which tokens a slot holds, LRU order     `slot_table`
    cells        reads, writes, copies and trims llama.cpp's cells        `cells`
    matcher      which slot or kept state has the longest prefix          `matching`
    placement    which slot a sequence gets, and what it reuses           `placement`
    disk_saves   writes what is kept to disk ahead of need                `disk_saves`
    offload      saves to and restores from host RAM and disk             `offload`
    compaction   keeps running sequences in one contiguous range          `compaction`
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from ggufd.engine.backend.interfaces import Decoder
from ggufd.engine.costs.step_costs import StepCosts
from ggufd.engine.kv_store.disk_cache import open_disk_cache
from ggufd.engine.kv_store.host_cache import HostCache
from ggufd.engine.messages.config import DiskPlace
from ggufd.engine.sequence.fixed_chunks import CPU_CHUNK, FixedChunks
from ggufd.engine.slots.cells import KVCells
from ggufd.engine.slots.compaction import Compaction
from ggufd.engine.slots.copy_costs import CopyCosts
from ggufd.engine.slots.disk_saves import DiskSaves
from ggufd.engine.slots.matching import PrefixMatcher
from ggufd.engine.slots.offload import Offload
from ggufd.engine.slots.placement import SlotPlacement
from ggufd.engine.slots.slot_table import SlotTable
from ggufd.errors import EngineFailure


class PrefixCache:
    """The parts over the slots of `decoder`, put together. Times come from `clock`, in seconds.

    `cache_ram_bytes` of host RAM keep what is evicted from slots; what is evicted from there goes to `disk`. `chunks`
    are what deterministic requests are computed in.
    """

    def __init__(
        self,
        decoder: Decoder,
        clock: Callable[[], float] = time.perf_counter,
        *,
        n_cache_reuse: int = 0,
        cache_ram_bytes: int = 0,
        message_ends: Collection[int] = (),
        disk: DiskPlace | None = None,
        chunks: FixedChunks | None = None,
        steps: StepCosts | None = None,
    ) -> None:
        chunks = chunks or FixedChunks(CPU_CHUNK, decoder.n_outputs_max)
        only_whole = not decoder.copies_all
        disk_cache = open_disk_cache(disk, only_whole=only_whole)
        self.host = HostCache(cache_ram_bytes, disk_cache, only_whole=only_whole)
        self.costs = CopyCosts(steps or StepCosts())
        self.table = table = SlotTable(decoder.n_slots, clock)
        self.cells = cells = KVCells(decoder, table, self.costs, clock)
        self.matcher = matcher = PrefixMatcher(decoder, table, self.host, chunks, n_cache_reuse=n_cache_reuse)
        self.offload = Offload(decoder, table, cells, matcher, self.host, self.costs, clock, message_ends)
        self.disk_saves = DiskSaves(table, cells, self.host)
        self.placement = SlotPlacement(decoder, table, cells, matcher, self.offload, self.costs, chunks)
        self.compaction = Compaction(table, cells, self.costs)

    @property
    def n_failed_restores(self) -> int:
        """Kept states, in slots, in host RAM or on disk, that could not be used."""
        return self.cells.n_lost + self.host.n_bad_files

    def check_integrity(self) -> None:
        """Raise `EngineFailure` unless the slot table is consistent and agrees with llama.cpp."""
        violations = [*self.cells.violations(), *self.table.violations()]
        if violations:
            raise EngineFailure("; ".join(violations))
