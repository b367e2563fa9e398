"""Visibility in the live view: a caller's own rows and the totals, or everybody's rows.

With keys an admin sees everybody's. Without keys whoever is on this machine does, as long as the server listens nowhere
else: an address is a person then, and one that a proxy sent on is nobody in particular.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from ggufd.api.services.locality import is_forwarded, is_of_this_machine
from ggufd.api.services.services import caller_of, services_of


@dataclass(frozen=True, slots=True)
class Sight:
    """What one caller may see. `person` is that of its principal; "" has no rows of its own."""

    sees_all: bool
    person: str = ""

    @classmethod
    def of(cls, request: Request) -> Sight:
        """The sight of who sent a request."""
        caller, config = caller_of(request), services_of(request).config
        if config.keys is not None:
            return cls(caller.is_admin, caller.principal.person)
        if is_forwarded(request) and not config.trusts_proxies:
            return cls(sees_all=False)
        return cls(is_of_this_machine(request, config), caller.principal.person)

    def shows(self, person: str) -> bool:
        """Whether rows of a person are shown, and may be acted on."""
        return self.sees_all or (person != "" and person == self.person)
