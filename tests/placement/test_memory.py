"""The planner's arithmetic against llama.cpp's own account, real engine processes and published model cards."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ggufd.llama.gguf import adapter_files, gguf_header, shape
from ggufd.llama.gguf.shape import Shape
from ggufd.llama.params import ContextParams, ControlVector, ModelParams
from ggufd.models import hub
from ggufd.placement import memory
from ggufd.placement.memory import MIB, Extras, Placement, cache_by_layer, compute_buffer, estimate, vector_context
from tests.support.fakes import allocated
from tests.support.fakes.measured_engine import measure
from tests.support.models.franken_moe import write_franken_moe
from tests.support.models.gguf_files import llama, write
from tests.support.models.lora_files import pairs_of, write_lora
from tests.support.models.quantised import FTYPES, quantise
from tests.support.models.state_models import Size, write_hybrid, write_mamba, write_windowed
from tests.support.models.tiny_bert import TINY_BERT, write_tiny_bert


def context(**params: Any) -> ContextParams:
    # One thread: a busy machine slows two of them far more than it has to.
    return ContextParams(**{"n_ctx": 1024, "n_slots": 1, "flash_attn": "off", "n_threads": 1, **params})


def shape_of(path: Path) -> Shape:
    return shape.of(gguf_header.read([path]))


def wordless(path: Path, metadata: dict[str, Any], tensors: Any) -> Path:
    """A model without a vocabulary, which llama.cpp loads for its weights alone."""
    n_vocab, head = tensors[0][1][1], metadata["llama.embedding_length"] // metadata["llama.attention.head_count"]
    own = {"llama.vocab_size": n_vocab, "llama.rope.dimension_count": head, "tokenizer.ggml.model": "none"}
    metadata = {key: value for key, value in metadata.items() if key != "tokenizer.ggml.tokens"}
    return write(path, metadata | own, tensors)


def features() -> frozenset[str]:
    from ggufd.llama.model import system

    return system.cpu_features()


MODELS: dict[str, dict[str, int]] = {
    "llama 7B": {"width": 4096, "n_heads": 32, "n_kv_heads": 32, "n_ff": 11008, "n_vocab": 32000},
    "llama 8B": {"width": 4096, "n_heads": 32, "n_kv_heads": 8, "n_ff": 14336, "n_vocab": 128256},
    "4 experts": {
        "width": 4096,
        "n_heads": 32,
        "n_kv_heads": 8,
        "n_ff": 14336,
        "n_vocab": 32000,
        "n_experts": 4,
    },
}
"""Four layers of each: every layer uses the same buffer."""

CONTEXTS: list[dict[str, Any]] = [
    {"n_ctx": n_ctx, "flash_attn": flash_attn, "n_slots": n_slots}
    for flash_attn in ("off", "on")
    for n_ctx in (1024, 8192)
    for n_slots in (1, 4, 16)
]
QUANTISED: list[dict[str, Any]] = [
    {"n_ctx": 2048, "flash_attn": "on", "n_slots": 2, "cache_type_k": kind, "cache_type_v": kind}
    for kind in ("q8_0", "q5_1", "q4_0", "iq4_nl", "bf16", "f32")
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As wide as bert-base, for long texts."""
    size = TINY_BERT._replace(width=768, n_head=12, n_ff=3072, n_ctx=1024)
    return write_tiny_bert(tmp_path_factory.mktemp("bert") / "bert.gguf", size=size)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("shapes")
    made = {
        name: wordless(folder / f"{i}.gguf", *llama(n_layers=4, n_ctx=32768, **sizes))
        for i, (name, sizes) in enumerate(MODELS.items())
    }
    return {**made, "demo": hub.find("").path}


@pytest.fixture(scope="module")
def accounts(files: dict[str, Path]) -> dict[str, Any]:
    wanted = [{"path": str(path), "contexts": CONTEXTS + QUANTISED} for path in files.values()]
    return dict(zip(files, allocated.ask(wanted), strict=True))


class TestLlamaCppsAccount:
    """A load without weights says what every buffer would take."""

    @pytest.mark.parametrize("name", [*MODELS, "demo"])
    def test_compute_buffers_are_exact(self, name: str, files: dict[str, Path], accounts: dict[str, Any]) -> None:
        made = shape_of(files[name])
        for params, found in zip(CONTEXTS, accounts[name]["contexts"], strict=False):
            assert compute_buffer(made, context(**params)) / MIB == pytest.approx(found["CPU compute"], abs=0.1), params

    @pytest.mark.parametrize("name", [*MODELS, "demo"])
    def test_caches_are_exact(self, name: str, files: dict[str, Path], accounts: dict[str, Any]) -> None:
        made = shape_of(files[name])
        for params, found in zip(CONTEXTS + QUANTISED, accounts[name]["contexts"], strict=True):
            assert sum(cache_by_layer(made, context(**params))) / MIB == pytest.approx(found["cache"], abs=0.02), params

    @pytest.mark.parametrize("name", [*MODELS, "demo"])
    def test_compute_buffers_beside_a_quantised_cache_are_close(
        self, name: str, files: dict[str, Path], accounts: dict[str, Any]
    ) -> None:
        made = shape_of(files[name])
        for params, found in zip(QUANTISED, accounts[name]["contexts"][len(CONTEXTS) :], strict=True):
            assert compute_buffer(made, context(**params)) / MIB == pytest.approx(found["CPU compute"], rel=0.02), (
                params
            )

    def test_contexts_for_vectors_are_close(self, bert: Path) -> None:
        wanted = [
            {"n_ctx": n_ctx, "pooling": "mean", "flash_attn": on} for n_ctx in (256, 1024) for on in ("off", "on")
        ]
        paths = [hub.find("").path, bert]
        found = allocated.ask([{"path": str(path), "contexts": [], "vectors": wanted} for path in paths])
        for path, account in zip(paths, found, strict=True):
            made = shape_of(path)
            for params, buffers in zip(wanted, account["vectors"], strict=True):
                vectors = vector_context(made, context(n_ctx=params["n_ctx"], flash_attn=params["flash_attn"]))
                computed = compute_buffer(made, vectors, vectors.n_batch)
                assert computed / MIB == pytest.approx(buffers["CPU compute"], rel=0.02), (path.name, params)
                assert sum(cache_by_layer(made, vectors)) / MIB == pytest.approx(buffers.get("cache", 0), abs=0.02)

    def test_context_is_rounded_as_llama_cpp_does(self) -> None:
        assert [memory.cells_of(context(n_ctx=n)) for n in (1, 256, 257, 1000)] == [256, 256, 512, 1024]


class TestWindow:
    """Layers with a sliding window, by a model that was written for it: gemma 3 has one full layer in six."""

    def window(self, folder: Path, architecture: str = "gemma3", **extra: Any) -> Shape:
        metadata, tensors = llama(n_layers=12, n_ctx=32768)
        renamed = {key.replace("llama.", f"{architecture}."): value for key, value in metadata.items()}
        own = {"general.architecture": architecture, f"{architecture}.attention.sliding_window": 512}
        return shape_of(write(folder / "m.gguf", renamed | own | extra, tensors))

    def test_every_sixth_layer_is_full(self, tmp_path: Path) -> None:
        made = self.window(tmp_path)
        assert [i for i, layer in enumerate(made.layers) if not layer.is_windowed] == [5, 11]

    def test_the_files_own_pattern_goes_first(self, tmp_path: Path) -> None:
        made = self.window(tmp_path, **{"gemma3.attention.sliding_window_pattern": [True, False] * 6})
        assert [layer.is_windowed for layer in made.layers] == [True, False] * 6

    def test_a_window_keeps_its_width_and_a_ubatch(self, tmp_path: Path) -> None:
        made = self.window(tmp_path)
        sizes = cache_by_layer(made, context(n_ctx=8192, swa_full=False))
        assert sizes[0] * 8192 == sizes[5] * 1024
        assert len(set(cache_by_layer(made, context(n_ctx=8192)))) == 1

    def test_phi3s_window_is_none(self, tmp_path: Path) -> None:
        assert not any(layer.is_windowed for layer in self.window(tmp_path, "phi3").layers)


class TestRecurrent:
    def mamba(self, path: Path) -> Path:
        """Two layers of a Mamba: nothing but state."""
        metadata = {
            "general.architecture": "mamba",
            "mamba.block_count": 2,
            "mamba.context_length": 4096,
            "mamba.embedding_length": 64,
            "mamba.feed_forward_length": 0,
            "mamba.attention.head_count": 0,
            "mamba.attention.layer_norm_rms_epsilon": 1e-5,
            "mamba.ssm.conv_kernel": 4,
            "mamba.ssm.inner_size": 128,
            "mamba.ssm.state_size": 16,
            "mamba.ssm.time_step_rank": 8,
            "mamba.vocab_size": 100,
            "tokenizer.ggml.model": "none",
        }
        shapes = {
            "attn_norm.weight": (64,),
            "ssm_in.weight": (64, 256),
            "ssm_conv1d.weight": (4, 128),
            "ssm_conv1d.bias": (128,),
            "ssm_x.weight": (128, 8 + 2 * 16),
            "ssm_dt.weight": (8, 128),
            "ssm_dt.bias": (128,),
            "ssm_a": (16, 128),
            "ssm_d": (128,),
            "ssm_out.weight": (128, 64),
        }
        tensors = [("token_embd.weight", (64, 100), "f32"), ("output_norm.weight", (64,), "f32")]
        tensors += [(f"blk.{i}.{name}", dims, "f32") for i in range(2) for name, dims in shapes.items()]
        return write(path, metadata, tensors)

    def test_state_is_per_slot_and_not_per_token(self, tmp_path: Path) -> None:
        made = shape_of(self.mamba(tmp_path / "m.gguf"))
        assert made.is_recurrent
        for n_ctx in (1024, 8192):
            assert cache_by_layer(made, context(n_ctx=n_ctx, n_slots=2)) == [2 * 4 * (3 * 128 + 16 * 128)] * 2

    def test_llama_cpp_says_the_same(self, tmp_path: Path) -> None:
        path = self.mamba(tmp_path / "m.gguf")
        params = [{"n_ctx": 1024, "n_slots": n} for n in (1, 64)]
        (account,) = allocated.ask([{"path": str(path), "contexts": params}])
        for one, found in zip(params, account["contexts"], strict=True):
            size = sum(cache_by_layer(shape_of(path), context(**one)))
            assert size / MIB == pytest.approx(found["CPU RS"], abs=0.01)

    @pytest.mark.parametrize("writer", [write_mamba, write_hybrid])
    def test_their_compute_buffers_are_close(self, tmp_path: Path, writer: Callable[..., Path]) -> None:
        """Every slot's state is copied on its way: with many slots that is most of it."""
        path = writer(tmp_path / "m.gguf", Size(width=512, state=128))
        params = [{"n_ctx": 1024, "n_slots": n, "flash_attn": "off"} for n in (1, 16, 64)]
        (account,) = allocated.ask([{"path": str(path), "contexts": params}])
        for one, found in zip(params, account["contexts"], strict=True):
            computed = compute_buffer(shape_of(path), context(**one))
            assert computed / MIB == pytest.approx(found["CPU compute"], rel=0.06), one

    def test_a_hybrids_layers_without_heads_are_recurrent(self, tmp_path: Path) -> None:
        metadata, tensors = llama(n_layers=2)
        metadata = {key.replace("llama.", "jamba."): value for key, value in metadata.items()}
        ssm = {"jamba.ssm.conv_kernel": 4, "jamba.ssm.inner_size": 128, "jamba.ssm.state_size": 16}
        own = {"general.architecture": "jamba", "jamba.attention.head_count_kv": [0, 2]}
        made = shape_of(write(tmp_path / "m.gguf", metadata | ssm | own, tensors))
        assert [(layer.key_width, layer.state_elements > 0) for layer in made.layers] == [(0, True), (32, False)]


class TestPlacement:
    def made(self, folder: Path, **options: Any) -> Shape:
        return shape_of(write(folder / "m.gguf", *llama(n_layers=4, **options)))

    def test_the_output_goes_first_and_embeddings_never(self, tmp_path: Path) -> None:
        made = self.made(tmp_path)
        on_gpu = [
            [one.name for one in made.tensors if memory.is_on_gpu(one, made, Placement(n))]
            for n in range(made.n_layers + 2)
        ]
        assert on_gpu[0] == []
        assert on_gpu[1] == ["output_norm.weight", "output.weight"]
        assert {name.split(".")[1] for name in on_gpu[2] if name.startswith("blk")} == {"3"}
        assert [one.name for one in made.tensors if one.name not in on_gpu[5]] == ["token_embd.weight"]

    def test_what_leaves_ram_arrives_in_vram(self, tmp_path: Path) -> None:
        made = self.made(tmp_path)
        for n in range(made.n_layers + 2):
            one = estimate(made, context(), Placement(n))
            assert one.ram.weights + one.mapped + one.vram.weights == made.n_weight_bytes
            assert one.ram.cache + one.vram.cache == sum(cache_by_layer(made, context()))

    def test_a_tied_output_is_held_twice(self, tmp_path: Path) -> None:
        metadata, tensors = llama(n_layers=4)
        tied = shape_of(write(tmp_path / "m.gguf", metadata, [one for one in tensors if one[0] != "output.weight"]))
        one = estimate(tied, context(), Placement(5))
        assert one.mapped + one.vram.weights == tied.n_weight_bytes + 64 * 100 * 2

    def test_experts_of_the_first_layers_stay(self, tmp_path: Path) -> None:
        made = self.made(tmp_path, n_experts=4)
        stay = [one.name for one in made.tensors if not memory.is_on_gpu(one, made, Placement(5, n_cpu_moe=1))]
        assert stay == ["token_embd.weight", *(f"blk.0.ffn_{part}_exps.weight" for part in ("gate", "up", "down"))]

    def test_the_first_pattern_that_matches_decides_before_any_number(self, tmp_path: Path) -> None:
        made = self.made(tmp_path, n_experts=4)
        overrides = (("blk\\.1\\.ffn_up", "CUDA0"), ("ffn_up", "CPU"), ("token_embd", "CUDA0"))
        on_gpu = {
            one.name
            for one in made.tensors
            if memory.is_on_gpu(one, made, Placement(5, n_cpu_moe=2, overrides=overrides))
        }
        ups = {f"blk.{i}.ffn_up_exps.weight" for i in range(4)}
        assert on_gpu & ups == {"blk.1.ffn_up_exps.weight"}
        assert "token_embd.weight" in on_gpu
        assert "blk.0.ffn_gate_exps.weight" not in on_gpu
        assert "blk.2.ffn_gate_exps.weight" in on_gpu

    def test_a_tied_output_that_a_pattern_moves_is_held_once(self, tmp_path: Path) -> None:
        metadata, tensors = llama(n_layers=4)
        tied = shape_of(write(tmp_path / "m.gguf", metadata, [one for one in tensors if one[0] != "output.weight"]))
        for buffer, held in (("CUDA0", 0), ("CPU", 64 * 100 * 2)):
            one = estimate(tied, context(), Placement(5, overrides=(("token_embd", buffer),)))
            assert one.mapped == held
            assert one.mapped + one.vram.weights == tied.n_weight_bytes

    def test_weights_that_a_pattern_keeps_in_ram_are_computed_there(self, tmp_path: Path) -> None:
        made = self.made(tmp_path)
        whole, same, part = (
            estimate(made, context(), Placement(5, overrides=overrides))
            for overrides in ((), (("ffn_up", "CUDA0"),), (("ffn_up", "CPU"),))
        )
        assert same.ram == whole.ram
        assert part.ram.compute > whole.ram.compute
        assert part.vram.weights < whole.vram.weights

    def test_the_cache_stays_in_ram_when_told(self, tmp_path: Path) -> None:
        one = estimate(self.made(tmp_path), context(kv_offload=False), Placement(5))
        assert one.vram.cache == 0

    def test_without_a_map_all_weights_are_own(self, tmp_path: Path) -> None:
        made = self.made(tmp_path)
        one = estimate(made, context(), Placement(mmap=False))
        assert (one.mapped, one.ram.weights) == (0, made.n_weight_bytes)

    def test_an_adapters_tensors_lie_where_the_models_do(self, tmp_path: Path) -> None:
        path = write(tmp_path / "m.gguf", *llama(n_layers=4))
        weights = {f"blk.{i}.attn_q.weight": ((2, 64), (64, 2)) for i in range(4)}
        lora = write_lora(tmp_path / "lora.gguf", weights)
        extras = Extras.of(ModelParams("", loras=(str(lora),)), embeds=False, host_cache=0)
        for n_gpu_layers, n_on_gpu in ((0, 0), (1, 0), (3, 2), (5, 4)):
            one = estimate(shape_of(path), context(), Placement(n_gpu_layers, extras=extras))
            assert (one.vram.adapters, one.ram.adapters) == (n_on_gpu * 1024, (4 - n_on_gpu) * 1024)

    def test_a_control_vector_has_a_direction_for_every_layer_but_the_first(self, tmp_path: Path) -> None:
        model = ModelParams("", control_vectors=(ControlVector("a", 1.0), ControlVector("b", 0.5)))
        extras = Extras.of(model, embeds=False, host_cache=None)
        for n_gpu_layers, n_on_gpu in ((0, 0), (2, 2), (5, 3)):
            one = estimate(self.made(tmp_path), context(), Placement(n_gpu_layers, extras=extras))
            assert (one.vram.adapters, one.ram.adapters) == (n_on_gpu * 256, (3 - n_on_gpu) * 256)

    def test_what_was_given_to_chats_without_a_slot_is_needed_too(self, tmp_path: Path) -> None:
        plain, more = (
            estimate(self.made(tmp_path), context(), Placement(extras=Extras(host_cache=n))) for n in (0, 3 * MIB)
        )
        assert (more.needed - plain.needed, more.own - plain.own) == (3 * MIB, 0)

    def test_active_parameters_are_those_of_the_experts_used(self, tmp_path: Path) -> None:
        made = self.made(tmp_path, n_experts=4)
        one_expert = 4 * 3 * 64 * 128
        assert made.n_params - made.n_params_active == 2 * one_expert


# --- rearranged weights ----------------------------------------------------------------------------------------------


class TestRearranged:
    """True K-quants: a model whose width is a multiple of 256, in all eight types."""

    @pytest.mark.parametrize("n_experts", [0, 4])
    def test_own_copies_are_those_that_llama_cpp_makes(self, tmp_path: Path, n_experts: int) -> None:
        sizes = {"n_layers": 8, "width": 256, "n_ff": 512, "n_vocab": 1000, "n_experts": n_experts}
        source = wordless(tmp_path / "f16.gguf", *llama(**sizes))
        files = [quantise(source, tmp_path / f"{name}.gguf", ftype) for name, ftype in FTYPES.items()]
        found = allocated.ask([{"path": str(file), "real": True, "contexts": []} for file in files])
        for file, account in zip(files, found, strict=True):
            one = estimate(shape_of(file), context(), Placement(cpu_features=features()))
            own = sum(size for name, size in account["model"].items() if "Mapped" not in name)
            assert one.ram.weights / MIB == pytest.approx(own, abs=0.02), file.name

    @pytest.mark.parametrize("kind", ["q4_0", "q6_k", "q8_0"])
    def test_so_are_embeddings_that_are_the_output_too(self, tmp_path: Path, kind: str) -> None:
        metadata, tensors = llama(n_layers=2, width=256, n_ff=512, n_vocab=1000, kind=kind)
        tensors = [
            (name, dims, "f32" if "norm" in name else of) for name, dims, of in tensors if name != "output.weight"
        ]
        file = wordless(tmp_path / "m.gguf", metadata, tensors)
        (account,) = allocated.ask([{"path": str(file), "real": True, "contexts": []}])
        own = sum(size for name, size in account["model"].items() if "Mapped" not in name)
        one = estimate(shape_of(file), context(), Placement(cpu_features=features()))
        assert one.ram.weights / MIB == pytest.approx(own, abs=0.02)


# --- real processes --------------------------------------------------------------------------------------------------


def assert_true(path: Path, params: ContextParams, *, embeds: bool = False, **model: Any) -> None:
    """Predicted and real own memory differ by 5 % or 20 MB at most."""
    extras = Extras.of(ModelParams(str(path), **model), embeds=embeds, host_cache=0)
    one = estimate(shape_of(path), params, Placement(cpu_features=features(), extras=extras))
    real = measure(path, params, embeds=embeds, **model)
    assert abs(one.own - real.own) < max(0.05 * real.own, 20e6), f"{one.own / 1e6:.1f} MB, really {real.own / 1e6:.1f}"
    assert real.mapped > one.mapped


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
@pytest.mark.e2e
class TestRealEngine:
    """The engine's process, one slot full to its end, and every slot used."""

    @pytest.mark.parametrize(
        "params",
        [
            {"flash_attn": "off", "n_slots": 1},
            {"flash_attn": "off", "n_slots": 16, "n_ctx": 512},
            {"flash_attn": "off", "n_slots": 4, "n_ctx": 512, "cache_type_k": "q8_0"},
            {"flash_attn": "on", "n_slots": 1, "n_ctx": 512, "cache_type_k": "q8_0", "cache_type_v": "q8_0"},
            {"flash_attn": "on", "n_slots": 4, "n_ctx": 512},
            {"flash_attn": "on", "n_slots": 16, "n_ctx": 512, "cache_type_k": "q8_0", "cache_type_v": "q8_0"},
        ],
        ids=str,
    )
    def test_the_demo_model(self, params: dict[str, Any]) -> None:
        assert_true(hub.find("").path, context(**params))

    @pytest.mark.parametrize("name", FTYPES)
    def test_its_quantisations(self, tmp_path: Path, name: str) -> None:
        path = quantise(hub.find("").path, tmp_path / f"{name}.gguf", FTYPES[name])
        assert_true(path, context(n_ctx=256))

    @pytest.mark.parametrize("name", ["Q4_0", "Q8_0"])
    def test_a_mixture_of_experts_made_of_it(self, tmp_path: Path, name: str) -> None:
        mixture = write_franken_moe(hub.find("").path, tmp_path / "mixture.gguf")
        path = quantise(mixture, tmp_path / f"{name}.gguf", FTYPES[name])
        assert shape_of(path).n_params_active < 0.7 * shape_of(path).n_params
        assert_true(path, context(n_ctx=256))

    def test_a_sliding_window_and_a_large_vocabulary(self, tmp_path: Path) -> None:
        path = write_windowed(tmp_path / "m.gguf", Size(head_width=1024, n_vocab=262_144))
        for swa_full in (True, False):
            assert_true(path, context(n_slots=2, n_ubatch=128, swa_full=swa_full, flash_attn="on"))

    @pytest.mark.parametrize("writer", [write_mamba, write_hybrid])
    def test_recurrent_state(self, tmp_path: Path, writer: Callable[..., Path]) -> None:
        path = writer(tmp_path / "m.gguf", Size(width=512, state=1024))
        assert_true(path, context(n_ctx=256, n_slots=16))

    def test_a_context_for_embeddings(self) -> None:
        assert_true(hub.find("").path, context(n_ctx=512), embeds=True)

    def test_adapters(self, tmp_path: Path) -> None:
        path = hub.find("").path
        lora = write_lora(tmp_path / "lora.gguf", pairs_of(path, rank=128, names=("attn_q", "ffn_up", "ffn_down")))
        size = sum(tensor.n_bytes for tensor in adapter_files.read(str(lora)).tensors)
        assert size > 60e6
        assert_true(path, context(n_ctx=256), loras=(str(lora),))

    def test_a_model_that_only_embeds(self, bert: Path) -> None:
        assert_true(bert, context(n_ctx=1024))


# --- a published card ------------------------------------------------------------------------------------------------

CARD_GB = 1024 * 10**6
CARD = {
    "Q2_K": (7.87, 9.94),
    "Q3_K_M": (10.28, 12.47),
    "Q4_0": (13.30, 15.43),
    "Q4_K_M": (13.32, 15.73),
    "Q5_0": (16.24, 18.64),
    "Q5_K_M": (16.25, 18.64),
    "Q6_K": (19.35, 21.52),
    "Q8_0": (25.06, 27.43),
}
"""A 4-expert merge of 24.15 thousand million parameters, as published: size and maximum RAM, in the card's GB."""

PLAIN = {"Q4_0", "Q5_0", "Q6_K", "Q8_0"}


def types_of_early_2024(recipe: str, n_layers: int) -> Iterator[tuple[str, str]]:
    """`(tensor, type)` as llama.cpp chose them then: the mixtures knew `ffn_down.weight`, but not `ffn_down.0.weight`.

    So experts, nearly all of the file, have the recipe's base type, and only attention and the output are mixed.
    """
    for i in range(n_layers):
        has_more_bits = i < n_layers // 8 or i >= 7 * n_layers // 8 or (i - n_layers // 8) % 3 == 2
        value = {
            "Q2_K": "Q4_K",
            "Q3_K_M": "Q5_K" if i < 2 else "Q4_K",
            "Q4_K_M": "Q6_K" if has_more_bits else "Q4_K",
            "Q5_K_M": "Q6_K" if has_more_bits else "Q5_K",
        }
        output = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K"}
        if recipe in value:
            yield f"blk.{i}.attn_v.weight", value[recipe]
        if recipe in output:
            yield f"blk.{i}.attn_output.weight", output[recipe]
    if recipe != "Q8_0":
        yield "output.weight", "Q6_K"


def merge(folder: Path, recipe: str) -> Path:
    """The header of that model, with the experts of a layer in one tensor as files have them now; the weights are a
    hole.
    """
    base = recipe.removesuffix("_M")
    metadata, tensors = llama(
        n_layers=32,
        width=4096,
        n_heads=32,
        n_kv_heads=8,
        n_ff=14336,
        n_vocab=32000,
        n_ctx=32768,
        n_experts=4,
        kind=base,
        kinds=dict(types_of_early_2024(recipe, 32)),
    )
    tensors = [(name, dims, "f32" if "norm" in name or "gate_inp" in name else kind) for name, dims, kind in tensors]
    return write(folder / f"{recipe}.gguf", metadata, tensors)


class TestPublishedCard:
    @pytest.mark.parametrize("recipe", CARD)
    def test_sizes(self, tmp_path: Path, recipe: str) -> None:
        made = shape_of(merge(tmp_path, recipe))
        assert made.n_params == pytest.approx(24.15e9, rel=0.001)
        tolerance = 0.005 if recipe in PLAIN else 0.03
        assert made.gguf.n_bytes / CARD_GB == pytest.approx(CARD[recipe][0], rel=tolerance)

    def test_active_parameters(self, tmp_path: Path) -> None:
        made = shape_of(merge(tmp_path, "Q4_0"))
        assert made.n_params_active == pytest.approx(12.88e9, rel=0.001)

    @pytest.mark.parametrize("recipe", CARD)
    def test_ram_is_below_the_cards_maximum(self, tmp_path: Path, recipe: str) -> None:
        """The card adds 2.1 to 2.4 GB to every size, whatever the context. One slot of 4,096 tokens takes 1.1 GB of
        that: 0.54 for the cache, the rest for buffers; where a CPU rearranges weights, it reads them there and no
        longer in the file."""
        made = shape_of(merge(tmp_path, recipe))
        one = estimate(made, context(n_ctx=4096), Placement(cpu_features=frozenset({"avx2", "repack"})))
        size, most = CARD[recipe]
        assert size < one.needed / CARD_GB < most
