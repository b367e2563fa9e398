"""Messages of the live view, as one caller may see them: whole states, and what was added to the lists that grow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ggufd import __version__
from ggufd.api.http.json_response import dumps
from ggufd.api.live.batches import batches_json
from ggufd.api.live.cache import cache_json
from ggufd.api.live.collector import Collector
from ggufd.api.live.history import HistoryRow
from ggufd.api.live.shares import Share, limits_json, shares_of, weights_of
from ggufd.api.live.sight import Sight
from ggufd.api.pool.beside import beside_json
from ggufd.api.pool.waiting import live_json, n_waiting
from ggufd.api.services.services import Services
from ggufd.engine.messages.reports import LiveSlot, LiveState, QueueEntry
from ggufd.keys.ring import Limits

_MAX_KEYS = 200


class Seen(NamedTuple):
    """How much of the lists that grow a viewer has been sent."""

    rows: int = 0
    requests: int = 0
    events: int = 0


class LiveMessages:
    """Maker of the messages; what several viewers may see alike is made once."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._made: dict[tuple[Sight, bool, Seen], bytes] = {}
        self._tick = -1

    def position(self) -> Seen:
        """The ends of the lists now."""
        recent = self._collector.recent
        return Seen(self._collector.history.n_rows, recent.n_requests, recent.n_events)

    def update(self, services: Services, sight: Sight, *, is_admin: bool, seen: Seen) -> bytes:
        """The state now, with what the lists have more than the viewer has `seen`."""
        if self._tick != self._collector.tick:
            self._tick = self._collector.tick
            self._made.clear()
        key = (sight, is_admin, seen)
        if key not in self._made:
            self._made[key] = dumps(self._message(services, sight, is_admin=is_admin, seen=seen))
        return self._made[key]

    def _message(self, services: Services, sight: Sight, *, is_admin: bool, seen: Seen) -> dict[str, Any]:
        collector, now_s = self._collector, time.monotonic()
        epoch_s = time.time() - now_s
        state = collector.state
        recent = collector.recent
        return {
            "object": "live.snapshot" if seen == Seen() else "live.update",
            "time": round(epoch_s + now_s, 2),
            "server": _server(services, sight, is_admin=is_admin),
            "totals": _totals(services, state),
            "age_s": round(now_s - collector.state_s, 1) if state is not None else None,
            "slots": [] if state is None else [_slot(one) for one in state.slots if _is_shown(one, sight)],
            "queue": [*(() if state is None else _queue(state, sight)), *live_json(services, sight.shows)],
            "batches": batches_json(collector.batches, sight),
            "keys": _keys(services, collector, sight, now_s),
            "cache": cache_json(state, services.engine.ready),
            "history": {
                "columns": HistoryRow._fields,
                "rows": [(round(epoch_s + row.time, 1), *row[1:]) for row in collector.history.since(seen.rows, now_s)],
            },
            "requests": [one.as_json(epoch_s) for one in recent.requests(seen.requests) if sight.shows(one.person)],
            "events": [one.as_json(epoch_s) for one in recent.events(seen.events, now_s)],
        }


def _server(services: Services, sight: Sight, *, is_admin: bool) -> dict[str, Any]:
    engine, ready, config = services.engine, services.engine.ready, services.config
    return {
        "state": engine.state.name.lower(),
        "trouble": engine.trouble,
        "model": config.model_id,
        "beside": beside_json(services),
        "version": __version__,
        "n_ctx": None if ready is None else ready.n_ctx,
        "slots": None if ready is None else ready.n_slots,
        "adapters": [
            {"id": one["id"], "name": one["name"], "scale": one["scale"]} for one in services.adapters.as_json()
        ],
        "sees": "all" if sight.sees_all else "own",
        "you": sight.person or None,
        "has_keys": config.keys is not None,
        "is_admin": is_admin,
        "can_load": is_admin and services.models is not None,
        "can_save": is_admin and config.slot_save_path is not None,
    }


def _totals(services: Services, state: LiveState | None) -> dict[str, Any]:
    """Of all requests, whoever looks."""
    running = [] if state is None else [one for one in state.slots if one.request_id is not None]
    kept = [] if state is None else [one for one in state.slots if one.request_id is None and one.n_past]
    reading = sum(one.n_past < one.n_prompt for one in running)
    return {
        "running": services.engine.n_running,
        "waiting": services.engine.n_waiting + n_waiting(services),
        "slots": 0 if state is None else len(state.slots),
        "reading": reading,
        "writing": len(running) - reading,
        "keeping": len(kept),
    }


def _is_shown(slot: LiveSlot, sight: Sight) -> bool:
    is_empty = slot.request_id is None and not slot.n_past
    return sight.shows(slot.owner) or (is_empty and sight.sees_all)


def _slot(slot: LiveSlot) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": slot.slot, "owner": slot.owner or None, "seconds": round(slot.phase_s, 1)}
    if slot.request_id is None:
        return shown | {"state": "idle" if slot.n_past else "empty", "tokens": slot.n_past}
    is_reading = slot.n_past < slot.n_prompt
    n_done = slot.n_past - slot.n_cached if is_reading else slot.n_generated
    return shown | {
        "state": "reading" if is_reading else "writing",
        "request": slot.request_id,
        "tokens": slot.n_prompt + slot.n_generated,
        "prompt_tokens": slot.n_prompt,
        "cached_tokens": slot.n_cached,
        "computed_tokens": min(slot.n_past, slot.n_prompt),
        "completion_tokens": slot.n_generated,
        "tokens_per_s": round(n_done / slot.phase_s, 1) if slot.phase_s > 0 else None,
    }


def _queue(state: LiveState, sight: Sight) -> Iterator[dict[str, Any]]:
    """Requests that wait, and those that run without a slot: for embeddings, or preempted."""
    in_slots = {slot.request_id for slot in state.slots}
    for entry in state.queue:
        if entry.request_id not in in_slots and sight.shows(entry.principal.person):
            yield _entry(entry)


def _entry(entry: QueueEntry) -> dict[str, Any]:
    turn = entry.turn
    return {
        "request": entry.request_id,
        "state": "running" if turn is None else "waiting",
        "position": None if turn is None else turn.position,
        "eta_s": None if turn is None else round(turn.wait_s, 1),
        "owner": entry.principal.person or None,
        "age_s": round(entry.age_s, 1),
        "prompt_tokens": entry.prompt_tokens,
        "priority": entry.priority,
    }


def _keys(services: Services, collector: Collector, sight: Sight, now_s: float) -> list[dict[str, Any]]:
    """Accounts: all keys, those without requests too; without keys the addresses that were served lately."""
    config, ring = services.config, tuple(services.config.keys or ())
    running, waiting = _standing(collector.state)
    served, refusals = collector.served.lately(now_s), collector.recent.refusals(now_s)
    shares = shares_of(served, {*running, *waiting}, weights_of(ring))
    names = dict.fromkeys((*(key.name for key in ring), *shares, *refusals))
    limits: Mapping[str, Limits] = {key.name: key.limits for key in ring}
    return [
        {
            "name": name or None,
            "weight": limits[name].weight if name in limits else 1.0,
            **limits_json(_with_defaults(limits.get(name, Limits()), config.limits)),
            "running": running.get(name, 0),
            "waiting": waiting.get(name, 0),
            **_share_json(shares.get(name)),
            "refusals": refusals[name],
        }
        for name in list(names)[:_MAX_KEYS]
        if sight.shows(name) or (sight.sees_all and name == "")
    ]


def _with_defaults(own: Limits, default: Limits) -> Limits:
    return Limits(
        max_running=default.max_running if own.max_running is None else own.max_running,
        max_waiting=default.max_waiting if own.max_waiting is None else own.max_waiting,
        tokens_per_minute=default.tokens_per_minute if own.tokens_per_minute is None else own.tokens_per_minute,
    )


def _share_json(share: Share | None) -> dict[str, Any]:
    found = share or Share(0.0, 0.0, 0.0)
    return {
        "served": round(found.served, 1),
        "share": round(found.share, 3),
        "fair_share": round(found.fair_share, 3) if share is not None else None,
    }


def _standing(state: LiveState | None) -> tuple[dict[str, int], dict[str, int]]:
    """Requests that run and wait, by account."""
    running: dict[str, int] = {}
    waiting: dict[str, int] = {}
    for entry in () if state is None else state.queue:
        counts, account = running if entry.turn is None else waiting, entry.principal.account
        counts[account] = counts.get(account, 0) + 1
    return running, waiting
