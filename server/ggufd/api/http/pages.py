"""Origin and host checks against other web pages (CSRF, DNS rebinding), for a server without keys.

A page in a browser on this machine can reach what listens on its loopback. By DNS rebinding it does so under a name of
its own, and reads the answers; by a plain form it sends what it likes, unread. Neither works where keys are asked for:
no page has one. Knows no route.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ggufd.api.http.cors import LOCAL, LOCAL_ORIGIN
from ggufd.api.http.json_response import error_response
from ggufd.api.http.record import note_error
from ggufd.errors import ForeignPage

_OWN = (".localhost", ".internal")
"""Ends of names that nobody can register: browsers resolve the first here, containers call their host by the second."""

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([\w.-]*))(?::\d*)?")


class OriginMiddleware:
    """Middleware that refuses hosts outside `hosts`, loopback names and addresses, and origins outside `origins`."""

    def __init__(self, app: ASGIApp, hosts: Sequence[str], origins: Sequence[str]) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._fault(Headers(scope=scope)) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
        else:
            note_error(scope, error.code)
            await error_response(error, scope)(scope, receive, send)

    def _fault(self, headers: Headers) -> ForeignPage | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._knows(host):
            return ForeignPage(
                f"This server was asked for as {host[:80]!a}, which is not a name it goes by. If it should be, start "
                f"it with --allowed-hosts, or with a key."
            )
        if origin is not None and not self._may_call(origin, host):
            return ForeignPage(
                f"Pages of {origin[:80]!a} may not call this server. If they should, start it with --cors-origins, or "
                f"with a key."
            )
        return None

    def _knows(self, host: str) -> bool:
        name = _name(host)
        return (
            name in ("", "localhost")
            or name.endswith(_OWN)
            or _is_address(name)
            or not self._hosts.isdisjoint((name, "*"))
        )

    def _may_call(self, origin: str, host: str) -> bool:
        """Its own pages may, those that are configured, and what is no page: extensions have schemes of their own."""
        scheme, _, place = origin.partition("://")
        is_page = origin == "null" or scheme in ("http", "https", "file")
        is_local = LOCAL in self._origins and re.fullmatch(LOCAL_ORIGIN, origin) is not None
        return not is_page or is_local or place == host or not self._origins.isdisjoint((origin, "*"))


def _name(host: str) -> str:
    """The name or address of a Host header, without its port; all of it where it is neither."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]).rstrip(".").lower() if found else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
