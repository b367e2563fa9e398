"""The network as a download sees it: names, addresses that are allowed, TLS. Tests have one of their own."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ggufd.images.fetching.addresses import is_public

Resolve = Callable[[str, int], Awaitable[list[str]]]

_RESOLVERS = 4
"""Names that are looked up at once. A name server that does not answer holds these threads and none of the others."""


def system_resolver() -> Resolve:
    """Resolver that asks the system, on threads of its own."""
    threads = ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="image-names")

    def look_up(host: str, port: int) -> list[str]:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))

    async def resolve(host: str, port: int) -> list[str]:
        return await asyncio.get_running_loop().run_in_executor(threads, look_up, host, port)

    return resolve


@dataclass(frozen=True, slots=True)
class Network:
    """Ways to the hosts: `resolve(host, port)` gives addresses or raises OSError."""

    resolve: Resolve = field(default_factory=system_resolver)
    is_allowed: Callable[[str], bool] = is_public
    tls: Callable[[], ssl.SSLContext] = ssl.create_default_context
