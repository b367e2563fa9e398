"""A cluster by Ray's dashboard, where a fake dashboard answers as Serve does."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import pytest

from ggufd.cluster.serving import cluster as module
from ggufd.cluster.serving.cluster import Cluster
from ggufd.cluster.serving.dashboard import Dashboard, RayError
from ggufd.cluster.serving.serve_config import (
    ENGINES_APP,
    HANDOVER_S,
    INGRESS_APP,
    ClusterOptions,
    read_config,
    serve_config,
    url_of,
)
from ggufd.errors import ConfigError

OPTIONS = ClusterOptions(n_replicas=2, tables={"model": {"model": "m.gguf"}, "server": {"drain_s": 5.0}}, folder="/f")
FOREIGN = {"name": "foreign", "import_path": "a:b", "route_prefix": "/other"}
TRACEBACK = """The deployment failed to start 3 times in a row. Error:
ray::ServeReplica:ggufd-engines:engine.initialize_and_get_metadata() (pid=1)
  File "x.py", line 3, in start
    await asyncio.wait_for(x)
ggufd.errors.StartupError: the server that was started ended with 1: ggufd: m.gguf: no such file
"""


class FakeServe(Dashboard):
    """Serve that has started one more replica at each look; `failure` is what the deployment says in place of that."""

    def __init__(self, *others: Mapping[str, Any], failure: str = "") -> None:
        self.deployed: list[dict[str, Any]] = []
        self.is_down = False
        self._config: dict[str, Any] = {"applications": list(others), "http_options": None}
        self._failure = failure
        self._n_ready = itertools.count()

    def details(self) -> dict[str, Any]:
        n_ready = next(self._n_ready)
        apps = {app["name"]: self._app(app, n_ready) for app in self._config["applications"]}
        return {"http_options": self._config["http_options"], "applications": apps}

    def deploy(self, config: Mapping[str, Any]) -> None:
        self._config = copy.deepcopy(dict(config))
        self.deployed.append(self._config)
        self._n_ready = itertools.count()

    def shut_down(self) -> None:
        self.is_down = True

    def _app(self, app: Mapping[str, Any], n_ready: int) -> dict[str, Any]:
        deployments = {one["name"]: self._deployment(one, n_ready) for one in app.get("deployments", ())}
        is_ready = all(one["message"] == "" and "STARTING" not in str(one) for one in deployments.values())
        status = (
            "DEPLOY_FAILED" if self._failure and app["name"] == ENGINES_APP else "RUNNING" if is_ready else "DEPLOYING"
        )
        return {"status": status, "message": "", "deployed_app_config": app, "deployments": deployments}

    def _deployment(self, one: Mapping[str, Any], n_ready: int) -> dict[str, Any]:
        n = one["num_replicas"]
        states = ["RUNNING" if number < n_ready else "STARTING" for number in range(n)]
        replicas = [
            {"replica_id": f"app#{one['name']}#r{number}", "node_ip": "10.0.0.1", "state": state, "pid": 7}
            for number, state in enumerate(states)
        ]
        message = self._failure if one["name"] == "engine" else ""
        return {"target_num_replicas": n, "replicas": replicas, "message": message}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_S", 0.0)


def test_a_deployment_is_waited_for_and_read_back() -> None:
    said: list[str] = []
    state = Cluster(FakeServe()).deploy(OPTIONS, said.append)
    assert said == ["0 of 2 replicas are ready (others: starting)", "1 of 2 replicas are ready (others: starting)"]
    assert state.options == OPTIONS
    assert [(row.replica_id, row.node, row.state) for row in state.replicas] == [
        ("r0", "10.0.0.1", "RUNNING"),
        ("r1", "10.0.0.1", "RUNNING"),
    ]


@pytest.mark.parametrize(
    "options",
    [
        OPTIONS,
        ClusterOptions(tables={}),
        ClusterOptions(n_replicas=2, max_replicas=5, n_gpus=0.5, per_node=2, tables={}, program=("a", "b"), n_rolls=3),
        ClusterOptions(max_replicas=2, shrink_after_s=20.0, tables={}, variables={"HF_HUB_OFFLINE": "1"}),
        ClusterOptions(n_ingresses=3, host="0.0.0.0", port=99, tables={"models": {"x": {"model": "y"}}}),
    ],
)
def test_what_is_deployed_can_be_read_from_it(options: ClusterOptions) -> None:
    config = serve_config(options)
    assert read_config(config, config["http_options"]) == options


def test_a_failure_is_told_by_its_innermost_error() -> None:
    with pytest.raises(RayError) as raised:
        Cluster(FakeServe(failure=TRACEBACK)).deploy(OPTIONS)
    assert raised.value.message == (
        "the deployment failed: the server that was started ended with 1: ggufd: m.gguf: no such file"
    )


def test_scaling_changes_nothing_that_serve_would_restart_for() -> None:
    before, after = serve_config(OPTIONS), serve_config(OPTIONS.scaled(5))
    assert after["applications"][0]["deployments"][0]["num_replicas"] == 5
    after["applications"][0]["deployments"][0]["num_replicas"] = 2
    assert after == before


def test_a_roll_changes_the_engines_alone() -> None:
    before, after = serve_config(OPTIONS), serve_config(OPTIONS.rolled({"model": {"model": "n.gguf"}}, "/g"))
    assert before["applications"][0]["args"] != after["applications"][0]["args"]
    assert before["applications"][1] == after["applications"][1]
    same = serve_config(OPTIONS.rolled(OPTIONS.tables or {}, OPTIONS.folder))
    assert same["applications"][0]["args"] != before["applications"][0]["args"]


def test_a_server_has_time_to_drain() -> None:
    (engine,) = serve_config(OPTIONS)["applications"][0]["deployments"]
    assert engine["graceful_shutdown_timeout_s"] > 5 + HANDOVER_S


def test_other_applications_stay() -> None:
    serve = FakeServe(FOREIGN)
    cluster = Cluster(serve)
    cluster.deploy(OPTIONS)
    assert [app["name"] for app in serve.deployed[-1]["applications"]] == [ENGINES_APP, INGRESS_APP, "foreign"]
    assert cluster.remove()
    assert serve.deployed[-1]["applications"] == [FOREIGN]
    assert not serve.is_down


def test_serve_ends_with_its_last_application() -> None:
    serve = FakeServe()
    cluster = Cluster(serve)
    cluster.deploy(OPTIONS)
    assert cluster.remove()
    assert serve.is_down
    assert not cluster.remove()


def test_an_address_that_serve_cannot_change_is_told() -> None:
    cluster = Cluster(FakeServe())
    cluster.deploy(OPTIONS)
    with pytest.raises(RayError, match=r"already listens at 127\.0\.0\.1, port 8080, and cannot change that"):
        cluster.deploy(ClusterOptions(n_replicas=2, port=1234))


def test_nothing_that_is_deployed_is_told() -> None:
    with pytest.raises(RayError, match="no cluster is deployed here"):
        Cluster(FakeServe(FOREIGN)).require()


def test_a_deployment_by_hand_is_not_taken_for_one_of_ours() -> None:
    apps = [{"name": name, "import_path": "a:b", "deployments": []} for name in (ENGINES_APP, INGRESS_APP)]
    with pytest.raises(RayError, match="by other means than ggufd cluster"):
        Cluster(FakeServe(*apps)).state()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"n_replicas": 0}, "--replicas 0: expected at least 1"),
        ({"n_ingresses": 0}, "--ingresses 0: expected at least 1"),
        ({"n_replicas": 3, "max_replicas": 3}, "--max-replicas 3: expected more than --replicas 3"),
        ({"max_replicas": 2, "shrink_after_s": 5}, "--shrink-after-s 5: expected at least 10 seconds"),
        ({"max_replicas": 2, "shrink_after_s": float("nan")}, "--shrink-after-s nan: expected at least 10 seconds"),
        ({"n_gpus": 1.5}, r"--gpus-per-replica 1\.5: expected a whole number"),
        ({"n_gpus": -1}, "--gpus-per-replica -1: expected a whole number"),
        ({"per_node": 0}, "--replicas-per-node 0: expected 1 to 100"),
    ],
)
def test_sizes_that_cannot_be_are_told(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        ClusterOptions(**changes)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("fd00::1", "http://[fd00::1]:80"),
        ("h", "http://h:80"),
    ],
)
def test_the_address_is_one_that_can_be_asked(host: str, url: str) -> None:
    assert url_of(host, 80) == url


def test_serve_itself_understands_the_config() -> None:
    schema = pytest.importorskip("ray.serve.schema")
    for options in (OPTIONS, ClusterOptions(n_replicas=2, max_replicas=5, n_gpus=1.0, per_node=2)):
        read = schema.ServeDeploySchema.model_validate(serve_config(options))
        assert [app.name for app in read.applications] == [ENGINES_APP, INGRESS_APP]
