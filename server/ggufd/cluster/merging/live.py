"""Live views of several replicas as one: states side by side, sums where the page shows one number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ggufd.cluster.merging.names import cluster_name

Json = Any

_LATE_S = 1.5
"""Rows of one second come from each replica within this time; a replica at rest sends none."""

_SUMMED = frozenset(("read", "written", "waiting", "running", "refused"))
_WORST = frozenset(("first_p95", "gap_p95"))
_LISTS = ("requests", "events")


class LiveMerge:
    """One viewer's view of all replicas. Messages are taken in as they come, and told once a second."""

    def __init__(self) -> None:
        self._latest: dict[str, Json] = {}
        self._seen: dict[tuple[str, str], float] = {}
        self._new: dict[str, list[Json]] = {name: [] for name in _LISTS}
        self._rows: dict[int, dict[str, Sequence[float | None]]] = {}
        self._columns: Sequence[str] = ()
        self._n_told = dict.fromkeys(_LISTS, 0)
        self._is_begun = False

    def __len__(self) -> int:
        return len(self._latest)

    def take(self, replica_id: str, message: Json) -> None:
        """Take in a message of one replica. What a snapshot tells a second time is left out."""
        self._latest[replica_id] = message
        self._columns = message["history"]["columns"]
        for row in self._unseen(replica_id, "rows", message["history"]["rows"], 0):
            self._rows.setdefault(int(row[0]), {})[replica_id] = row
        for name in _LISTS:
            self._new[name] += [
                {**one, "replica": replica_id} for one in self._unseen(replica_id, name, message[name], "time")
            ]

    def drop(self, replica_id: str, why: str) -> None:
        """A replica does not tell any more."""
        last = self._latest.pop(replica_id, None)
        if last is not None:
            self._new["events"].append({"time": last["time"], "kind": "gone", "text": why, "replica": replica_id})

    def message(self) -> Json:
        """The state of all, with what is new since the message before."""
        latest = dict(sorted(self._latest.items()))
        time = max(message["time"] for message in latest.values())
        kind, self._is_begun = "live.update" if self._is_begun else "live.snapshot", True
        return {
            "object": kind,
            "time": time,
            "server": _server(latest),
            "totals": _sum([message["totals"] for message in latest.values()]),
            "age_s": max(
                (message["age_s"] for message in latest.values() if message["age_s"] is not None), default=None
            ),
            "slots": [*_named(latest, "slots")],
            "queue": [*_named(latest, "queue")],
            "batches": [{**one, "replica": name} for name, message in latest.items() for one in message["batches"]],
            "keys": _keys(latest),
            "cache": _sum([message["cache"] for message in latest.values() if message["cache"] is not None]),
            "history": {"columns": self._columns, "rows": self._told_rows(time)},
            **{name: self._told(name) for name in _LISTS},
        }

    def _unseen(self, replica_id: str, name: str, entries: Sequence[Json], time: Any) -> Sequence[Json]:
        last = self._seen.get((replica_id, name), 0.0)
        unseen = [one for one in entries if one[time] > last]
        if unseen:
            self._seen[replica_id, name] = max(one[time] for one in unseen)
        return unseen

    def _told(self, name: str) -> list[Json]:
        """New entries in the order of their times, numbered anew."""
        new, self._new[name] = sorted(self._new[name], key=lambda one: one["time"]), []
        begin = self._n_told[name]
        self._n_told[name] += len(new)
        if name == "events":
            new = [{**one, "text": f"{one['replica']}: {one['text']}"} for one in new]
        return [{**one, "number": number} for number, one in enumerate(new, begin)]

    def _told_rows(self, now_s: float) -> list[Json]:
        """Rows of the seconds that all have told, or that are over."""
        ready = [
            second
            for second, rows in self._rows.items()
            if len(rows) >= len(self._latest) or now_s - second > 1 + _LATE_S
        ]
        return [_row(self._columns, second, [*self._rows.pop(second).values()]) for second in sorted(ready)]


def _row(columns: Sequence[str], second: int, rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    """One second of all: what counts is added up, of percentiles the mean of halves and the worst of tails."""
    merged: list[float | None] = [max(row[0] or float(second) for row in rows)]
    for place, name in enumerate(columns[1:], 1):
        values = [value for row in rows if (value := row[place]) is not None]
        if not values:
            merged.append(None)
        elif name in _SUMMED:
            merged.append(round(sum(values), 1))
        else:
            merged.append(max(values) if name in _WORST else round(sum(values) / len(values), 5))
    return merged


def _server(latest: Mapping[str, Json]) -> Json:
    servers = {name: message["server"] for name, message in latest.items()}
    first = next((one for one in servers.values() if one["state"] == "ready"), next(iter(servers.values())))
    slots = [one["slots"] for one in servers.values() if one["slots"] is not None]
    return {
        **first,
        "trouble": "; ".join(f"{name}: {one['trouble']}" for name, one in servers.items() if one["trouble"]),
        "slots": sum(slots) if slots else None,
        "sees": "all" if all(one["sees"] == "all" for one in servers.values()) else "own",
        "can_load": all(one["can_load"] for one in servers.values()),
        "replicas": [
            {"id": name, "state": servers[name]["state"], "model": servers[name]["model"], **message["totals"]}
            for name, message in latest.items()
        ],
    }


def _named(latest: Mapping[str, Json], part: str) -> Iterator[Json]:
    """Slots or waiting requests, each with its replica, and its request by the name that it has in the cluster."""
    for replica_id, message in latest.items():
        for one in message[part]:
            request = {"request": cluster_name(one["request"], replica_id)} if "request" in one else {}
            yield {**one, **request, "replica": replica_id}


def _keys(latest: Mapping[str, Json]) -> list[Json]:
    """Accounts of all: what each was served anywhere, and its share of what all were."""
    found: dict[str | None, list[Json]] = {}
    total = 0.0
    for message in latest.values():
        total += _total_of(message["keys"])
        for one in message["keys"]:
            found.setdefault(one["name"], []).append(one)
    merged = [_key(entries, total) for entries in found.values()]
    fair = [one for one in merged if one["fair_share"] is not None]
    if len(fair) > 1:
        weight = sum(one["weight"] for one in fair)
        for one in fair:
            one["fair_share"] = round(one["weight"] / weight, 3)
    return merged


def _key(entries: Sequence[Json], total: float) -> Json:
    sums = {name: sum(one[name] for one in entries) for name in ("running", "waiting", "refusals", "served")}
    fair = [one["fair_share"] for one in entries if one["fair_share"] is not None]
    return {
        **entries[0],
        **sums,
        "served": round(sums["served"], 1),
        "share": round(min(1.0, sums["served"] / total), 3) if total else 0.0,
        "fair_share": round(sum(fair) / len(fair), 3) if fair else None,
    }


def _total_of(keys: Sequence[Json]) -> float:
    """What one replica served in all, also where only some keys are shown."""
    known = [float(one["served"] / one["share"]) for one in keys if one["share"] > 0]
    return max(known, default=0.0)


def _sum(values: Sequence[Any]) -> Any:
    """Sums of numbers that stand at the same place in objects; None of nothing."""
    if not values:
        return None
    if isinstance(values[0], Mapping):
        return {name: _sum([value[name] for value in values]) for name in values[0]}
    return sum(values)
