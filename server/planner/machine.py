"""This machine as the planner sees it: free RAM, within a container's limit, and the GPUs of llama.cpp's build."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

from server.engine.offload import Device, Machine

_CGROUP = Path("/sys/fs/cgroup")


def this_machine() -> Machine:
    from server.llama import system

    ram_free, ram_total = _ram(_CGROUP)
    devices = tuple(Device(one.description, one.free, one.total, one.shares_ram) for one in system.device_memory())
    return Machine(ram_free, ram_total, devices, system.cpu_features())


def _ram(cgroup: Path) -> tuple[int, int]:
    """Free and total bytes. psutil sees the host; what a container may use stands in its control group."""
    memory = psutil.virtual_memory()
    limit = _number(cgroup / "memory.max")
    if limit is None or limit >= memory.total:
        return int(memory.available), int(memory.total)
    free = limit - (_number(cgroup / "memory.current") or 0) + _file_pages(cgroup)
    return max(0, min(int(memory.available), free)), limit


def _number(path: Path) -> int | None:
    """None without a control group, and where it says "max"."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _file_pages(cgroup: Path) -> int:
    """Pages of files count as used there, but are given back when asked for."""
    with contextlib.suppress(OSError, ValueError):
        for line in (cgroup / "memory.stat").read_text().splitlines():
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    return 0
