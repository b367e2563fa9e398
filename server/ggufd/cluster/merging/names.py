"""Names of requests in a cluster: each replica counts its own, so the number goes with the replica's id."""

from __future__ import annotations

_BETWEEN = "@"


def cluster_name(number: int, replica_id: str) -> str:
    """The name of a replica's request: `12@a`."""
    return f"{number}{_BETWEEN}{replica_id}"


def parts_of(name: str) -> tuple[str, str] | None:
    """The number and the replica's id of a name; None where it has no replica."""
    number, between, replica_id = name.partition(_BETWEEN)
    return (number, replica_id) if between else None
