"""The cluster that runs, and plain Ray Serve over as many of the same servers beside it, measured in turns."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ggufd.bench.beside import plain_serve
from ggufd.bench.beside.growing_chats import ChatLoad, play
from ggufd.bench.measure.client import BenchError, Client
from ggufd.bench.measure.output import say
from ggufd.bench.measure.report import Sheet

NAMES = ["the cluster's ingress", "plain Ray Serve: power of two choices"]

_SERVE_PATH = "/api/serve/applications/"
_ENGINES = "ggufd-engines"
_WARM_UP = ChatLoad(n_chats=4, n_turns=2, n_clients=4, opening=60)


@dataclass(frozen=True, slots=True)
class DeployedCluster:
    """What the cluster runs, as Ray's dashboard tells it."""

    url: str
    n_replicas: int
    n_gpus: float
    settings: Mapping[str, Any]
    folder: str

    @classmethod
    def of(cls, details: Mapping[str, Any]) -> DeployedCluster:
        """From what Serve tells of its applications. Raises BenchError where no cluster is among them."""
        try:
            app, http = details["applications"][_ENGINES], details["http_options"]
            engine = app["deployments"]["engine"]
            arguments = app["deployed_app_config"]["args"]
            host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(http["host"], http["host"])
            options = app["deployed_app_config"]["deployments"][0]["ray_actor_options"]
            n_replicas = engine["target_num_replicas"]
            url = f"http://{host}:{http['port']}"
            return cls(url, n_replicas, options["num_gpus"], arguments["tables"], arguments["folder"])
        except (KeyError, IndexError, TypeError):
            raise BenchError("no cluster runs on this Ray; start one: ggufd cluster serve --replicas N") from None


def compare(dashboard: str, load: ChatLoad, rounds: int, seed: int, api_key: str | None = None) -> Sheet:
    """Play the load at both, once a round each, with the same new texts. Raises BenchError."""
    missing = next((name for name in ("ray", "aiohttp") if importlib.util.find_spec(name) is None), None)
    if missing is not None:
        raise BenchError(f"--chats needs {missing}: pip install 'ggufd[cluster]'")
    found = DeployedCluster.of(asyncio.run(Client(dashboard).get(_SERVE_PATH)))
    say(f"{found.n_replicas} replicas at {found.url}; as many are started behind plain Ray Serve")
    sheet = Sheet([f"{name}, {found.n_replicas} replicas" for name in NAMES])
    with plain_serve.deployed(found.n_replicas, found.settings, found.folder, found.n_gpus):
        urls = (found.url, found.url + plain_serve.PREFIX)
        asyncio.run(_measure([Client(url, api_key=api_key) for url in urls], load, rounds, seed, sheet))
    return sheet


async def _measure(clients: list[Client], load: ChatLoad, rounds: int, seed: int, sheet: Sheet) -> None:
    for side, client in enumerate(clients):
        await play(client, _WARM_UP, seed, "warm-up", side)
    for repetition in range(rounds):
        for side in (0, 1) if repetition % 2 == 0 else (1, 0):
            played = await play(clients[side], load, seed, repetition)
            sheet.add(repetition, side, played.figures("chats", load.case))
            say(f"round {repetition + 1} of {rounds}, {NAMES[side]}: {played.seconds:.1f} s")
            if played.errors:
                sheet.warnings.append(f"{NAMES[side]}: {len(played.errors)} requests failed: {played.errors[0]}")
