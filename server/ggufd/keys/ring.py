"""API keys in memory: role, limits and lookup. Knows no file and no HTTP.

Only hashes are held. A key that ggufd makes has 256 random bits and cannot be guessed, so one round of SHA-256 is as
good as a slow hash, which would cost its time with every request.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

PREFIX = "sk-ggufd-"
"""Prefix of generated keys: some clients require `sk-`, and leaked keys can be searched for."""

_N_BYTES = 32


class Role(enum.Enum):
    """Role of a key: a user may generate, an admin may also inspect and change the server."""

    USER = "user"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one key in the queue; None is no limit.

    `weight` is its share relative to other keys. `max_running` counts slots held, `max_waiting` requests,
    `tokens_per_minute` computed and generated tokens. `max_priority` is the most urgent `priority` it may ask for
    (lower is earlier).
    """

    weight: float = 1.0
    max_running: int | None = None
    max_waiting: int | None = None
    tokens_per_minute: int | None = None
    max_priority: int | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """API key: its owner's `name`, which is logged, and the SHA-256 of the key."""

    name: str
    digest: bytes = field(repr=False)
    role: Role = Role.USER
    limits: Limits = Limits()

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN


ANYBODY = Key("", b"", Role.ADMIN)
"""Key of all requests when no keys are configured."""


def new_key() -> str:
    """New random key."""
    return PREFIX + secrets.token_urlsafe(_N_BYTES)


def digest_of(key: str) -> bytes:
    """SHA-256 of a key, which is all that is stored of it."""
    return hashlib.sha256(key.encode()).digest()


class KeyRing:
    """Keys that are valid now; `replace` changes them while the server runs. An empty ring refuses every request."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = tuple(keys)
        self._watchers: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def replace(self, keys: Iterable[Key]) -> None:
        """Make these the only valid keys, and notify the watchers."""
        self._keys = tuple(keys)
        for tell in self._watchers:
            tell()

    def watch(self, tell: Callable[[], None]) -> None:
        """Call `tell` after every `replace`."""
        self._watchers.append(tell)

    def holds(self, digest: bytes) -> bool:
        """Whether the key with this digest is valid. Not in constant time: for requests that were admitted before."""
        return any(key.digest == digest for key in self._keys)

    def find(self, sent: bytes) -> Key | None:
        """Key that was sent, if valid. Compares with every key, so that the time taken reveals nothing."""
        digest = hashlib.sha256(sent).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found
