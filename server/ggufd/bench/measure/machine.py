"""Machine of a measurement: CPU, cores, system, and whether it is busy."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path


def describe_machine() -> dict[str, str | int]:
    """The machine this runs on; the servers are taken to run here, too."""
    return {
        "cpu": _cpu_name() or platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 0,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": sys.version.split()[0],
    }


def busy() -> list[str]:
    """A warning when other work was on the machine's cores in the last minute; none where the system does not say."""
    if not hasattr(os, "getloadavg"):
        return []
    load = os.getloadavg()[0]
    cores = os.cpu_count() or 1
    # A core's compute threads spin while they wait, so a little other work costs much more than its share.
    return [f"the machine was busy at the start: load {load:.1f} on {cores} cores"] if load > 0.25 * cores else []


def _cpu_name() -> str | None:
    """Name of the CPU, on Linux of /proc/cpuinfo; elsewhere it stays unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
