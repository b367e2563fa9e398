"""The manifest for KubeRay has fields that KubeRay knows, and pods that Kubernetes takes.

The fields are those of KubeRay's CRD `rayservices.ray.io`, version v1, as its chart for the operator has it
(helm-chart/kuberay-operator/crds/ray.io_rayservices.yaml, commit 02a80a6f, after release 1.6.0-rc.0): of its
`openAPIV3Schema` what the manifest uses, with what is required there. Kubernetes drops a field that it does not know,
or refuses it: here it is an error.
"""

from __future__ import annotations

import os
from typing import Any

import jsonschema_rs
import pytest
import yaml

from ggufd.cluster.serving.config_files import ray_service
from ggufd.cluster.serving.serve_config import ClusterOptions

KUBERNETES = "1.35"

STRING = {"type": "string"}
BOOLEAN = {"type": "boolean"}
NUMBER = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
STRINGS = {"type": "object", "additionalProperties": STRING}
POD = {"type": "object", "required": ["spec"]}
"""Kubernetes' own, by its schemas."""


def fields(*required: str, **known: Any) -> dict[str, Any]:
    return {"type": "object", "properties": known, "required": list(required), "additionalProperties": False}


HEAD = fields("template", rayStartParams=STRINGS, template=POD)
WORKERS = fields(
    "groupName",
    "maxReplicas",
    "minReplicas",
    "template",
    groupName=STRING,
    replicas=NUMBER,
    minReplicas=NUMBER,
    maxReplicas=NUMBER,
    rayStartParams=STRINGS,
    template=POD,
)
CLUSTER = fields(
    "headGroupSpec",
    rayVersion=STRING,
    enableInTreeAutoscaling=BOOLEAN,
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
RAY_SERVICE = fields(
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayService"},
    # A label of DNS, so short that the names which the operator makes of it have 63 characters at most.
    metadata=fields("name", name={"type": "string", "pattern": "^[a-z]([-a-z0-9]{0,45}[a-z0-9])?$"}),
    spec=fields("rayClusterConfig", serveConfigV2=STRING, rayClusterConfig=CLUSTER),
)

CASES = {
    "plain": ClusterOptions(n_replicas=3, tables={"model": {"model": "/models/m.gguf"}}),
    "GPUs": ClusterOptions(n_replicas=5, n_gpus=1.0, per_node=2, tables={}),
    "a part of a GPU": ClusterOptions(n_replicas=2, n_gpus=0.25, tables={}),
    "autoscaling": ClusterOptions(n_replicas=1, max_replicas=8, n_gpus=1.0, per_node=2, n_ingresses=2, tables={}),
}
each_case = pytest.mark.parametrize("options", CASES.values(), ids=CASES)


def manifest(options: ClusterOptions) -> Any:
    return yaml.safe_load(ray_service(options, "a" * 40, "registry.example/ggufd-cluster:1"))


def pods(manifest: Any) -> list[Any]:
    cluster = manifest["spec"]["rayClusterConfig"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


@each_case
def test_kuberay_knows_every_field(options: ClusterOptions) -> None:
    known = jsonschema_rs.validator_for(RAY_SERVICE)
    made = manifest(options)
    known.validate(made)
    del made["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplicas"]
    made["spec"]["serveConfigV3"] = ""
    assert len(list(known.iter_errors(made))) == 2


@each_case
def test_kubernetes_takes_the_pods(options: ClusterOptions) -> None:
    if not os.environ.get("TESTS_NEVER_SKIP"):
        pytest.importorskip("kubernetes_validate", reason="no schemas: pip install kubernetes-validate")
    import kubernetes_validate  # type: ignore[import-not-found]

    for pod in pods(manifest(options)):
        one = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": pod}
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
        (container,) = pod["spec"]["containers"]
        for key, names in (("env", ["name"]), ("ports", ["name", "containerPort"])):
            for name in names:
                values = [entry[name] for entry in container[key]]
                assert len(set(values)) == len(values)
        pod["spec"]["containers"][0]["imagge"] = "x"
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_machines_come_and_go_with_the_replicas() -> None:
    cluster = manifest(CASES["autoscaling"])["spec"]["rayClusterConfig"]
    (workers,) = cluster["workerGroupSpecs"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert [workers[key] for key in ("replicas", "minReplicas", "maxReplicas")] == [1, 1, 4]
    fixed = manifest(CASES["GPUs"])["spec"]["rayClusterConfig"]
    assert "enableInTreeAutoscaling" not in fixed
    assert fixed["workerGroupSpecs"][0]["maxReplicas"] == 3
