"""A deployment as plain data, and the Serve config that it is: what is deployed, and what is written to files.

Scaling changes options of a deployment only, which Serve applies without a restart; settings are arguments of the
engines' application, and a change of them rolls it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ggufd.cluster.routing.autoscaling import ScalingRules
from ggufd.cluster.serving.launch import Tables
from ggufd.errors import ConfigError

ENGINES_APP = "ggufd-engines"
INGRESS_APP = "ggufd"
APPS = (ENGINES_APP, INGRESS_APP)

ENGINE = "engine"
INGRESS = "ingress"

_MODULE = "ggufd.cluster.serving.deployments"
_POLICY_MODULE = "ggufd.cluster.serving.scaling"

SHRINK_AFTER_S = ScalingRules().shrink_after_s
LEAST_SHRINK_AFTER_S = 10.0

HANDOVER_S = 60.0
"""What handing chats over may take before a drain."""

_END_S = 20.0
_INGRESS_DRAIN_S = 600.0
"""An ingress that ends finishes its streams for so long."""

_MAX_REQUESTS = 100_000
"""Of one deployment: the limits of the queue are each server's own."""

_HEALTH = {"health_check_period_s": 2.0, "health_check_timeout_s": 10.0}
"""Serve's own are 10 and 30 seconds, so that a dead server would be missed after half a minute."""

CONTROLLER_VARIABLES = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}

SERVE_VARIABLES = {
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    # Streams that began before a reload of HAProxy have this long to end; its own choice is two minutes.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3600",
}
"""Of every machine's Ray, wherever that is started."""


@dataclass(frozen=True)
class ClusterOptions:
    """What is deployed. `tables` are the settings of each server, `folder` is where its relative paths begin.

    With `max_replicas` there are as many as the load needs, from `n_replicas` up to that; fewer once fewer were enough
    for `shrink_after_s`.

    `variables` are of each server's environment. `n_rolls` makes a roll of what has not changed. `program` is what
    replicas start in place of `ggufd serve`.
    """

    n_replicas: int = 1
    max_replicas: int | None = None
    shrink_after_s: float = SHRINK_AFTER_S
    n_ingresses: int = 1
    n_gpus: float = 0.0
    per_node: int | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    tables: Tables | None = None
    folder: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    n_rolls: int = 0
    program: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.n_replicas < 1:
            raise ConfigError(f"--replicas {self.n_replicas}: expected at least 1")
        if self.max_replicas is not None and self.max_replicas <= self.n_replicas:
            raise ConfigError(f"--max-replicas {self.max_replicas}: expected more than --replicas {self.n_replicas}")
        if not self.shrink_after_s >= LEAST_SHRINK_AFTER_S:
            raise ConfigError(
                f"--shrink-after-s {self.shrink_after_s:g}: expected at least {LEAST_SHRINK_AFTER_S:g} seconds, "
                f"so that servers do not come and go with each request"
            )
        if self.n_ingresses < 1:
            raise ConfigError(f"--ingresses {self.n_ingresses}: expected at least 1")
        if self.n_gpus < 0 or (self.n_gpus > 1 and self.n_gpus != int(self.n_gpus)):
            raise ConfigError(
                f"--gpus-per-replica {self.n_gpus:g}: expected a whole number, or a part of 1 such as 0.5"
            )
        if self.per_node is not None and not 1 <= self.per_node <= 100:
            raise ConfigError(f"--replicas-per-node {self.per_node}: expected 1 to 100")

    @property
    def server(self) -> Mapping[str, Any]:
        """Settings of the section `server` that are no defaults."""
        return (self.tables or {}).get("server", {})

    @property
    def most_replicas(self) -> int:
        """As many as there may be under any load."""
        return self.max_replicas or self.n_replicas

    @property
    def url(self) -> str:
        """The address of the cluster as seen from this machine."""
        return url_of(self.host, self.port)

    def scaled(self, n_replicas: int) -> ClusterOptions:
        return replace(self, n_replicas=n_replicas)

    def rolled(self, tables: Tables, folder: str, variables: Mapping[str, str] | None = None) -> ClusterOptions:
        """The same with new settings, which all replicas are started with, and further `variables`."""
        together = {**self.variables, **(variables or {})}
        return replace(self, tables=tables, folder=folder, variables=together, n_rolls=self.n_rolls + 1)


def url_of(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def serve_config(options: ClusterOptions) -> dict[str, Any]:
    """Serve's own config file for `options`, as data."""
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": options.host, "port": options.port},
        "controller_options": {"runtime_env": {"env_vars": dict(CONTROLLER_VARIABLES)}},
        "logging_config": {"enable_access_log": False},
        "applications": [_engines(options), _ingress(options)],
    }


def _engines(options: ClusterOptions) -> dict[str, Any]:
    drain_s = float(options.server.get("drain_s", 30.0))
    arguments: dict[str, Any] = {
        "tables": _plain(options.tables or {}),
        "folder": options.folder,
        "drain_s": drain_s,
        "n_rolls": options.n_rolls,
    }
    if options.variables:
        arguments["variables"] = dict(options.variables)
    if options.program:
        arguments["program"] = list(options.program)
    deployment: dict[str, Any] = {
        "name": ENGINE,
        **_number(options),
        "max_ongoing_requests": _MAX_REQUESTS,
        "graceful_shutdown_timeout_s": drain_s + HANDOVER_S + _END_S,
        "ray_actor_options": {"num_cpus": 0.0, "num_gpus": options.n_gpus},
        **_HEALTH,
    }
    if options.per_node is not None:
        deployment["max_replicas_per_node"] = options.per_node
    return {
        "name": ENGINES_APP,
        "route_prefix": None,
        "import_path": f"{_MODULE}:engines",
        "args": arguments,
        "deployments": [deployment],
    }


def _number(options: ClusterOptions) -> dict[str, Any]:
    if options.max_replicas is None:
        return {"num_replicas": options.n_replicas}
    # The policy has a pace of its own, so Serve adds no delay.
    scaling = {
        "min_replicas": options.n_replicas,
        "max_replicas": options.max_replicas,
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 0.0,
        "policy": {
            "policy_function": f"{_POLICY_MODULE}:Policy",
            "policy_kwargs": {"shrink_after_s": options.shrink_after_s},
        },
    }
    return {"autoscaling_config": scaling}


def _ingress(options: ClusterOptions) -> dict[str, Any]:
    names = ("max_body_bytes", "root_path", "trusted_proxies")
    return {
        "name": INGRESS_APP,
        "route_prefix": "/",
        "import_path": f"{_MODULE}:ingress",
        "args": {name: options.server[name] for name in names if options.server.get(name) is not None},
        "deployments": [
            {
                "name": INGRESS,
                "num_replicas": options.n_ingresses,
                "max_ongoing_requests": _MAX_REQUESTS,
                "max_surge_percent": 100,
                "graceful_shutdown_timeout_s": _INGRESS_DRAIN_S,
                "ray_actor_options": {"num_cpus": 0.0},
                **_HEALTH,
            }
        ],
    }


def _plain(tables: Tables) -> dict[str, Any]:
    return {section: dict(keys) for section, keys in tables.items()}


def read_config(config: Mapping[str, Any], http: Mapping[str, Any]) -> ClusterOptions:
    """The options that a Serve config was made of. Raises KeyError where it was not made by `serve_config`."""
    apps = {app["name"]: app for app in config["applications"]}
    engines, ingress = apps[ENGINES_APP], apps[INGRESS_APP]
    arguments, engine = engines["args"], engines["deployments"][0]
    scaling = engine.get("autoscaling_config") or {}
    return ClusterOptions(
        n_replicas=scaling["min_replicas"] if scaling else engine["num_replicas"],
        max_replicas=scaling.get("max_replicas"),
        shrink_after_s=scaling["policy"]["policy_kwargs"]["shrink_after_s"] if scaling else SHRINK_AFTER_S,
        n_ingresses=ingress["deployments"][0]["num_replicas"],
        n_gpus=engine["ray_actor_options"].get("num_gpus", 0.0),
        per_node=engine.get("max_replicas_per_node"),
        host=http["host"],
        port=http["port"],
        tables=arguments["tables"],
        folder=arguments["folder"],
        variables=arguments.get("variables", {}),
        n_rolls=arguments["n_rolls"],
        program=tuple(arguments.get("program", ())),
    )
