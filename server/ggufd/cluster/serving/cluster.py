"""A cluster as its owner handles it: deploy, look, scale, roll, remove. Over Ray's dashboard, without Ray here.

Each step says what Serve shall run and waits until it does; Serve decides how.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ggufd.cluster.serving.dashboard import Dashboard, RayError
from ggufd.cluster.serving.serve_config import (
    APPS,
    ENGINE,
    ENGINES_APP,
    INGRESS,
    INGRESS_APP,
    ClusterOptions,
    read_config,
    serve_config,
)

_POLL_S = 0.5
_GONE_S = 900.0
_FAILED = ("DEPLOY_FAILED", "UNHEALTHY")
_RAISED = re.compile(r"(?:[\w.]+\.)?(?:\w*Error|\w*Exception|Model\w+): (?P<what>.+)")
"""The last line of a traceback."""

OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class ReplicaRow:
    """One replica as Serve sees it."""

    replica_id: str
    node: str
    state: str
    pid: int


@dataclass(frozen=True)
class ClusterState:
    """What runs: the options that were deployed, and how far Serve is with them."""

    options: ClusterOptions
    status: str
    message: str
    n_wanted: int
    replicas: tuple[ReplicaRow, ...]
    ingresses: tuple[ReplicaRow, ...]

    @property
    def n_running(self) -> int:
        return sum(one.state == "RUNNING" for one in self.replicas)

    @property
    def is_ready(self) -> bool:
        """Whether all that was asked for runs, and nothing else."""
        wanted = (self.n_wanted, self.options.n_ingresses)
        running = (self.n_running, sum(one.state == "RUNNING" for one in self.ingresses))
        return self.status == "RUNNING" and running == wanted

    @property
    def progress(self) -> str:
        """How far it is, in a line."""
        text = f"{self.n_running} of {self.n_wanted} replicas are ready"
        others = sorted({one.state.lower() for one in self.replicas if one.state != "RUNNING"})
        return f"{text} (others: {', '.join(others)})" if others else text


class Cluster:
    """The cluster that Serve runs at a dashboard, or none."""

    def __init__(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard

    def state(self) -> ClusterState | None:
        """What runs; None where nothing was deployed, or it is being removed. Raises RayError."""
        return _state(self._dashboard.details())

    def require(self) -> ClusterState:
        """What runs. Raises RayError where nothing does."""
        found = self.state()
        if found is None:
            raise RayError("no cluster is deployed here; start one: ggufd cluster serve --replicas N")
        return found

    def deploy(self, options: ClusterOptions, on_progress: OnProgress = lambda _: None) -> ClusterState:
        """Run this, and wait until it does. Other applications of Serve stay as they are. Raises RayError."""
        details = self._dashboard.details()
        _check_address(options, details)
        config = serve_config(options)
        config["applications"] += _others(details)
        self._dashboard.deploy(config)
        return self._wait(on_progress)

    def remove(self, on_progress: OnProgress = lambda _: None) -> bool:
        """Let all replicas drain and end; False where nothing was deployed. Ends Serve, if nothing else runs there."""
        details = self._dashboard.details()
        ours = [name for name in APPS if name in details["applications"]]
        others = _others(details)
        if ours:
            self._dashboard.deploy({**_http_options(details), "applications": others})
            deadline_s = time.monotonic() + _GONE_S
            while any(name in self._dashboard.details()["applications"] for name in APPS):
                if time.monotonic() > deadline_s:
                    raise RayError(f"the replicas are still there after {_GONE_S:.0f} seconds")
                on_progress("replicas drain")
                time.sleep(_POLL_S)
        if not any(name not in APPS for name in details["applications"]):
            self._dashboard.shut_down()
        return bool(ours)

    def _wait(self, on_progress: OnProgress) -> ClusterState:
        while True:
            state = self.state()
            if state is not None:
                if state.status in _FAILED:
                    raise RayError(f"the deployment failed: {state.message}")
                if state.is_ready:
                    return state
                on_progress(state.progress)
            time.sleep(_POLL_S)


def _state(details: Mapping[str, Any]) -> ClusterState | None:
    apps = [details["applications"].get(name) for name in (ENGINES_APP, INGRESS_APP)]
    if any(app is None or app.get("deployed_app_config") is None for app in apps):
        return None
    engines, ingress = apps
    config = {"applications": [app["deployed_app_config"] for app in apps]}
    try:
        options = read_config(config, details["http_options"])
    except (KeyError, IndexError, TypeError):
        raise RayError(f"{ENGINES_APP} was deployed there by other means than ggufd cluster") from None
    return ClusterState(
        options=options,
        status=next((app["status"] for app in apps if app["status"] != "RUNNING"), "RUNNING"),
        message=_message(*apps),
        n_wanted=engines["deployments"].get(ENGINE, {}).get("target_num_replicas", 0),
        replicas=_rows(engines, ENGINE),
        ingresses=_rows(ingress, INGRESS),
    )


def _rows(app: Mapping[str, Any], name: str) -> tuple[ReplicaRow, ...]:
    found = app["deployments"].get(name, {}).get("replicas", ())
    rows = (
        ReplicaRow(_unique(one["replica_id"]), one.get("node_ip") or "", one["state"], one.get("pid") or 0)
        for one in found
    )
    return tuple(sorted(rows, key=lambda row: (row.node, row.replica_id)))


def _unique(replica_id: str) -> str:
    """The part of Serve's id that is the replica's own."""
    return replica_id.rpartition("#")[2]


def _message(*apps: Mapping[str, Any]) -> str:
    """What went wrong, in one line: the innermost error of the first deployment that has one."""
    texts = [deployment["message"] for app in apps for deployment in app["deployments"].values()]
    texts += [app["message"] for app in apps]
    for text in texts:
        if found := [line for line in map(str.strip, text.splitlines()) if line]:
            raised = [match["what"] for line in found if (match := _RAISED.match(line))]
            return raised[-1] if raised else found[0]
    return ""


def _check_address(options: ClusterOptions, details: Mapping[str, Any]) -> None:
    """Serve cannot change its address while it runs. Raises RayError."""
    now = details.get("http_options")
    if now and (now["host"], now["port"]) != (options.host, options.port):
        raise RayError(
            f"Ray Serve already listens at {now['host']}, port {now['port']}, and cannot change that: "
            f"set --host {now['host']} --port {now['port']}, or end it first with ggufd cluster down"
        )


def _others(details: Mapping[str, Any]) -> list[Any]:
    """Configs of the applications that are not this cluster's."""
    apps = details["applications"].items()
    return [app["deployed_app_config"] for name, app in apps if name not in APPS and app.get("deployed_app_config")]


def _http_options(details: Mapping[str, Any]) -> dict[str, Any]:
    now = details.get("http_options")
    return {"http_options": {"host": now["host"], "port": now["port"]}} if now else {}
