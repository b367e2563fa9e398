"""This machine as the planner sees it: free RAM, within a container's limit, and the GPUs of llama.cpp's build."""

from __future__ import annotations

from server.engine import host
from server.engine.offload import Device, Machine


def this_machine() -> Machine:
    """Raises ModelError where llama.cpp cannot be loaded."""
    from server.llama import library

    library.load()
    from server.llama import system

    ram = host.ram()
    devices = tuple(Device(one.description, one.free, one.total, one.shares_ram) for one in system.device_memory())
    return Machine(ram.free, ram.total, devices, system.cpu_features())
