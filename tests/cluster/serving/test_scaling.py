"""The autoscaling policy over what Serve hands it."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from ggufd.cluster.replicas import ReplicaLoad
from ggufd.cluster.serving import scaling
from ggufd.cluster.serving.scaling import Policy, figures_of, loads_of
from ggufd.cluster.serving.serve_config import ClusterOptions, serve_config


def metrics_of(*loads: ReplicaLoad) -> dict[str, dict[str, list[Any]]]:
    """Figures of replicas as Serve collects them: a series for each, of which the last value counts."""
    told: dict[str, dict[str, list[Any]]] = {}
    for number, load in enumerate(loads):
        for name, value in figures_of(load).items():
            series = [SimpleNamespace(value=99.0), SimpleNamespace(value=value)]
            told.setdefault(name, {})[f"r{number}"] = series
    return told


@dataclass
class Context:
    """The part of Serve's context that the policy looks at."""

    raw_metrics: dict[str, dict[str, list[Any]]] | None
    target_num_replicas: int = 2
    capacity_adjusted_min_replicas: int = 1
    capacity_adjusted_max_replicas: int = 6
    policy_state: dict[str, Any] = field(default_factory=dict)


def run(context: Context, monkeypatch: pytest.MonkeyPatch, *times_s: float, shrink_after_s: float = 300.0) -> list[int]:
    """What is wanted at these times."""
    wanted, policy = [], Policy(shrink_after_s)
    for now_s in times_s:
        monkeypatch.setattr(scaling, "time", SimpleNamespace(monotonic=lambda now_s=now_s: now_s))
        context.target_num_replicas, context.policy_state = policy(context)
        wanted.append(context.target_num_replicas)
    return wanted


FULL = ReplicaLoad(running=4, waiting=4, n_slots=4)
IDLE = ReplicaLoad(n_slots=4)


def test_the_last_word_of_each_replica_counts_and_half_a_word_does_not() -> None:
    metrics = metrics_of(FULL, ReplicaLoad(n_slots=2, wait_s=1.5, kv_used=0.5))
    metrics["running"]["r9"] = metrics["running"]["r0"]
    metrics["waiting"]["r0"].clear()
    assert loads_of(metrics) == [ReplicaLoad(n_slots=2, wait_s=1.5, kv_used=0.5)]


def test_a_full_cluster_grows_after_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(Context(metrics_of(FULL, FULL)), monkeypatch, 100, 102, 106) == [2, 2, 4]


def test_an_idle_one_shrinks_after_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(metrics_of(IDLE, IDLE, IDLE), target_num_replicas=3)
    assert run(context, monkeypatch, 100, 250, 401, 402) == [3, 3, 2, 2]


def test_it_shrinks_as_soon_as_its_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(metrics_of(IDLE, IDLE, IDLE), target_num_replicas=3)
    assert run(context, monkeypatch, 100, 119, 121, 122, shrink_after_s=20) == [3, 3, 2, 2]


@pytest.mark.parametrize("metrics", [None, {}])
def test_nothing_changes_while_nobody_tells(
    metrics: dict[str, dict[str, list[Any]]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(Context(metrics), monkeypatch, 100, 1000) == [2, 2]


def test_a_controller_that_moved_to_a_younger_machine_waits_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(Context(metrics_of(FULL, FULL)), monkeypatch, 100_000, 5, 6, 11) == [2, 2, 2, 4]


def test_serve_can_pickle_it() -> None:
    """And makes it of what the config says."""
    schema = pytest.importorskip("ray.serve.schema")
    autoscaling = pytest.importorskip("ray.serve.config").AutoscalingConfig
    state = pytest.importorskip("ray.serve._private.autoscaling_state")
    config = serve_config(ClusterOptions(n_replicas=1, max_replicas=6, shrink_after_s=20.0))
    (engine,) = schema.ServeDeploySchema.model_validate(config).applications[0].deployments
    made = state._resolve_policy_callable(autoscaling.model_validate(engine.autoscaling_config).policy)
    assert made(Context(metrics_of(FULL, FULL)))[0] == 2
    assert made._shrink_after_s == 20.0
