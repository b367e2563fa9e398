"""An ingress in a plain uvicorn on a free port of the loopback, in a thread, before a fixed list of replicas."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import uvicorn

from ggufd.cluster.ingress.app import Ingress
from ggufd.cluster.replicas import Replica


class StaticReplicas:
    """Replicas that a test lists, and may change."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        self.listed = [Replica(name, url) for name, url in urls.items()]

    async def all(self) -> Sequence[Replica]:
        """As listed."""
        return list(self.listed)


class InOrder:
    """A router that has no preference but the order of the list."""

    def __init__(self) -> None:
        self.open: Counter[str] = Counter()
        self.generations_s: list[float] = []

    def best(self, hint: Any, replicas: Sequence[Replica], avoid: Collection[str]) -> Replica | None:
        """The first of those that are not to be avoided."""
        return next((replica for replica in replicas if replica.id not in avoid), None)

    def opened(self, replica_id: str) -> None:
        """One more."""
        self.open[replica_id] += 1

    def closed(self, replica_id: str, generation_s: float | None) -> None:
        """One less."""
        self.open[replica_id] -= 1
        self.generations_s += [] if generation_s is None else [generation_s]


def no_hint(method: str, path: str, headers: Mapping[str, str], body: bytes, address: str) -> None:
    """No hint: any replica."""


class IngressServer:
    """A running ingress. `url` has no path."""

    def __init__(self, ingress: Ingress, replicas: StaticReplicas, router: Any) -> None:
        self.ingress = ingress
        self.replicas = replicas
        self.router = router
        config = uvicorn.Config(
            ingress,
            host="127.0.0.1",
            port=0,
            log_level="critical",
            lifespan="on",
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()))

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()
        for _ in range(1000):
            if self._server.started:
                return
            self._thread.join(0.01)
        raise RuntimeError("the ingress is not ready")

    def stop(self) -> None:
        """End, and what is under way with it."""
        self._server.should_exit = True
        self._thread.join(10)

    @property
    def url(self) -> str:
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def ingress_server(
    urls: Mapping[str, str], *, router: Any = None, token: str | None = None, **options: Any
) -> Iterator[IngressServer]:
    """An ingress before the replicas at these addresses, by name; ended when left."""
    replicas, router = StaticReplicas(urls), router or InOrder()
    options.setdefault("hint_of", no_hint)
    server = IngressServer(Ingress(replicas, router, token, **options), replicas, router)
    server.start()
    try:
        yield server
    finally:
        server.stop()
