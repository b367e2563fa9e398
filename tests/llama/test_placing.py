"""Where the loader puts a model whose placement is left to it, with GPUs that are made up."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from ggufd.engine.client.retreat import Retreat
from ggufd.engine.loading.placing import place
from ggufd.engine.messages.config import EngineConfig
from ggufd.errors import ConfigError, ModelError
from ggufd.llama.model import system
from ggufd.llama.model.placing import chosen_devices
from ggufd.llama.model.system import DeviceMemory
from ggufd.llama.params import ContextParams, ModelParams
from ggufd.models import hub
from ggufd.settings import engine_settings, sources
from tests.support.models.gguf_files import llama, write

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
        assert place(asked, ()) == (asked, "", 0)

    def test_all_of_them_where_they_fit(self, model: Path) -> None:
        placed, why, _ = place(config(model), [gpu(8)])
        assert (placed.model.n_gpu_layers, placed.model.n_cpu_moe) == (17, 0)
        assert why == "the whole model fits on the GPU"

    def test_experts_stay_in_ram_where_not(self, model: Path) -> None:
        placed, why, _ = place(config(model), [gpu(2.5)])
        assert placed.model.n_gpu_layers == 17
        assert placed.model.n_cpu_moe
        assert why == f"the experts of {placed.model.n_cpu_moe} of 16 layers stay in RAM"

    def test_a_number_is_obeyed_without_a_look(self) -> None:
        asked = config(Path("nowhere.gguf"), n_gpu_layers=99)
        assert place(asked, [gpu(1)]) == (asked, "as configured", 0)

    def test_a_number_of_experts_layers_is_obeyed(self, model: Path) -> None:
        placed, _, _ = place(config(model, n_cpu_moe=512), [gpu(8)])
        assert (placed.model.n_gpu_layers, placed.model.n_cpu_moe) == (17, 16)

    def test_the_context_asked_for_stays(self, model: Path) -> None:
        placed, _, _ = place(config(model), [gpu(2.5)])
        assert placed.context == config(model).context


class TestOverrides:
    """Patterns of tensors, which go before what is chosen."""

    @pytest.fixture(autouse=True)
    def _gpu_buffers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(system, "buffer_types", lambda: {"CPU": 1, "CUDA0": 2, "CUDA1": 3})

    def test_what_they_keep_in_ram_leaves_room_for_all_layers(self, model: Path) -> None:
        placed, why, vram_bytes = place(config(model, overrides=(("exps", "CPU"),)), [gpu(2.5)])
        assert (placed.model.n_gpu_layers, placed.model.n_cpu_moe) == (17, 0)
        assert why == "the whole model fits on the GPU, apart from --override-tensor"
        assert vram_bytes < place(config(model), [gpu(2.5)]).vram_bytes

    def test_what_they_send_to_the_gpu_is_not_said_to_stay_in_ram(self, model: Path) -> None:
        placed, why, _ = place(config(model, overrides=(("exps", "CUDA0"),)), [gpu(2.5)])
        assert placed.model.n_gpu_layers < 17
        assert "stay in RAM" not in why

    def test_the_first_that_matches_counts(self, model: Path) -> None:
        ram_first, gpu_first = (
            place(config(model, overrides=overrides), [gpu(8)]).vram_bytes
            for overrides in ((("ffn", "CPU"), ("exps", "CUDA0")), (("exps", "CUDA0"), ("ffn", "CPU")))
        )
        assert ram_first < gpu_first

    @pytest.mark.parametrize(
        ("override", "words"),
        [
            (("exps", "CUDA7"), "this build has no such buffer; it has CPU, CUDA0, CUDA1"),
            (("(", "CPU"), "expected a reg"),
        ],
    )
    def test_one_that_cannot_be_is_refused_before_anything_is_read(self, override: Any, words: str) -> None:
        with pytest.raises(ModelError, match=words):
            place(config(Path("nowhere.gguf"), overrides=(override,)), [gpu(8)])


class TestLess:
    """What a process does after one that did not get the memory which it had chosen."""

    def test_a_limit_leaves_fewer_on_the_gpu_and_says_so(self, model: Path) -> None:
        first = place(config(model), [gpu(8)])
        again = place(dataclasses.replace(config(model), vram_limit=first.vram_bytes // 2), [gpu(8)])
        assert 0 < again.vram_bytes <= first.vram_bytes // 2
        assert "where more could not be allocated" in again.why
        assert "where more" not in first.why

    def test_a_limit_of_nothing_is_the_cpu(self, model: Path) -> None:
        placed, _, vram_bytes = place(dataclasses.replace(config(model), vram_limit=0), [gpu(8)])
        assert (placed.model.n_gpu_layers, vram_bytes) == (0, 0)

    def test_it_comes_to_an_end(self, model: Path) -> None:
        retreat, asked, tries = Retreat(), config(model), []
        while True:
            placed = place(asked, [gpu(8)])
            tries.append(placed.config.model.n_gpu_layers)
            retreat.note(placed.vram_bytes)
            limit = retreat.next_limit()
            if limit is None:
                break
            asked = dataclasses.replace(asked, vram_limit=limit)
        assert tries[0] == 17
        assert tries[-1] == 0
        assert len(tries) <= 5

    def test_a_cache_that_stays_in_ram_takes_none_of_the_gpu(self, model: Path) -> None:
        asked = config(model)
        without = dataclasses.replace(asked, context=dataclasses.replace(asked.context, kv_offload=False))
        assert place(without, [gpu(8)]).vram_bytes < place(asked, [gpu(8)]).vram_bytes


class TestSeveralGpus:
    def test_a_model_that_is_not_split_gets_one(self, model: Path) -> None:
        gpus = [gpu(8), gpu(2.5)]
        assert place(config(model, split_mode="none"), gpus).why == "the whole model fits on the GPU"
        placed, why, _ = place(config(model, split_mode="none", main_gpu=1), gpus)
        assert placed.model.n_cpu_moe
        assert "stay in RAM" in why

    def test_two_take_what_one_cannot(self, model: Path) -> None:
        assert place(config(model), [gpu(2.5), gpu(2.5)]).why == "the whole model fits on the GPU"
        assert place(config(model, tensor_split=(3, 1)), [gpu(2.5), gpu(2.5)]).config.model.n_cpu_moe

    @pytest.mark.parametrize(
        ("params", "words"),
        [
            ({"split_mode": "none", "main_gpu": 2}, "--main-gpu 2: there are 2 GPUs"),
            ({"tensor_split": (1, 1, 1)}, "names 3 shares, but there are 2 GPUs"),
            ({"tensor_split": (1, 1, 1), "n_gpu_layers": 5}, "names 3 shares"),
        ],
    )
    def test_what_cannot_be_obeyed_is_refused(self, model: Path, params: dict[str, Any], words: str) -> None:
        with pytest.raises(ModelError, match=words):
            place(config(model, **params), [gpu(8), gpu(8)])

    def test_layers_without_a_gpu_are_refused_and_none_is_fine(self, model: Path) -> None:
        with pytest.raises(ModelError, match=r"--n-gpu-layers 20: llama\.cpp sees no GPU"):
            place(config(model, n_gpu_layers=20), ())
        assert place(config(model, n_gpu_layers=0), ()).config.model.n_gpu_layers == 0


class TestSettings:
    def params(self, flags: dict[str, Any]) -> ModelParams:
        return engine_settings.engine_config(sources.load(None, flags, {}), hub.ModelFile(Path("m.gguf"), 0)).model

    def test_all_experts_in_ram(self) -> None:
        assert self.params({"cpu_moe": True}).n_cpu_moe == 512

    def test_experts_of_some_layers(self) -> None:
        assert self.params({"n_cpu_moe": "3"}).n_cpu_moe == 3
        assert self.params({}).n_cpu_moe is None

    def test_rpc_servers(self) -> None:
        assert self.params({"rpc": "one:50052,10.0.0.2:1"}).rpc == ("one:50052", "10.0.0.2:1")
        with pytest.raises(ConfigError):
            self.params({"rpc": "one"})

    def test_tensors_by_pattern(self) -> None:
        made = self.params({"override_tensor": "blk\\.0\\.=CPU,exps=CUDA0"})
        assert made.overrides == (("blk\\.0\\.", "CPU"), ("exps", "CUDA0"))


class TestChosenDevices:
    GPUS = tuple(DeviceMemory(name, "A GPU", 1, 1, shares_ram=False) for name in ("CUDA0", "CUDA1", "Vulkan0"))

    def test_all_without_a_name_and_none_for_none(self) -> None:
        assert chosen_devices((), self.GPUS) == self.GPUS
        assert chosen_devices(("none",), self.GPUS) == ()

    def test_by_name_in_the_order_given(self) -> None:
        assert [one.name for one in chosen_devices(("Vulkan0", "CUDA0"), self.GPUS)] == ["Vulkan0", "CUDA0"]

    def test_a_name_that_there_is_none_of(self) -> None:
        with pytest.raises(ModelError, match=r"^--device CUDA7: llama.cpp has no such device; it sees CUDA0, CUDA1, "):
            chosen_devices(("CUDA0", "CUDA7"), self.GPUS)
        with pytest.raises(ModelError, match="it sees no GPU"):
            chosen_devices(("CUDA0",), ())
