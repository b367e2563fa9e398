"""Models that stay loaded beside the one that is swapped: their services by name, and what is told of them."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

from ggufd.api.services.metrics import Metrics
from ggufd.api.services.services import RequestEvents, Services


def services_for(services: Services, asked: object) -> Services:
    """The services of the model that a question names, where it stays loaded beside; else those given."""
    if services.pool is None or not isinstance(asked, str):
        return services
    known = services.pool.catalogue.find(asked)
    return services if known is None else services.beside.get(known.name, services)


def find_stream(services: Services, number: int) -> RequestEvents | None:
    """The open request with this number, of whichever loaded model."""
    found = (one.engine.find(number) for one in services.instances)
    return next((stream for stream in found if stream is not None), None)


def beside_json(services: Services) -> list[dict[str, Any]]:
    """Each model beside: its state, and its numbers of requests."""
    return [
        {
            "model": name,
            "state": state_of(one),
            "running": one.engine.n_running,
            "waiting": one.engine.n_waiting,
        }
        for name, one in services.beside.items()
    ]


def state_of(services: Services) -> str:
    """State of a model beside: `loading`, `ready`, or why it does not answer."""
    state = services.engine.state.name.lower()
    return "loading" if state == "ready" and not services.is_ready else state


def health_json(services: Services) -> dict[str, Any]:
    """Numbers of the models beside by their state, for `/health`; nothing without any. Names are for keys only."""
    return {"beside": Counter(map(state_of, services.beside.values()))} if services.beside else {}


def export_metrics(services: Services, metrics: Metrics) -> None:
    """Show among the metrics what the models beside do."""
    for name, text, read in _GAUGES:
        if services.beside:
            reads = {model: functools.partial(read, one) for model, one in services.beside.items()}
            metrics.watch_each(f"beside_{name}", text, "model", reads)


_GAUGES: tuple[tuple[str, str, Callable[[Services], float]], ...] = (
    ("up", "1 where a model that stays loaded takes requests.", lambda one: state_of(one) == "ready"),
    ("running", "Requests that a model runs which stays loaded.", lambda one: one.engine.n_running),
    ("waiting", "Requests that wait for a slot of a model that stays loaded.", lambda one: one.engine.n_waiting),
)
