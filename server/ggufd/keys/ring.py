"""What a key is, what its owner may do, and whose key was sent. Knows no file and no HTTP.

Only hashes are held. A key that ggufd makes is 256 random bits, so one round of SHA-256 is as good as any slow hash:
nobody can guess what to try. A slow one would cost its time with every request.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

PREFIX = "sk-ggufd-"
"""What every key begins with that is made here: clients that check keys want `sk-`, and leaked ones can be found."""

_N_BYTES = 32


class Role(enum.Enum):
    """What a key opens: a user's all that generates, an admin's also what shows or changes the server."""

    USER = "user"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the queue grants one key. None is no limit of its own.

    `weight` is its share beside the other keys. `max_running` counts slots held, `max_waiting` requests,
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
    """One key: its owner's `name`, which is logged, and the SHA-256 of what the owner sends."""

    name: str
    digest: bytes = field(repr=False)
    role: Role = Role.USER
    limits: Limits = Limits()

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN


ANYBODY = Key("", b"", Role.ADMIN)
"""Who asks where no keys are wanted."""


def new_key() -> str:
    """A key that nobody can guess."""
    return PREFIX + secrets.token_urlsafe(_N_BYTES)


def digest_of(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).digest()


class KeyRing:
    """The keys that are valid now. `replace` changes them while the server runs; an empty ring lets nobody in."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = tuple(keys)
        self._watchers: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys)

    def replace(self, keys: Iterable[Key]) -> None:
        """These are valid from now on, and no others; who watches is told."""
        self._keys = tuple(keys)
        for tell in self._watchers:
            tell()

    def watch(self, tell: Callable[[], None]) -> None:
        """`tell` is called after every `replace`."""
        self._watchers.append(tell)

    def holds(self, digest: bytes) -> bool:
        """Whether the key with this digest is valid. For what was let in before: it takes no care of its time."""
        return any(key.digest == digest for key in self._keys)

    def find(self, sent: bytes) -> Key | None:
        """Whose key this is. Compares with every one whatever is found, so that time tells nothing."""
        digest = hashlib.sha256(sent).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found
