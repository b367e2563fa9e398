"""Plan of moves: which kept chat goes from which replica to which. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from ggufd.cluster.moving.peer_calls import KeptChat
from ggufd.cluster.replicas import Replica

Home = Callable[[bytes, Sequence[Replica]], Replica | None]
"""Where the next turn of a conversation will be routed, among these replicas."""


class ChatMove(NamedTuple):
    """A chat on its way."""

    kept: KeptChat
    source: Replica
    target: Replica


def moves(
    kept: Mapping[Replica, Sequence[KeptChat]],
    replicas: Sequence[Replica],
    home: Home,
    targets: Collection[str],
) -> list[ChatMove]:
    """Moves of the chats that are kept to where they will be asked for, the most recently used first.

    Only to the replicas with the ids `targets`, of those who will be there (`replicas`). A chat that nobody named goes
    nowhere: nobody knows where it will be asked for. What several keep comes from the one that used it last.
    """
    planned: dict[tuple[str, str], ChatMove] = {}
    for source, chats in kept.items():
        for one in chats:
            target = home(one.chat, replicas) if one.chat else None
            if target is None or target.id == source.id or target.id not in targets:
                continue
            known = planned.get((one.digest, target.id))
            if known is None or known.kept.used_s < one.used_s:
                planned[one.digest, target.id] = ChatMove(one, source, target)
    return sorted(planned.values(), key=lambda move: -move.kept.used_s)
