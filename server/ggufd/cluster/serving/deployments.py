"""Deployments on Ray Serve, which starts, checks, scales, rolls and drains them.

Two applications: the engines, and the ingress in front of them, so that one is rolled without the other. `engines` and
`ingress` build them of plain data, as a Serve config names them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import serve
from ray.serve import Application

from ggufd.cluster.ingress.app import Ingress
from ggufd.cluster.moving.mover import ChatMover
from ggufd.cluster.replicas import Replica
from ggufd.cluster.routing.router import Router
from ggufd.cluster.serving.directory_actor import DirectoryClient
from ggufd.cluster.serving.known_replicas import KnownReplicas
from ggufd.cluster.serving.launch import Launch
from ggufd.cluster.serving.replica import EngineReplica
from ggufd.cluster.serving.scaling import figures_of
from ggufd.cluster.serving.serve_config import ENGINE, HANDOVER_S, INGRESS


def _write_log() -> None:
    """Have what this process logs in the file that Ray keeps of its standard error: by itself it has warnings only."""
    logger = logging.getLogger("ggufd")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)


class EngineActor:
    """Actor around one replica: what Serve calls of it."""

    async def __init__(self, settings: Mapping[str, Any]) -> None:  # type: ignore[misc]
        _write_log()
        directory = DirectoryClient()
        launch = Launch(
            settings["tables"],
            await directory.token(),
            host=ray.util.get_node_ip_address(),  # type: ignore[no-untyped-call]
            folder=settings.get("folder", ""),
            variables=settings.get("variables", {}),
            **({"program": tuple(settings["program"])} if settings.get("program") else {}),
        )
        replica_id = serve.get_replica_context().replica_id.unique_id
        mover = ChatMover(KnownReplicas(directory.replicas), Router().home, launch.token, HANDOVER_S)
        self._replica = EngineReplica(replica_id, launch, directory, mover, settings["drain_s"])
        try:
            await self._replica.start()
        except BaseException:
            await self._replica.stop()
            raise

    async def check_health(self) -> None:
        await self._replica.check()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Load for the autoscaling policy."""
        return figures_of(self._replica.load)

    async def __del__(self) -> None:
        await self._replica.stop()


class EnginesEntry:
    """Entry of the engines' application, which every application of Serve has.

    It takes no requests. Serve keeps an entry open for a while before it ends it; the engines have a drain of their
    own, and need not wait for that.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine


def engines(settings: dict[str, Any]) -> Application:
    """The engines' application, of what `serve_config` writes for it."""
    engine: Any = serve.deployment(EngineActor, name=ENGINE)
    entry: Any = serve.deployment(EnginesEntry, name="entry", ray_actor_options={"num_cpus": 0})
    application: Application = entry.bind(engine.bind(settings))
    return application


class IngressActor:
    """Actor around one ingress, whose requests Serve takes from HAProxy."""

    async def __init__(self, settings: Mapping[str, Any]) -> None:  # type: ignore[misc]
        _write_log()
        self._directory = DirectoryClient()
        token = await self._directory.token()
        self._router = Router()
        self._name = serve.get_replica_context().replica_id.unique_id
        # Serve puts the request's id into its headers, and adds it to each answer once more.
        replicas, twice = KnownReplicas(self._look), ("x-request-id",)
        self._app = Ingress(replicas, self._router, token, told_by_server=twice, **settings)

    async def _look(self) -> Sequence[Replica]:
        """The replicas, after this ingress and the others have told each other which conversations left their home."""
        moves = await self._directory.exchange_moves(self._name, self._router.take_moves())
        self._router.learn_moves(moves)
        return await self._directory.replicas()

    def __serve_build_asgi_app__(self) -> Any:
        """The application, made where the actor runs. Not public: Ray's version is pinned, and tests start it."""
        return self._app


def ingress(settings: dict[str, Any]) -> Application:
    """The application of the ingress, of what `serve_config` writes for it."""
    deployment: Any = serve.deployment(serve.ingress()(IngressActor), name=INGRESS)
    application: Application = deployment.bind(settings)
    return application
