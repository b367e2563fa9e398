"""Principals: who a request is computed for, as every process sees it. Plain data; knows no HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field

from ggufd.keys.ring import Limits

BACKGROUND = "\0background"
"""Account of what nobody waits for: computed when there is nothing else to do, and charged to no key.

No key has this name: names hold no control characters.
"""


@dataclass(frozen=True, slots=True)
class Principal:
    """Identity of a request: what is logged, charged, limited, and shared in the cache.

    `name` is the key's, for people to read; "" without keys. `person` tells people apart, as well as the API can: only
    who asked is told what was computed for them. `account` is charged for fair scheduling, within `limits`. Computed
    tokens are reused within one `cache_namespace` only; "" is everybody's.
    """

    name: str = ""
    person: str = ""
    account: str = ""
    cache_namespace: str = ""
    limits: Limits = field(default_factory=Limits)

    @property
    def is_background(self) -> bool:
        """Whether its requests are background work, which gives way to all others."""
        return self.account == BACKGROUND


NOBODY = Principal()
"""Principal of a request without keys, accounts or limits."""
