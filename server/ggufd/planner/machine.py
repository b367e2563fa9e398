"""Memory and devices of this machine: free RAM, within a container's limit, and the GPUs of llama.cpp's build."""

from __future__ import annotations

from ggufd.engine.messages.config import EngineConfig
from ggufd.placement import host
from ggufd.placement.offload import Machine


def this_machine(config: EngineConfig) -> Machine:
    """This machine, with the GPUs that `config` uses.

    Raises ModelError when llama.cpp cannot be loaded, and for placement settings that are impossible here.
    """
    from ggufd.llama import library

    library.load()
    # Imported after the check, which reports a broken llama.cpp library.
    from ggufd.engine.loading.placing import usable_gpus
    from ggufd.llama.log import problems_only
    from ggufd.llama.model import system

    ram = host.ram()
    with problems_only():
        return Machine(ram.free, ram.total, usable_gpus(config, system.device_memory()), system.cpu_features())
