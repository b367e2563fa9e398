"""Lists and counts of several replicas as one answer. Each takes JSON bodies by replica, and gives one body."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ggufd.cluster.merging.names import cluster_name

Json = Any
Bodies = Mapping[str, Json]
Merge = Callable[[Bodies], Json]


def queue(bodies: Bodies) -> Json:
    """`/v1/queue`. Places in the queue are each replica's own."""
    first = next(iter(bodies.values()))
    return {
        **first,
        **{name: sum(body[name] for body in bodies.values()) for name in ("slots", "running", "waiting")},
        "data": [
            {**entry, "id": cluster_name(entry["id"], replica), "replica": replica}
            for replica, body in bodies.items()
            for entry in body["data"]
        ],
        "batches": [*_with_replica(bodies, "batches")],
    }


def slots(bodies: Bodies) -> Json:
    """`/slots`: a list of objects."""
    return [{**slot, "replica": replica} for replica, body in bodies.items() for slot in body]


def concatenated(bodies: Bodies) -> Json:
    """Lists of objects that only one replica has each."""
    return [one for body in bodies.values() for one in body]


def data(bodies: Bodies) -> Json:
    """Lists in OpenAI's shape, as they are; each object says where it is."""
    first = next(iter(bodies.values()))
    return {**first, "data": [*_with_replica(bodies, "data")]}


def models(bodies: Bodies) -> Json:
    """`/v1/models`: each model once."""
    first = next(iter(bodies.values()))
    return {**first, "data": [*_once(bodies, "data", "id")]}


def ollama_models(bodies: Bodies) -> Json:
    """`/api/tags` and `/api/ps`: each model once."""
    return {"models": [*_once(bodies, "models", "name")]}


def aborted(bodies: Bodies) -> Json:
    """KoboldCpp's abort: how much was ended anywhere."""
    n_aborted = sum(body.get("n_aborted", 0) for body in bodies.values())
    return {"success": any(body.get("success") for body in bodies.values()), "n_aborted": n_aborted}


def longest_text(bodies: Bodies) -> Json:
    """KoboldCpp's check: the text of the replica that writes for the caller; the others have none."""
    return max(bodies.values(), key=lambda body: len(body["results"][0]["text"]))


def performance(bodies: Bodies) -> Json:
    """KoboldCpp's performance: of the replica that was used last, with the sums of all."""
    latest = min(bodies.values(), key=lambda body: body["idletime"])
    sums = {name: sum(body[name] for body in bodies.values()) for name in ("total_gens", "queue")}
    return {**latest, **sums, "idle": int(all(body["idle"] for body in bodies.values()))}


def first(bodies: Bodies) -> Json:
    """What all say alike."""
    return next(iter(bodies.values()))


def page(bodies: Bodies, query: Mapping[str, str]) -> Json:
    """A page of a list that each replica told whole: by time, `limit` of it behind `after`."""
    found = sorted(
        _with_replica(bodies, "data"), key=lambda one: one["created_at"], reverse=query.get("order") != "asc"
    )
    names = [one["id"] for one in found]
    after = query.get("after")
    begin = names.index(after) + 1 if after in names else 0
    limit = int(query.get("limit") or len(found) or 1)
    shown = found[begin : begin + limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(found) > begin + limit,
    }


def _with_replica(bodies: Bodies, name: str) -> Iterator[Json]:
    for replica, body in bodies.items():
        yield from ({**one, "replica": replica} for one in body[name])


def _once(bodies: Bodies, name: str, key: str) -> Iterator[Json]:
    """Each object once, as the first replica tells it that has it."""
    seen: dict[str, Json] = {}
    for body in bodies.values():
        for one in body[name]:
            seen.setdefault(one[key], one)
    yield from seen.values()
