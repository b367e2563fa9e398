"""Tiers of the prefix cache in the live view: slots, host RAM and disk, with their bytes, hits and evictions."""

from __future__ import annotations

import re
from typing import Any

from ggufd.engine.messages.reports import LiveState, Ready

_KV_BUFFER = re.compile(r"\bKV\s+buffer size\s*=\s*([\d.]+) MiB")


def cache_json(state: LiveState | None, ready: Ready | None) -> dict[str, Any] | None:
    """The tiers; None while no model is loaded. Counters count from the engine's start."""
    if state is None or ready is None:
        return None
    stats = state.stats
    n_tokens, n_most = sum(slot.n_past for slot in stats.slots), len(stats.slots) * ready.n_ctx
    n_bytes = _slot_bytes(ready)
    return {
        "cached_tokens": stats.cached_tokens,
        "computed_tokens": state.prefill_tokens,
        "slots": {
            "tokens": n_tokens,
            "limit_tokens": n_most,
            "bytes": int(n_bytes * n_tokens / n_most) if n_most else 0,
            "limit_bytes": n_bytes,
            "evictions": stats.evictions,
        },
        "ram": {
            "bytes": stats.host_bytes,
            "limit_bytes": ready.host_cache_bytes,
            "hits": stats.restores,
            "evictions": stats.host_evictions,
        },
        "disk": {"bytes": state.disk_bytes, "limit_bytes": state.disk_limit_bytes, "hits": state.disk_reads},
    }


def _slot_bytes(ready: Ready) -> int:
    """Size of the KV cache of all slots, as llama.cpp told it."""
    sizes = (match for line in ready.buffers if (match := _KV_BUFFER.search(line)) is not None)
    return int(sum(float(match[1]) for match in sizes) * (1 << 20))
