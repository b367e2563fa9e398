"""`ggufd cluster` without Ray: what it refuses, what it prints, what it hands on."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ggufd import cluster_cli
from ggufd.cli import main
from ggufd.cluster.serving.cluster import Cluster, ClusterState, ReplicaRow
from ggufd.cluster.serving.dashboard import Dashboard
from ggufd.cluster.serving.loads import Load
from ggufd.cluster.serving.ray_head import PORTS
from ggufd.cluster.serving.serve_config import ClusterOptions
from ggufd.keys import file


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings but the test's, and no Ray."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", "http://127.0.0.1:9")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@dataclass
class Said:
    """What a command printed, and how it ended."""

    out: str
    err: str
    code: int


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Said:
    with pytest.raises(SystemExit) as ended:
        main(["cluster", *arguments])
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return Said(out, err, ended.value.code)


def config(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    said = run(capsys, "config", *arguments)
    assert (said.code, said.err) == (0, "")
    return yaml.safe_load(said.out)


class TestWithoutRay:
    def test_it_is_started_only_with_the_word_and_its_ports_are_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        said = run(capsys, "serve", "--replicas", "2")
        assert said.code == 1
        assert "--ports-are-shut" in said.err
        assert all(numbers in said.err for numbers, _ in PORTS)

    def test_one_that_is_named_and_does_not_answer_is_not_replaced_by_another(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        said = run(capsys, "serve", "--ports-are-shut")
        assert (said.code, said.out) == (1, "")
        assert "RAY_ADDRESS is 10.0.0.1:6379, and no dashboard answers at http://127.0.0.1:9" in said.err

    @pytest.mark.parametrize("command", [["status"], ["scale", "2"], ["roll"]])
    def test_what_needs_a_cluster_says_so_in_a_line(
        self, command: Sequence[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        said = run(capsys, *command)
        assert (said.code, said.out) == (1, "")
        assert "Ray's dashboard at 127.0.0.1:9 gives no answer" in said.err
        assert "ggufd cluster serve" in said.err
        assert said.err.count("\n") == 1

    def test_nothing_to_end_is_told(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "no Ray runs here" in run(capsys, "down").err

    def test_what_to_install_is_told(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest)
        )
        said = run(capsys, "serve", "--replicas", "2")
        assert (said.code, said.err) == (1, "ggufd: cluster needs ray: pip install 'ggufd[cluster]'\n")


class TestSettings:
    def test_all_sources_hold_for_the_replicas(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "config.toml").write_text("[context]\nctx_size = 4096\nparallel = 3\n")
        monkeypatch.setenv("GGUFD_PARALLEL", "2")
        monkeypatch.setenv("LLAMA_ARG_THREADS", "5")
        found = config(capsys, "--replicas", "3", "--ingresses", "2", "-m", "m.gguf", "--port", "81")
        engines, ingress = found["applications"]
        assert engines["args"]["tables"] == {
            "model": {"model": "m.gguf"},
            "context": {"ctx_size": 4096, "parallel": 2, "threads": 5},
            "server": {"allowed_hosts": ["localhost"]},
        }
        assert engines["args"]["folder"] == str(tmp_path)
        assert engines["deployments"][0]["num_replicas"] == 3
        assert ingress["deployments"][0]["num_replicas"] == 2
        assert found["http_options"] == {"host": "127.0.0.1", "port": 81}

    def test_a_key_file_is_named_by_its_full_path_and_no_key_is_in_the_config(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        key = file.add(tmp_path / "keys.toml", "ann", {})
        said = run(capsys, "config", "--api-key-file", "keys.toml", "--host", "0.0.0.0")
        assert yaml.safe_load(said.out)["applications"][0]["args"]["tables"]["server"] == {
            "api_key_file": str(tmp_path / "keys.toml")
        }
        assert key not in said.out

    def test_the_bounds_and_the_pace_of_scaling_are_the_engines(self, capsys: pytest.CaptureFixture[str]) -> None:
        given = ["--replicas", "2", "--max-replicas", "8", "--shrink-after-s", "60"]
        engines, _ = config(capsys, *given)["applications"]
        scaling = engines["deployments"][0]["autoscaling_config"]
        assert (scaling["min_replicas"], scaling["max_replicas"]) == (2, 8)
        assert scaling["policy"]["policy_kwargs"] == {"shrink_after_s": 60.0}

    def test_a_prefix_and_proxies_reach_the_ingress(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, ingress = config(capsys, "--root-path", "/llm", "--trusted-proxies", "10.0.0.1")["applications"]
        assert ingress["args"] == {"root_path": "/llm", "trusted_proxies": ["10.0.0.1"]}

    @pytest.mark.parametrize(
        ("arguments", "what"),
        [
            (["--api-key", "secret"], "can be read on Ray's dashboard"),
            (["--host", "0.0.0.0"], "no key is set"),
            (["--ssl-key-file", "k", "--ssl-cert-file", "c"], "put a proxy with TLS in front"),
            (["--peer-token-file", "t"], "makes a token of its own"),
            (["--port", "0"], "expected one address and one port"),
            (["--host", "127.0.0.1,10.0.0.1", "--allow-unauthenticated"], "expected one address and one port"),
            (["--replicas", "0"], "--replicas 0: expected at least 1"),
            (["--ctx-size", "many"], "--ctx-size"),
        ],
    )
    def test_what_a_cluster_cannot_have_is_refused(
        self, arguments: Sequence[str], what: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        said = run(capsys, "config", *arguments)
        assert (said.code, said.out) == (1, "")
        assert what in said.err
        assert "secret" not in said.err


class TestKubernetes:
    def test_the_manifest_holds_the_same_config(self, capsys: pytest.CaptureFixture[str]) -> None:
        sizes = ["--replicas", "5", "--replicas-per-node", "2", "--gpus-per-replica", "1", "--allow-unauthenticated"]
        found = config(capsys, "--kubernetes", "--host", "0.0.0.0", "--image", "i:1", "--name", "llm", *sizes)
        assert (found["kind"], found["metadata"]["name"]) == ("RayService", "llm")
        spec = found["spec"]
        serve = yaml.safe_load(spec["serveConfigV2"])
        assert serve["http_options"] == {"host": "0.0.0.0", "port": 8000}
        assert serve["applications"][0]["deployments"][0]["num_replicas"] == 5
        (workers,) = spec["rayClusterConfig"]["workerGroupSpecs"]
        assert workers["replicas"] == 3
        (container,) = workers["template"]["spec"]["containers"]
        assert container["image"] == "i:1"
        assert container["resources"] == {"limits": {"nvidia.com/gpu": 2}}
        assert {"name": "RAY_SERVE_ENABLE_HA_PROXY", "value": "1"} in container["env"]

    def test_a_key_file_is_the_one_of_its_containers(self, capsys: pytest.CaptureFixture[str]) -> None:
        given = ["--kubernetes", "--host", "0.0.0.0", "--api-key-file", "/keys/keys.toml"]
        serve = yaml.safe_load(config(capsys, *given)["spec"]["serveConfigV2"])
        assert serve["applications"][0]["args"]["tables"]["server"] == {"api_key_file": "/keys/keys.toml"}

    @pytest.mark.parametrize("name", ["", "Big", "a_b", "-a", "a-", "x" * 41])
    def test_a_name_that_kubernetes_refuses_is_told(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert "expected small letters" in run(capsys, "config", "--kubernetes", "--name", name).err


class TestRunning:
    """With a cluster that the test has in place of Ray's."""

    STATE = ClusterState(
        options=ClusterOptions(
            n_replicas=2, tables={"context": {"threads": 3}, "server": {"drain_s": 2.0}}, folder="/f"
        ),
        status="RUNNING",
        message="",
        n_wanted=2,
        replicas=(ReplicaRow("r1", "10.0.0.1", "RUNNING", 5), ReplicaRow("r2", "10.0.0.2", "RUNNING", 6)),
        ingresses=(ReplicaRow("i1", "10.0.0.1", "RUNNING", 7),),
    )

    @pytest.fixture(autouse=True)
    def cluster(self, monkeypatch: pytest.MonkeyPatch) -> list[ClusterOptions]:
        deployed: list[ClusterOptions] = []

        def deploy(_: Cluster, options: ClusterOptions, on_progress: Any) -> ClusterState:
            deployed.append(options)
            on_progress("1 of 2 replicas are ready")
            on_progress("1 of 2 replicas are ready")
            return self.STATE

        monkeypatch.setattr(Dashboard, "is_there", lambda _: True)
        monkeypatch.setattr(Cluster, "state", lambda _: self.STATE)
        monkeypatch.setattr(Cluster, "deploy", deploy)
        monkeypatch.setattr(cluster_cli, "loads", lambda: {"r1": Load("http://10.0.0.1:5", 1, 2, 4, 0.256)})
        monkeypatch.setenv("COLUMNS", "100")
        return deployed

    def test_a_running_ray_is_joined_without_the_word(
        self, cluster: list[ClusterOptions], capsys: pytest.CaptureFixture[str]
    ) -> None:
        said = run(capsys, "serve", "--replicas", "2", "--max-replicas", "4")
        assert said.code == 0
        assert [(one.n_replicas, one.max_replicas) for one in cluster] == [(2, 4)]
        assert said.err == "deploying ...\ndeploying: 1 of 2 replicas are ready\n"
        assert said.out.splitlines() == [
            "ggufd cluster is ready",
            "  API        http://127.0.0.1:8080/v1          ",
            "  Chat       http://127.0.0.1:8080 in a browser",
            "  Replicas   2 of 2 replicas are ready         ",
            "  Ingresses  1                                 ",
            "",
            "replica  machine   state    running  waiting  KV used  address          ",
            "r1       10.0.0.1  running  1 of 4   2        26%      http://10.0.0.1:5",
            "r2       10.0.0.2  running  -        -        -        -                ",
        ]

    def test_a_roll_keeps_what_is_not_given(
        self, cluster: list[ClusterOptions], capsys: pytest.CaptureFixture[str]
    ) -> None:
        run(capsys, "roll", "--ctx-size", "512")
        (options,) = cluster
        assert options.n_rolls == 1
        assert options.tables == {
            "context": {"threads": 3, "ctx_size": 512},
            "server": {"drain_s": 2.0, "allowed_hosts": ["localhost"]},
        }

    def test_a_roll_with_a_file_reads_all_settings_anew(
        self, cluster: list[ClusterOptions], capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        (tmp_path / "new.toml").write_text("[context]\nctx_size = 256\n[server]\nport = 1\n")
        run(capsys, "roll", "--config", "new.toml")
        (options,) = cluster
        assert (options.tables or {})["context"] == {"ctx_size": 256}
        assert options.port == 8080

    def test_scaling(self, cluster: list[ClusterOptions], capsys: pytest.CaptureFixture[str]) -> None:
        run(capsys, "scale", "7")
        assert [(one.n_replicas, one.n_rolls) for one in cluster] == [(7, 0)]

    def test_one_that_scales_by_itself_is_not_scaled(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dataclasses import replace

        own = replace(self.STATE, options=ClusterOptions(n_replicas=2, max_replicas=4))
        monkeypatch.setattr(Cluster, "state", lambda _: own)
        assert "this cluster scales by its load, from 2 to 4 servers" in run(capsys, "scale", "3").err
