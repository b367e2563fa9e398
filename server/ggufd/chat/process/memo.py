"""LRU cache of call results: to regenerate an answer sends the whole chat once more, word for word."""

from __future__ import annotations

import hashlib
import pickle
from collections import OrderedDict
from typing import Any

MAX_BYTES = 4 << 20
"""A prompt of 32k tokens takes a tenth of a megabyte, a chat its text as well."""


class Memo:
    """LRU cache of pickled results by pickled calls, of at most `max_bytes`.

    Of a call only a hash is kept. Each result is a new object.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._results: OrderedDict[bytes, bytes] = OrderedDict()
        self.n_bytes = 0

    def get(self, asked: bytes) -> Any:
        """Cached result, or None."""
        key = _key(asked)
        if key not in self._results:
            return None
        self._results.move_to_end(key)
        return pickle.loads(self._results[key])

    def put(self, asked: bytes, result: Any) -> None:
        """Cache a result; the least recently used make room."""
        key, pickled = _key(asked), pickle.dumps(result, pickle.HIGHEST_PROTOCOL)
        if len(pickled) > self._max_bytes:
            return
        self.n_bytes += len(pickled) - len(self._results.pop(key, b""))
        self._results[key] = pickled
        while self.n_bytes > self._max_bytes:
            self.n_bytes -= len(self._results.popitem(last=False)[1])


def _key(asked: bytes) -> bytes:
    return hashlib.blake2b(asked, digest_size=32).digest()
