"""On whose account a request goes, what that account may take, and how urgent its owner may call it. Knows no route."""

from __future__ import annotations

import dataclasses

from ggufd.api.services.activity import Owner
from ggufd.api.services.settings import ApiConfig
from ggufd.errors import InvalidRequest
from ggufd.keys.ring import Limits

_USERS_PRIORITY = 0
"""What a user's key may ask for at most, unless it was granted more; an admin's may ask for any."""


def account_of(owner: Owner, config: ApiConfig) -> str:
    """The key's name. Without keys each address has an account, or all share one, as configured."""
    return owner.key or (owner.address if config.share_by_address else "")


def limits_of(owner: Owner, config: ApiConfig) -> Limits:
    """What the key was granted; where it says nothing, what the settings give to everybody."""
    own, default = owner.limits, config.limits
    return dataclasses.replace(
        own,
        max_running=default.max_running if own.max_running is None else own.max_running,
        max_waiting=default.max_waiting if own.max_waiting is None else own.max_waiting,
        tokens_per_minute=default.tokens_per_minute if own.tokens_per_minute is None else own.tokens_per_minute,
    )


def check_priority(priority: int, owner: Owner) -> None:
    """Raises InvalidRequest for a priority above what the owner may ask for. A lower number is more urgent."""
    granted = owner.limits.max_priority
    most_urgent = _USERS_PRIORITY if granted is None and not owner.is_admin else granted
    if most_urgent is not None and priority < most_urgent:
        raise InvalidRequest(
            f"'priority': this key may ask for {most_urgent} or a higher number, which is less urgent; got {priority}.",
            param="priority",
        )
