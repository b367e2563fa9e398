"""Metrics of several servers as one page of Prometheus' text format, each sample with its replica as a label."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

REPLICA = "replica"


@dataclass(slots=True)
class _ClusterMetric:
    """One metric of all replicas; its samples are lines."""

    kind: str
    documentation: str
    lines: list[str] = field(default_factory=list)


def merged_exposition(pages: Mapping[str, str]) -> str:
    """The page of all replicas, by their ids."""
    families: dict[str, _ClusterMetric] = {}
    for replica, page in pages.items():
        for metric in text_string_to_metric_families(page):
            name = _exposed_name(metric)
            family = families.setdefault(name, _ClusterMetric(metric.type, metric.documentation))
            for sample in metric.samples:
                labels = {REPLICA: replica, **sample.labels}
                family.lines.append(f"{sample.name}{_labels(labels)} {_number(sample.value)}\n")
    return "".join(
        f"# HELP {name} {_escaped_help(family.documentation)}\n# TYPE {name} {family.kind}\n{''.join(family.lines)}"
        for name, family in families.items()
    )


def _exposed_name(metric: Metric) -> str:
    """The name as this format has it: of counters with the ending that the parser took off."""
    if metric.type == "counter" and all(sample.name == f"{metric.name}_total" for sample in metric.samples):
        return f"{metric.name}_total"
    return str(metric.name)


def _number(value: float) -> str:
    """Shortest text of a value; Python and Prometheus differ in what is no number."""
    return {math.inf: "+Inf", -math.inf: "-Inf"}.get(value) or ("NaN" if math.isnan(value) else repr(value))


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _escaped_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")
