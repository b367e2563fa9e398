"""Memory of an image projector beside the model."""

from __future__ import annotations

from pathlib import Path

from ggufd.llama.gguf.projector_file import ProjectorFile
from ggufd.placement import projector_plan
from ggufd.placement.offload import Device, Machine
from ggufd.placement.projector_plan import PROCESS, ProjectorUse

MIB = 1 << 20
GIB = 1 << 30
PROJECTOR = ProjectorFile(Path("mmproj.gguf"), "mlp", 64, 500 * MIB)
TWO = (Device("first", 4 * GIB, 8 * GIB), Device("second", 6 * GIB, 8 * GIB))


def test_on_the_cpu_all_of_it_is_ram() -> None:
    use = projector_plan.use_of(PROJECTOR, uses_gpu=False)
    assert use.ram > 500 * MIB + PROCESS
    assert use.vram == 0


def test_on_a_gpu_only_the_process_is_ram() -> None:
    use = projector_plan.use_of(PROJECTOR, uses_gpu=True)
    assert use.ram == PROCESS
    assert use.vram > 500 * MIB


def test_without_one_nothing_is_used() -> None:
    assert projector_plan.use_of(None, uses_gpu=True) == ProjectorUse(0, 0)


def test_the_rest_of_a_machine_is_what_it_leaves_on_the_first_gpu_and_in_ram() -> None:
    machine = Machine(8 * GIB, 16 * GIB, TWO, vram_limit=9 * GIB)
    left = projector_plan.remaining(machine, ProjectorUse(1 * GIB, 3 * GIB))
    assert (left.ram_free, left.ram_total, left.vram_limit) == (7 * GIB, 16 * GIB, 6 * GIB)
    assert [device.free for device in left.devices] == [1 * GIB, 6 * GIB]


def test_no_memory_is_less_than_nothing() -> None:
    machine = Machine(1 * GIB, 16 * GIB, TWO[:1])
    left = projector_plan.remaining(machine, ProjectorUse(2 * GIB, 5 * GIB))
    assert (left.ram_free, left.devices[0].free, left.vram_limit) == (0, 0, None)
    assert projector_plan.remaining(Machine(4, 8), ProjectorUse(1, 1)).devices == ()
