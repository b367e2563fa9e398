"""CPU and RAM limits of this process, from its affinity and its control groups.

psutil reports the whole machine, even in a container. Without limits the values here are psutil's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from ggufd.errors import ModelError

_ROOT = Path("/")


class Ram(NamedTuple):
    """RAM in bytes: free now, and in total."""

    free: int
    total: int


class _Files(NamedTuple):
    """File and field names of a control group version: limit, usage, reclaimable pages."""

    limit: str
    used: str
    reclaimable: str


_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Files("memory.max", "memory.current", "inactive_file")


def ram(root: Path = _ROOT) -> Ram:
    """RAM of the machine, or of the tightest control group of this process."""
    memory = psutil.virtual_memory()
    free, total = int(memory.available), int(memory.total)
    for folder in _groups(root, "memory"):
        files = _V2 if (folder / _V2.limit).exists() else _V1
        limit = _number(folder / files.limit)
        if limit is not None and limit < memory.total:
            total = min(total, limit)
            used = (_number(folder / files.used) or 0) - _stat(folder / "memory.stat", files.reclaimable)
            free = min(free, max(0, limit - used))
    return Ram(free, total)


def bind_to(cpus: Collection[int]) -> None:
    """Let this thread, and those that it starts, run on `cpus` alone; none of them leaves it as it is.

    Raises ModelError where that cannot be.
    """
    if not cpus:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise ModelError("--cpus: this system does not let a program choose its CPUs; leave it out")
    usable = os.sched_getaffinity(0)
    if usable.isdisjoint(cpus):
        raise ModelError(f"--cpus: none of these CPUs may be used here; expected some of {sorted(usable)}")
    os.sched_setaffinity(0, usable.intersection(cpus))


def compute_threads(root: Path = _ROOT) -> int:
    """Number of compute threads: one per physical core that this process may use, at least 1; a quota is rounded down.

    Threads wait for each other within a step: one more than the quota allows would stall all of them.
    """
    physical = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    try:
        usable = len(psutil.Process().cpu_affinity() or ()) or physical
    except (AttributeError, psutil.Error):
        usable = physical
    quotas = [quota for folder in _groups(root, "cpu") if (quota := _quota(folder)) is not None]
    return max(1, int(min(physical, usable, *quotas)))


def _quota(folder: Path) -> float | None:
    """CPU quota in cores; None without a limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = map(float, (folder / "cpu.max").read_text().split())
        return quota / period
    quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota_us / period_us if quota_us and period_us and quota_us > 0 else None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control groups, outermost first; the limits of all of them apply.

    In a container the path may be the host's and not visible here: its own limits are then at the top.
    """
    tree = root / "sys/fs/cgroup"
    tops = {"": tree, controller: tree / controller}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            if name in tops:
                folder = tops[name]
                yield folder
                for part in path.strip("/").split("/"):
                    folder /= part
                    yield folder


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return [line for line in path.read_text().splitlines() if line.count(":") >= 2]
    return []


def _number(path: Path) -> int | None:
    """Integer in a file; None without such a file, and for "max"."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _stat(path: Path, name: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            if line.startswith(f"{name} "):
                return int(line.split()[1])
    return 0
