"""Revocation: requests under way end when the key that they came with is removed, or replaced by another one.

What counts is the key itself. Another role, other limits or another name for it end nothing. Knows no route and no
engine: who holds a request says how it is ended.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from ggufd.api.services.caller import Caller
from ggufd.errors import GgufdError, Unauthorized
from ggufd.keys.ring import KeyRing

logger = logging.getLogger("ggufd")

End = Callable[[GgufdError], None]
"""Ends a request with this error. Must be quick and raise nothing."""


class Revocations:
    """Running requests, each ended when its key leaves `keys`; without a ring none is."""

    def __init__(self, keys: KeyRing | None = None) -> None:
        self._keys = keys
        self._open: dict[int, tuple[Caller, End]] = {}
        self._next_id = 0
        if keys is not None:
            keys.watch(self._look)

    @contextlib.contextmanager
    def during(self, caller: Caller, end: End) -> Iterator[None]:
        """Context in which `end` is called as soon as the caller's key is not valid, also at once."""
        number, self._next_id = self._next_id, self._next_id + 1
        self._open[number] = caller, end
        try:
            if self._is_revoked(caller):
                end(_error())
            yield
        finally:
            del self._open[number]

    def _is_revoked(self, caller: Caller) -> bool:
        return self._keys is not None and not self._keys.holds(bytes.fromhex(caller.key_digest))

    def _look(self) -> None:
        """The keys have changed."""
        revoked = [end for caller, end in self._open.values() if self._is_revoked(caller)]
        if revoked:
            logger.info("requests that end because their key was removed or replaced: %d", len(revoked))
        for end in revoked:
            end(_error())


def _error() -> Unauthorized:
    return Unauthorized(
        "The API key of this request was removed or replaced while the request was under way. "
        "Send it again with another one, as 'Authorization: Bearer KEY'."
    )
