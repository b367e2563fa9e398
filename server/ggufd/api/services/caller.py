"""Callers of the API: the principal behind an HTTP request, where it came from, and what it may do. Knows no route."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from starlette.requests import Request

from ggufd.api.http.auth import key_of
from ggufd.api.http.record import RequestRecord, record_of
from ggufd.api.services.settings import ApiConfig
from ggufd.errors import InvalidRequest
from ggufd.keys.principal import BACKGROUND, Principal
from ggufd.keys.ring import Key, Limits

_USERS_PRIORITY = 0
"""What a user's key may ask for at most, unless it was granted more; an admin's may ask for any."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Sender of an HTTP request.

    `genkey` is a name of the client's own choice (KoboldCpp's word), by which it finds its requests again.
    `key_digest` identifies the key itself, for what outlives the process: another key may have the name after a
    restart. `record` is of the request, which is told there what became of it.
    """

    principal: Principal
    address: str = ""
    genkey: str = ""
    is_admin: bool = True
    key_digest: str = field(default="", repr=False)
    record: RequestRecord = field(default_factory=RequestRecord, compare=False)

    @classmethod
    def of(cls, request: Request, config: ApiConfig, genkey: str = "") -> Caller:
        """The caller of a request, under these settings."""
        key = key_of(request)
        address = request.client.host if request.client else ""
        principal, record = principal_of(key, address, config), record_of(request)
        if record.is_background:
            principal = _in_background(principal)
        return cls(principal, address, genkey, key.is_admin, key.digest.hex(), record)

    @property
    def owner(self) -> str:
        """To whom words of the request may be shown: the key itself, or without keys the address."""
        return self.key_digest or self.address

    def left_of(self, timeout_s: float | None) -> float | None:
        """What is left of a request's timeout: the wait for its model is part of it."""
        return None if timeout_s is None else max(0.001, timeout_s - self.record.waited_s)

    def check_priority(self, priority: int) -> None:
        """Raises InvalidRequest for a priority above what the key may ask for. A lower number is more urgent."""
        granted = self.principal.limits.max_priority
        most_urgent = _USERS_PRIORITY if granted is None and not self.is_admin else granted
        if most_urgent is not None and priority < most_urgent:
            raise InvalidRequest(
                f"'priority': this key may ask for {most_urgent} or a higher number, which is less urgent; "
                f"got {priority}.",
                param="priority",
            )


def principal_of(key: Key, address: str, config: ApiConfig) -> Principal:
    """Principal of a key's requests. Without keys an address stands for a person, and for an account if so configured.

    What is on disk outlives the process, after which another key may have the name: a cache that is not shared goes by
    the key itself.
    """
    own_cache = key.digest.hex() or (address if config.cache_sharing == "per-key" else "")
    return Principal(
        name=key.name,
        person=key.name or address,
        account=key.name or (address if config.share_by_address else ""),
        cache_namespace="" if config.shares_cache else own_cache,
        limits=_limits(key.limits, config.limits),
    )


def _in_background(principal: Principal) -> Principal:
    """The same principal for work that nobody waits for: it takes only what is left, so it is neither charged for it
    nor limited.
    """
    unlimited = Limits(weight=principal.limits.weight, max_priority=principal.limits.max_priority)
    return dataclasses.replace(principal, account=BACKGROUND, limits=unlimited)


def _limits(own: Limits, default: Limits) -> Limits:
    """What the key was granted; where it says nothing, what the settings give to everybody."""
    return dataclasses.replace(
        own,
        max_running=default.max_running if own.max_running is None else own.max_running,
        max_waiting=default.max_waiting if own.max_waiting is None else own.max_waiting,
        tokens_per_minute=default.tokens_per_minute if own.tokens_per_minute is None else own.tokens_per_minute,
    )
