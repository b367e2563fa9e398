"""Budget of large request bodies: what all open requests may hold of them at once. Knows no JSON.

A request with images is large, and is held as long as it is answered: without a bound on the sum, a few dozen of them
would fill the memory though each is within its limit.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ggufd.errors import Unavailable

ORDINARY_BYTES = 2_000_000
"""Bodies up to here are not counted."""

MAX_BYTES = 256 << 20

_SCOPE_SHARE = "ggufd.body_share"
_RETRY_S = 2.0
"""Retry-After; an assumption, for an answer may be short or long."""


class BodyBudget:
    """Bytes that bodies of open requests may take together."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.n_taken = 0


class BodyShare:
    """Part of the budget that one request has taken."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._n_bytes = 0

    def cover(self, n_bytes: int) -> None:
        """Take so much in all. Raises Unavailable where others hold too much; then nothing more is taken."""
        if n_bytes <= max(ORDINARY_BYTES, self._n_bytes):
            return
        more = n_bytes - self._n_bytes
        if self._budget.n_taken + more > self._budget.max_bytes:
            raise Unavailable(
                f"The large requests that are being answered have {self._budget.n_taken} bytes, and all together may "
                f"have {self._budget.max_bytes}. Try again when one has ended.",
                retry_after_s=_RETRY_S,
            )
        self._budget.n_taken += more
        self._n_bytes = n_bytes

    def give_back(self) -> None:
        """Give back all that was taken."""
        self._budget.n_taken -= self._n_bytes
        self._n_bytes = 0


def share_of(request: Request) -> BodyShare:
    """The share of this request; one of a budget of its own where the middleware is missing."""
    share: BodyShare = request.scope.get(_SCOPE_SHARE) or BodyShare(BodyBudget())
    return share


class BodyBudgetMiddleware:
    """Middleware that gives every request a share of the budget, and takes it back at its end."""

    def __init__(self, app: ASGIApp, budget: BodyBudget) -> None:
        self._app = app
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        share = BodyShare(self._budget)
        try:
            await self._app({**scope, _SCOPE_SHARE: share}, receive, send)
        finally:
            share.give_back()
