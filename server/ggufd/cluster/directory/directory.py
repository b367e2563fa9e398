"""Directory of a cluster: its replicas with what they told last, and the ledger of what they served.

A plain object of one thread, without clock: who calls says what time it is. Its loss loses nothing that the replicas do
not tell again within a second; until then ingresses use the list that they have, and shares are each replica's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ggufd.cluster.directory.ledger import MAX_ACCOUNTS, ServedLedger
from ggufd.cluster.directory.limits import AccountUse, LimitBook, UsedElsewhere
from ggufd.cluster.directory.moves import MoveExchange
from ggufd.cluster.replicas import Replica, ReplicaLoad
from ggufd.errors import EngineFailure

SILENT_AFTER_S = 5.0
"""A replica that told nothing for so long is not routed to: five beats."""

_FORGET_AFTER_S = 60.0
"""A replica that is silent for so long is taken for gone. One that only hung goes on where it was until then."""


@dataclass(frozen=True, slots=True)
class _Beat:
    """The last word of a replica."""

    replica: Replica
    told_s: float


class Directory:
    """Registry of the replicas by heartbeat, the ledger between them, and the ingresses' moves of conversations."""

    def __init__(self, max_accounts: int = MAX_ACCOUNTS) -> None:
        self._beats: dict[str, _Beat] = {}
        self._ledger = ServedLedger(max_accounts)
        self._limits = LimitBook(max_accounts, SILENT_AFTER_S)
        self._moves = MoveExchange()

    def beat(
        self, replica_id: str, url: str, load: ReplicaLoad, served: Mapping[str, float], now_s: float
    ) -> Mapping[str, float]:
        """Take a replica's word, and return what all others served each account since its last one.

        `served` counts since the replica's start. A replica that starts again has another port, so its `url` says that
        it counts from 0.
        """
        self._forget_silent(now_s)
        self._beats[replica_id] = _Beat(Replica(replica_id, url, load), now_s)
        return self._ledger.post(replica_id, url, served)

    def share_limits(
        self, replica_id: str, uses: Mapping[str, AccountUse], now_s: float
    ) -> Mapping[str, UsedElsewhere]:
        """Take what accounts use of their limits at a replica, and return what they use at all others.

        With each beat, after it; a replica that did not tell its load is not known here either.
        """
        known = self._beats.get(replica_id)
        if known is None:
            return {}
        return self._limits.post(replica_id, known.replica.url, known.replica.load.n_slots, uses, now_s)

    def replicas(self, now_s: float) -> list[Replica]:
        """The replicas that are not silent, by their names; those that drain are among them, and say so."""
        beats = sorted(self._beats.items())
        return [beat.replica for _, beat in beats if now_s - beat.told_s <= SILENT_AFTER_S]

    def leave(self, replica_id: str) -> None:
        """Forget a replica that has ended. What it served stays in the sums."""
        self._beats.pop(replica_id, None)
        self._ledger.drop(replica_id)
        self._limits.drop(replica_id)

    def exchange_moves(self, ingress_id: str, moves: Mapping[bytes, str]) -> Mapping[bytes, str]:
        """Take what an ingress noted (`Router.take_moves`), and return what others noted since it asked last.

        Once a second, with the list of replicas. An ingress that never asks knows of its own moves only.
        """
        return self._moves.exchange(ingress_id, moves)

    def served(self) -> Mapping[str, float]:
        """What all replicas served each of the last accounts since the directory began."""
        return self._ledger.totals

    def _forget_silent(self, now_s: float) -> None:
        gone = [name for name, beat in self._beats.items() if now_s - beat.told_s > _FORGET_AFTER_S]
        for name in gone:
            self.leave(name)

    def check_integrity(self) -> None:
        """Raise `EngineFailure` unless registry and ledger agree, and the ledger is right."""
        self._ledger.check_integrity()
        if self._ledger.replica_ids != self._beats.keys():
            raise EngineFailure("the directory and its ledger know different replicas")
        self._limits.check_integrity()
        if not self._limits.replica_ids <= self._beats.keys():
            raise EngineFailure("limits are shared with a replica that the directory does not know")
