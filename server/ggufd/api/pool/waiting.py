"""Requests that wait for a model, as `/v1/queue` and the live view show them beside those that the engine has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ggufd.api.services.metrics import Metrics
from ggufd.api.services.services import Services
from ggufd.model_pool.pool import ModelPool, ModelTurn

Shows = Callable[[str], bool]
"""Whether the requests of a person are shown."""


def waiting_turns(services: Services, shows: Shows) -> list[ModelTurn]:
    """Requests that wait for a model, background work apart, of those who are shown."""
    turns = [] if services.pool is None else services.pool.waiting
    return [turn for turn in turns if not turn.ticket.is_background and shows(turn.claim.principal.person)]


def queue_json(services: Services, shows: Shows) -> Iterator[dict[str, Any]]:
    """Entries of `/v1/queue`."""
    for turn in waiting_turns(services, shows):
        position, wait_s = turn.forecast
        yield {
            "id": turn.number,
            "object": "queue.request",
            "status": "waiting",
            "position": position,
            "eta_s": round(wait_s, 1),
            "model": turn.model,
            "waiting_for": f"waiting for model {turn.model or services.config.model_id}, {wait_s:.0f} s",
            "key": turn.claim.principal.name or None,
            "priority": 0,
            "age_s": round(turn.waited_s, 1),
            "prompt_tokens": 0,
            "completion_tokens": 0,
        }


def live_json(services: Services, shows: Shows) -> Iterator[dict[str, Any]]:
    """Rows of the live view's queue."""
    for turn in waiting_turns(services, shows):
        position, wait_s = turn.forecast
        yield {
            "request": turn.number,
            "state": "waiting",
            "position": position,
            "eta_s": round(wait_s, 1),
            "owner": turn.claim.principal.person or None,
            "age_s": round(turn.waited_s, 1),
            "prompt_tokens": 0,
            "priority": 0,
            "model": turn.model or services.config.model_id,
        }


def n_waiting(services: Services) -> int:
    """Number of requests that wait for a model, of everybody."""
    return len(waiting_turns(services, lambda person: True))


def export_metrics(pool: ModelPool, metrics: Metrics) -> None:
    """Show among the metrics how often models are swapped, and how many requests wait for one."""
    metrics.watch("model_swaps", "Times that another model was loaded.", lambda: pool.n_swaps)
    metrics.watch("model_waiting", "Requests that wait for a model to be loaded.", lambda: len(pool.waiting))
