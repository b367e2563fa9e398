"""Actions on idle slots: erase, save to a file, restore from one."""

from __future__ import annotations

from pathlib import Path

from ggufd.engine.kv_store import slot_file
from ggufd.engine.messages.reports import SlotDone
from ggufd.engine.messages.requests import ActOnSlot, SlotAction
from ggufd.engine.slots.prefix_cache import PrefixCache
from ggufd.errors import GgufdError


def act_on_slot(cache: PrefixCache, command: ActOnSlot) -> SlotDone:
    """Result of an action on a slot, which a running one refuses."""
    slot = cache.table.slots[command.slot]
    if not slot.is_idle:
        return SlotDone(command.slot, None)
    n_bytes, n_tokens = 0, slot.n_computed
    try:
        match command.action:
            case SlotAction.ERASE:
                cache.cells.evict(slot)
            case SlotAction.SAVE:
                n_bytes = slot_file.write(Path(command.path), cache.offload.content(slot), command.mark)
            case SlotAction.RESTORE:
                kept = slot_file.read(Path(command.path), command.mark)
                cache.offload.replace(slot, kept)
                n_bytes, n_tokens = len(kept.state), len(kept.tokens)
    except GgufdError as error:
        return SlotDone(command.slot, n_tokens, failure=error.message)
    return SlotDone(command.slot, n_tokens, n_bytes)
