"""`python -m ggufd.cluster.ingress PORT NAME=URL...`: an ingress before a fixed list of servers, without Ray.

For measurements and trials: it starts no server, finds none by itself, and listens on the loopback only. The token of
the servers is read from the file that GGUFD_PEER_TOKEN_FILE names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from ggufd.cluster.ingress.app import Ingress
from ggufd.cluster.replicas import Replica
from ggufd.cluster.routing.router import Router


class FixedReplicas:
    """Replicas that were listed once. Nothing is known of their load."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = replicas

    async def all(self) -> Sequence[Replica]:
        """As listed."""
        return self._replicas


def main(port: int, listed: Sequence[str]) -> None:
    """Serve until the process is ended."""
    pairs = (one.partition("=") for one in listed)
    replicas = FixedReplicas([Replica(name, url.rstrip("/")) for name, _, url in pairs])
    token_file = os.environ.get("GGUFD_PEER_TOKEN_FILE")
    token = Path(token_file).read_text("ascii").strip() if token_file else None
    app = Ingress(replicas, Router(), token)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False, proxy_headers=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
