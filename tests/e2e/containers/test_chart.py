"""The Helm chart, rendered by Helm, and held to Kubernetes' schemas, to the server's settings, and to its own page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from ggufd import __version__
from ggufd.settings.config import Config
from ggufd.settings.sources import load
from tests.support.programs.programs import needed_program

pytestmark = [pytest.mark.e2e]

ROOT = Path(__file__).parents[3]
CHART = ROOT / "docker/helm"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
SCHEMA = json.loads((CHART / "values.schema.json").read_text("utf-8"))
KUBERNETES = ("1.27", "1.37")
"""The oldest version that the chart takes, and the newest with schemas."""

Values = dict[str, Any]
HUB: Values = {"model": {"source": "hf:someone/model:Q4_K_M"}, "keys": {"admin": {"secret": "admin"}}}
DISK: Values = {
    "model": {"source": "one.gguf", "volume": {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}}},
    "keys": {"file": {"secret": "people"}},
}
ALL: Values = {
    "image": {"repository": "registry.example/ggufd", "variant": "vulkan", "pullSecrets": [{"name": "registry"}]},
    "nameOverride": "chat",
    "replicas": 3,
    "model": {**HUB["model"], "volume": {"emptyDir": {}}, "token": {"secret": "hub", "key": "token"}},
    "settings": {"drain_s": 90.5, "max_body_bytes": 2000000, "tags": ["a", "b"], "ready_when_full": True},
    "keys": {"admin": {"secret": "admin", "key": "k"}, "file": {"secret": "people", "key": "keys.toml"}},
    "tls": {"secret": "certificate"},
    "cache": {"storageClass": "fast", "size": "50Gi", "deleteWithRelease": True},
    "resources": {"limits": {"gpu.intel.com/i915": 1}},
    "service": {"type": "LoadBalancer", "sessionAffinity": "ClientIP", "annotations": {"a": "b"}},
    "podDisruptionBudget": {"maxUnavailable": "34%"},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "tlsConfig": {"serverName": "chat"}},
    "dashboard": {"enabled": True, "datasource": "theirs"},
    "extraEnv": [{"name": "HF_ENDPOINT", "value": "https://hub.example"}],
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "words"},
    "supplementalGroups": [44],
    "runtimeClassName": "nvidia",
    "priorityClassName": "high",
    "nodeSelector": {"gpu": "yes"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
}
CASES = {"hub": HUB, "disk": DISK, "all": ALL}


def helm(command: str, values: Values, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = needed_program("helm", "as .ci/run gets it")
    words = [program, *command.split(), str(CHART), "--values", "-", *arguments]
    return subprocess.run(words, input=json.dumps(values), capture_output=True, text=True, timeout=60, check=False)


def rendered(values: Values, *arguments: str) -> list[Any]:
    done = helm("template chat", values, *arguments)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def refusal(values: Values) -> str:
    done = helm("template chat", values)
    assert done.returncode != 0
    assert done.stdout == ""
    return done.stderr


def only(kind: str, objects: list[Any]) -> Any:
    (one,) = (one for one in objects if one["kind"] == kind)
    return one


def pod(values: Values, *arguments: str) -> Any:
    return only("StatefulSet", rendered(values, *arguments))["spec"]["template"]["spec"]


def server(values: Values, *arguments: str) -> Any:
    (container,) = pod(values, *arguments)["containers"]
    return container


def config_of(container: Any) -> Config:
    """Settings that the server reads from a container's variables. Raises for a variable that is none."""
    plain = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    return load(None, {}, plain)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `ggufd plan` says of the demo model."""
    command = [sys.executable, "-m", "ggufd", "plan", "--json", "-c", "8192", "-np", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "server")}
    file = tmp_path_factory.mktemp("plan") / "plan.json"
    with file.open("w") as out:
        subprocess.run(command, cwd=file.parent, env=environment, stdout=out, timeout=120, check=True)
    return file


# --- objects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_helm_finds_nothing_to_complain_of(values: Values) -> None:
    done = helm("lint --strict", values)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_kubernetes_takes_every_object(values: Values, version: str) -> None:
    """By its own strict schemas. The ServiceMonitor is the Prometheus operator's: they do not know it."""
    if not os.environ.get("TESTS_NEVER_SKIP"):
        pytest.importorskip("kubernetes_validate", reason="no schemas: pip install kubernetes-validate")
    import kubernetes_validate  # type: ignore[import-not-found]

    objects = [one for one in rendered(values, "--kube-version", version) if one["kind"] != "ServiceMonitor"]
    assert {"StatefulSet", "Service", "PodDisruptionBudget"} <= {one["kind"] for one in objects}
    for one in objects:
        kubernetes_validate.validate(one, version, strict=True)
    broken = {**objects[0], "specs": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, version, strict=True)


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_pods_are_confined(values: Values) -> None:
    """As Kubernetes' standard `restricted` wants it, on a read-only root file system."""
    one = pod(values)
    assert one["securityContext"]["runAsNonRoot"] is True
    assert one["securityContext"]["runAsUser"] == one["securityContext"]["fsGroup"] == 10001
    assert one["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert one["automountServiceAccountToken"] is False
    for container in (*one["containers"], *one.get("initContainers", [])):
        confined = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["securityContext"] == confined
        assert {"/cache", "/tmp"} <= {mount["mountPath"] for mount in container["volumeMounts"]}


def test_probes_are_those_of_the_page() -> None:
    page = (ROOT / "docs/using/deployment.md").read_text("utf-8")
    block = next(text for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "startupProbe" in text)
    container = server(HUB)
    for probe, told in yaml.safe_load(block).items():
        if probe.endswith("Probe"):
            assert container[probe]["httpGet"].pop("scheme") == "HTTP"
            told["httpGet"]["port"] = "http"
            assert container[probe].items() >= told.items()
    assert container["ports"] == [{"name": "http", "containerPort": 8080}]


@pytest.mark.parametrize(("drain_s", "grace_s"), [(30, 60), (90.5, 121), (0, 30), (None, 60)])
def test_a_pod_has_longer_than_the_server_to_stop(drain_s: float | None, grace_s: int) -> None:
    assert pod({**HUB, "settings": {"drain_s": drain_s}})["terminationGracePeriodSeconds"] == grace_s


def test_every_pod_has_a_volume_for_its_cache_or_none() -> None:
    kept = only("StatefulSet", rendered(ALL))["spec"]
    (claim,) = kept["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "cache"
    assert claim["spec"]["resources"]["requests"] == {"storage": "50Gi"}
    assert kept["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete"
    lost = only("StatefulSet", rendered({**HUB, "cache": {"persistent": False, "size": "2Gi"}}))["spec"]
    assert "volumeClaimTemplates" not in lost
    assert {"name": "cache", "emptyDir": {"sizeLimit": "2Gi"}} in lost["template"]["spec"]["volumes"]


def test_prometheus_scrapes_each_pod_once_with_the_admins_key() -> None:
    objects = rendered(ALL)
    monitor = only("ServiceMonitor", objects)["spec"]
    labels = [one["metadata"]["labels"] for one in objects if one["kind"] == "Service"]
    assert sum(monitor["selector"]["matchLabels"].items() <= one.items() for one in labels) == 1
    (endpoint,) = monitor["endpoints"]
    assert endpoint["authorization"] == {"credentials": {"name": "admin", "key": "k"}}
    assert (endpoint["port"], endpoint["path"], endpoint["scheme"]) == ("http", "/metrics", "https")
    assert endpoint["tlsConfig"] == {"serverName": "chat"}


def test_the_dashboard_is_ours_on_their_data_source() -> None:
    found = only("ConfigMap", rendered(ALL))
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    wanted = json.loads((ROOT / "docker/grafana/dashboards/ggufd.json").read_text("utf-8"))
    for panel in wanted["panels"]:
        panel["datasource"]["uid"] = "theirs"
    assert json.loads(found["data"]["ggufd.json"]) == wanted


# --- settings -------------------------------------------------------------------------------------------------------


def test_the_server_understands_its_variables() -> None:
    config = config_of(server(ALL))
    assert config.model.model == "hf:someone/model:Q4_K_M"
    assert config.model.tags == ("a", "b")
    assert (config.server.drain_s, config.server.max_body_bytes) == (90.5, 2_000_000)
    assert config.server.api_key_file == "/etc/ggufd/keys/keys.toml"
    assert (config.server.ssl_cert_file, config.server.ssl_key_file) == (
        "/etc/ggufd/tls/tls.crt",
        "/etc/ggufd/tls/tls.key",
    )
    assert config.context.cache_disk == 4096
    assert config_of(server(DISK)).model.model == "/models/one.gguf"


def test_defaults_are_the_servers_own_but_the_cache_on_disk() -> None:
    wanted = {"GGUFD_CACHE_DISK": "4096", "GGUFD_MODEL": HUB["model"]["source"]}
    assert config_of(server(HUB)) == load(None, {}, wanted)


def test_secrets_stay_secrets() -> None:
    """Keys are taken from Secrets, by reference, and files of them are not everybody's."""
    one = pod(ALL)
    (container,) = one["containers"]
    referred = {each["name"]: each["valueFrom"] for each in container["env"] if "valueFrom" in each}
    assert referred == {"GGUFD_API_KEY": {"secretKeyRef": {"name": "admin", "key": "k"}}}
    volumes = {each["name"]: each["secret"] for each in one["volumes"] if "secret" in each}
    assert {name: each["secretName"] for name, each in volumes.items()} == {"keys": "people", "tls": "certificate"}
    assert {each["defaultMode"] for each in volumes.values()} == {0o440}
    assert container["startupProbe"]["httpGet"]["scheme"] == "HTTPS"


def test_a_model_of_the_hub_is_fetched_before_the_start() -> None:
    (container,) = pod(ALL)["initContainers"]
    assert container["args"] == ["fetch"]
    assert config_of(container).model.model == "hf:someone/model:Q4_K_M"
    assert {"name": "HF_ENDPOINT", "value": "https://hub.example"} in container["env"]
    token = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}
    assert token in container["env"]
    assert token not in server(ALL)["env"]
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in server(ALL)["env"]
    assert "initContainers" not in pod(DISK)


def test_memory_and_context_are_those_of_the_plan(plan: Path) -> None:
    told = json.loads(plan.read_text("utf-8"))
    given = ("--set-file", f"plan={plan}")
    container = server(HUB, *given)
    needed_mib = told["without_offload"]["ram"]["needed"] // 2**20 + 1
    memory = {"memory": f"{needed_mib + VALUES['memoryHeadroomMiB']}Mi"}
    assert container["resources"] == {"requests": memory, "limits": memory}
    config = config_of(container)
    assert (config.context.ctx_size, config.context.parallel) == (8192, 2)
    on_gpu = server({**HUB, "image": {"variant": "cuda12"}}, *given)["resources"]["limits"]["memory"]
    assert on_gpu == f"{told['offload'][-1]['ram']['needed'] // 2**20 + 1 + VALUES['memoryHeadroomMiB']}Mi"


def test_what_is_set_by_hand_overrides_the_plan(plan: Path) -> None:
    values = {**HUB, "resources": {"limits": {"memory": "9Gi", "nvidia.com/gpu": 1}}, "settings": {"parallel": 1}}
    container = server(values, "--set-file", f"plan={plan}")
    assert container["resources"]["limits"] == {"memory": "9Gi", "nvidia.com/gpu": 1}
    assert config_of(container).context.parallel == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "no model: set model.source"),
        ({**DISK, "model": {"source": "one.gguf"}}, "which is not set"),
        ({"model": HUB["model"]}, "no keys: set keys.admin.secret"),
        ({**DISK, "serviceMonitor": {"enabled": True}}, "wants an admin's key"),
    ],
)
def test_what_cannot_work_is_refused_in_words(values: Values, words: str) -> None:
    assert words in refusal(values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replica": 2}, "'replica' not allowed"),
        ({"image": {"variant": "rocm"}}, "/image/variant"),
        ({"settings": {"api_key": "in plain sight"}}, "'api_key'"),
        ({"settings": {"host": "::"}}, "'host'"),
        ({"graceSeconds": 0}, "/graceSeconds"),
        ({"keys": {"admin": {"value": "in plain sight"}}}, "'value' not allowed"),
    ],
)
def test_values_that_are_none_are_refused(values: Values, words: str) -> None:
    said = refusal({**HUB, **values})
    assert words in said
    assert "plain sight" not in said


# --- page -----------------------------------------------------------------------------------------------------------


def documented(schema: Any, values: Any, path: str = "") -> dict[str, tuple[str, Any]]:
    """Description and default of every value that is one by itself."""
    if "description" in schema:
        return {path: (schema["description"], values)}
    assert schema["additionalProperties"] is False, path
    assert set(values) == set(schema["properties"]) - {"global"}, path
    found: dict[str, tuple[str, Any]] = {}
    for name, value in values.items():
        found |= documented(schema["properties"][name], value, f"{path}.{name}".lstrip("."))
    return found


def test_every_value_is_documented() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (.+) \| `(.+)` \|$", (CHART / "README.md").read_text("utf-8"), re.MULTILINE)
    found = documented(SCHEMA, VALUES)
    assert [(path, text, json.loads(default)) for path, text, default in rows] == [
        (path, *one) for path, one in found.items()
    ]
    assert all(text.endswith(".") for text, _ in found.values())


def test_values_of_the_page_are_taken() -> None:
    page = (ROOT / "docs/using/containers.md").read_text("utf-8")
    first, *more = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))
    assert more
    for one in more:
        assert server({**first, **one, "image": {**first["image"], **one.get("image", {})}})
    assert config_of(server(first)).context.cache_disk == first["settings"]["cache_disk"]


def test_its_version_is_the_servers() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    assert server(HUB)["image"] == f"ggufd:{__version__}"
    assert server(ALL)["image"] == f"registry.example/ggufd:{__version__}-vulkan"
