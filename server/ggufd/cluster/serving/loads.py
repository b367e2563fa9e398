"""Loads of the replicas as the directory has them, asked from outside of Ray's actors."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

_ASK_S = 10.0


@dataclass(frozen=True, slots=True)
class Load:
    """What a replica told of itself last."""

    url: str
    running: int
    waiting: int
    n_slots: int
    kv_used: float


def loads() -> dict[str, Load]:
    """By the replica's id; nothing from a machine that has no part in Ray, or while the directory is gone."""
    import ray

    from ggufd.cluster.serving.directory_actor import NAMESPACE, find

    try:
        ray.init(
            address=os.environ.get("RAY_ADDRESS", "auto"),
            namespace=NAMESPACE,
            log_to_driver=False,
            configure_logging=False,
            logging_level=logging.CRITICAL,
        )
        replicas = ray.get(find().replicas.remote(), timeout=_ASK_S)
    except Exception:
        # It may be anything of Ray's. A table without loads is better than none.
        return {}
    finally:
        ray.shutdown()
    return {
        one.id: Load(one.url, one.load.running, one.load.waiting, one.load.n_slots, one.load.kv_used)
        for one in replicas
    }
