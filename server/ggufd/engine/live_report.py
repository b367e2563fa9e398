"""Report of an engine for the live view, once a second while somebody looks."""

from __future__ import annotations

from ggufd.engine.messages.reports import LiveSlot, LiveState, QueueState, Stats
from ggufd.engine.slots.slot_table import Slot
from ggufd.engine.step.lifecycle import Lifecycle


def live_state(lifecycle: Lifecycle, stats: Stats, queue: QueueState, now_s: float) -> LiveState:
    """What the slots do, beside `stats` and `queue` of the same moment."""
    cache = lifecycle.cache
    return LiveState(
        stats=stats,
        slots=tuple(_slot(slot, now_s) for slot in cache.table.slots),
        queue=queue.entries,
        served=tuple(lifecycle.queue.accounts.served.items()),
        standing=lifecycle.queue.accounts.standing,
        prefill_tokens=lifecycle.counters.prefill_tokens,
        disk_bytes=cache.host.n_disk_bytes,
        disk_limit_bytes=cache.host.max_disk_bytes,
        disk_reads=cache.offload.n_read,
    )


def _slot(slot: Slot, now_s: float) -> LiveSlot:
    sequence = slot.sequence
    if sequence is None:
        n_kept = slot.n_computed
        owner = slot.person if n_kept else ""
        return LiveSlot(slot.index, owner, None, 0, 0, n_kept, 0, now_s - slot.used_s if n_kept else 0.0)
    since_s = sequence.admit_s if sequence.is_reading else sequence.first_token_s or sequence.admit_s
    return LiveSlot(
        slot.index,
        sequence.request.principal.person,
        sequence.request.request_id,
        sequence.n_prompt,
        sequence.n_cached,
        sequence.n_past,
        sequence.n_generated,
        now_s - since_s,
    )
