"""Where the loader puts a model whose placement is left to it, with GPUs that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server import daemon, hub, sources
from server.engine.loader import place
from server.engine.messages import EngineConfig
from server.llama.params import ContextParams, ModelParams
from server.llama.system import DeviceMemory
from tests.gguf_files import llama, write

GIB = 1 << 30


def gpu(gib: float) -> DeviceMemory:
    return DeviceMemory("CUDA0", "A fine GPU", int(gib * GIB), int(gib * GIB), shares_ram=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four experts in 16 layers, 3.3 GiB."""
    sizes = {"n_layers": 16, "width": 2048, "n_heads": 16, "n_kv_heads": 4, "n_ff": 8192, "n_vocab": 32000}
    return write(tmp_path_factory.mktemp("m") / "m.gguf", *llama(**sizes, n_experts=4, kind="q8_0", n_ctx=4096))


def config(path: Path, **params: Any) -> EngineConfig:
    return EngineConfig(ModelParams(str(path), **params), ContextParams(n_ctx=2048, n_slots=2))


class TestLayers:
    def test_without_a_gpu_nothing_is_decided_or_read(self) -> None:
        asked = config(Path("nowhere.gguf"))
        assert place(asked, ()) == (asked, "")

    def test_all_of_them_where_they_fit(self, model: Path) -> None:
        placed, why = place(config(model), [gpu(8)])
        assert (placed.model.n_gpu_layers, placed.model.n_cpu_moe) == (17, 0)
        assert why == "the whole model fits on the GPU"

    def test_experts_stay_in_ram_where_not(self, model: Path) -> None:
        placed, why = place(config(model), [gpu(2.5)])
        assert placed.model.n_gpu_layers == 17
        assert placed.model.n_cpu_moe
        assert why == f"the experts of {placed.model.n_cpu_moe} of 16 layers stay in RAM"

    def test_a_number_is_obeyed_without_a_look(self) -> None:
        asked = config(Path("nowhere.gguf"), n_gpu_layers=99)
        assert place(asked, [gpu(1)]) == (asked, "as configured")

    def test_a_number_of_experts_layers_is_obeyed(self, model: Path) -> None:
        placed, _ = place(config(model, n_cpu_moe=512), [gpu(8)])
        assert (placed.model.n_gpu_layers, placed.model.n_cpu_moe) == (17, 16)

    def test_the_context_asked_for_stays(self, model: Path) -> None:
        placed, _ = place(config(model), [gpu(2.5)])
        assert placed.context == config(model).context


class TestSettings:
    def params(self, flags: dict[str, Any]) -> ModelParams:
        return daemon.engine_config(sources.load(None, flags, {}), hub.ModelFile(Path("m.gguf"), 0)).model

    def test_all_experts_in_ram(self) -> None:
        assert self.params({"cpu_moe": True}).n_cpu_moe == 512

    def test_experts_of_some_layers(self) -> None:
        assert self.params({"n_cpu_moe": "3"}).n_cpu_moe == 3
        assert self.params({}).n_cpu_moe is None

    def test_tensors_by_pattern(self) -> None:
        made = self.params({"override_tensor": "blk\\.0\\.=CPU,exps=CUDA0"})
        assert made.overrides == (("blk\\.0\\.", "CPU"), ("exps", "CUDA0"))
