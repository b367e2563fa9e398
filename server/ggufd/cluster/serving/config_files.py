"""The same deployment as files: for `serve deploy`, and for KubeRay on Kubernetes."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from typing import Any

import yaml

from ggufd.cluster.serving.serve_config import CONTROLLER_VARIABLES, SERVE_VARIABLES, ClusterOptions, serve_config
from ggufd.errors import ConfigError

_PORTS = {"gcs": 6379, "dashboard": 8265, "serve": 8000}
"""Ports of the containers by the names that KubeRay looks for."""

_NAME_LENGTH = 40


def serve_file(options: ClusterOptions) -> str:
    """Serve's config file."""
    return _yaml(serve_config(options))


def ray_service(options: ClusterOptions, name: str, image: str) -> str:
    """A RayService: its Ray cluster has a machine for each replica, or for as many as one may have.

    Where replicas come and go with the load, machines do too, by Ray's own autoscaler.

    Raises ConfigError for a name that Kubernetes does not take.
    """
    if not (name and len(name) <= _NAME_LENGTH and name[0].isalpha() and name.islower() and _is_label(name)):
        raise ConfigError(f"--name {name}: expected small letters, digits and -, at most {_NAME_LENGTH}, letter first")
    inside = replace(options, host="0.0.0.0", port=_PORTS["serve"], folder="")
    workers, most = (-(-n // (options.per_node or 1)) for n in (options.n_replicas, options.most_replicas))
    manifest = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": name},
        "spec": {
            "serveConfigV2": _Block(_yaml(serve_config(inside))),
            "rayClusterConfig": {
                "rayVersion": importlib.metadata.version("ray"),
                **({"enableInTreeAutoscaling": True} if most > workers else {}),
                "headGroupSpec": {
                    "rayStartParams": {"dashboard-host": "0.0.0.0", "num-gpus": "0"},
                    "template": _pod("ray-head", image, 0),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "engines",
                        "replicas": workers,
                        "minReplicas": workers,
                        "maxReplicas": most,
                        "rayStartParams": {},
                        "template": _pod("ray-worker", image, options.n_gpus * (options.per_node or 1)),
                    }
                ],
            },
        },
    }
    return _yaml(manifest)


def _is_label(name: str) -> bool:
    return name.replace("-", "").isalnum() and name.isascii() and not name.endswith("-")


def _pod(name: str, image: str, n_gpus: float) -> dict[str, Any]:
    variables = {**CONTROLLER_VARIABLES, **SERVE_VARIABLES}
    container: dict[str, Any] = {
        "name": name,
        "image": image,
        "env": [{"name": key, "value": value} for key, value in variables.items()],
        "ports": [{"name": key, "containerPort": port} for key, port in _PORTS.items()],
    }
    if n_gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": max(1, round(n_gpus))}}
    return {"spec": {"containers": [container]}}


class _Block(str):
    """Text that is written as a block, line by line."""


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """YAML without aliases, which a reader would have to follow."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _block(dumper: yaml.SafeDumper, text: _Block) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="|")


_Dumper.add_representer(_Block, _block)


def _yaml(data: Any) -> str:
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text
