"""This machine as the planner sees it: free RAM, within a container's limit, and the GPUs of llama.cpp's build."""

from __future__ import annotations

from ggufd.engine.messages.config import EngineConfig
from ggufd.placement import host
from ggufd.placement.offload import Machine


def this_machine(config: EngineConfig) -> Machine:
    """With the GPUs that these settings use.

    Raises ModelError where llama.cpp cannot be loaded, and for what the settings say of placing and cannot be here.
    """
    from ggufd.llama import library

    library.load()
    # Only now: what is wrong with llama.cpp's library has been said.
    from ggufd.engine.loader import usable_gpus
    from ggufd.llama.model import system

    ram = host.ram()
    return Machine(ram.free, ram.total, usable_gpus(config, system.device_memory()), system.cpu_features())
