"""Where a model goes: decided from what is free, on machines that are made up here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ggufd.llama.gguf import gguf_header, shape
from ggufd.llama.gguf.shape import Shape
from ggufd.llama.params import ContextParams
from ggufd.placement.memory import MIB, Placement, estimate
from ggufd.placement.offload import (
    SLOTS,
    Device,
    Machine,
    PlacementChoice,
    PlacementRequest,
    choose,
    fits,
    host_cache_bytes,
    largest_contexts,
    offload_steps,
)
from tests.support.models.gguf_files import llama, write

GIB = 1 << 30


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Shape:
    """7 thousand million parameters in f16: 13 GiB."""
    return made(tmp_path_factory.mktemp("dense") / "m.gguf", n_kv_heads=32, n_ff=11008)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Shape:
    """Four experts, two used: 24 thousand million parameters in Q4_0, 12.7 GiB."""
    return made(tmp_path_factory.mktemp("experts") / "m.gguf", n_experts=4, kind="q4_0")


def made(path: Path, **options: Any) -> Shape:
    sizes = {"n_layers": 32, "width": 4096, "n_heads": 32, "n_kv_heads": 8, "n_ff": 14336, "n_vocab": 32000}
    return shape.of(gguf_header.read([write(path, *llama(**{**sizes, "n_ctx": 32768, **options}))]))


def context(**params: Any) -> ContextParams:
    return ContextParams(**{"n_ctx": 4096, "n_slots": 1, "flash_attn": "on", **params})


def machine(*vram_gib: float, ram_gib: float = 64) -> Machine:
    devices = tuple(Device(f"GPU{i}", int(one * GIB), int(one * GIB)) for i, one in enumerate(vram_gib))
    return Machine(int(ram_gib * GIB), int(ram_gib * GIB), devices)


def chosen(made: Shape, on: Machine, **wish: Any) -> PlacementChoice:
    return choose(made, PlacementRequest(**{"context": context(), **wish}), on)


class TestLayers:
    def test_all_of_them_where_there_is_room(self, dense: Shape) -> None:
        choice = chosen(dense, machine(24))
        assert (choice.placement.n_gpu_layers, choice.fits) == (33, True)
        assert choice.why == "the whole model fits on the GPU"

    def test_as_many_as_fit(self, dense: Shape) -> None:
        choice = chosen(dense, machine(8))
        n = choice.placement.n_gpu_layers
        assert 10 < n < 33
        assert choice.why == f"{n} of 33 layers fit on the GPU"
        usable = machine(8).vram_usable()
        steps = offload_steps(dense, context(), Placement())
        assert steps[n].vram.total <= usable < steps[n + 1].vram.total

    def test_something_is_left_free(self, dense: Shape) -> None:
        for size in (6, 8, 12, 16):
            choice = chosen(dense, machine(size))
            assert size * GIB - choice.estimate.vram.total >= 512 * MIB

    def test_none_where_not_even_one_fits(self, dense: Shape) -> None:
        assert chosen(dense, machine(0.6)).placement.n_gpu_layers == 0

    def test_none_without_a_gpu(self, dense: Shape) -> None:
        choice = chosen(dense, machine())
        assert (choice.placement.n_gpu_layers, choice.why) == (0, "llama.cpp sees no GPU")

    def test_a_larger_cache_leaves_room_for_fewer(self, dense: Shape) -> None:
        few, many = (chosen(dense, machine(12), context=context(n_ctx=n)).placement.n_gpu_layers for n in (16384, 2048))
        assert few < many

    @pytest.mark.parametrize("n", [0, 5, 33])
    def test_a_number_is_obeyed(self, dense: Shape, n: int) -> None:
        choice = chosen(dense, machine(8), n_gpu_layers=n)
        assert (choice.placement.n_gpu_layers, choice.why) == (n, "as configured")
        assert choice.fits == (n < 33)

    def test_two_gpus_hold_what_one_cannot(self, dense: Shape) -> None:
        assert chosen(dense, machine(12)).placement.n_gpu_layers < 33
        assert chosen(dense, machine(12, 12)).placement.n_gpu_layers == 33

    def test_a_split_is_limited_by_the_gpu_that_is_full_first(self, dense: Shape) -> None:
        even, uneven = (chosen(dense, machine(12, 12), tensor_split=split) for split in ((1.0, 1.0), (9.0, 1.0)))
        assert even.placement.n_gpu_layers > uneven.placement.n_gpu_layers


class TestExperts:
    def test_they_go_to_ram_before_any_layer_does(self, experts: Shape) -> None:
        choice = chosen(experts, machine(8))
        assert choice.placement.n_gpu_layers == 33
        assert 0 < choice.placement.n_cpu_moe < 32
        assert choice.estimate.vram.total <= machine(8).vram_usable()
        assert "experts of" in choice.why

    def test_no_more_of_them_than_necessary(self, experts: Shape) -> None:
        choice = chosen(experts, machine(8))
        one_less = Placement(33, choice.placement.n_cpu_moe - 1)
        assert estimate(experts, context(), one_less).vram.total > machine(8).vram_usable()

    def test_then_layers(self, experts: Shape) -> None:
        choice = chosen(experts, machine(1.7))
        assert choice.placement.n_cpu_moe == 32
        assert 0 < choice.placement.n_gpu_layers < 33

    def test_a_number_is_obeyed(self, experts: Shape) -> None:
        choice = chosen(experts, machine(24), n_cpu_moe=7)
        assert (choice.placement.n_gpu_layers, choice.placement.n_cpu_moe) == (33, 7)
        assert choice.why == "the experts of 7 of 32 layers stay in RAM"

    def test_all_are_told_by_the_number_of_layers(self, experts: Shape) -> None:
        assert chosen(experts, machine(24), n_cpu_moe=512).why == "the experts of 32 of 32 layers stay in RAM"


class TestOverrides:
    def test_more_layers_fit_where_a_pattern_keeps_tensors_in_ram(self, dense: Shape) -> None:
        plain, kept = (
            chosen(dense, machine(6), overrides=overrides).placement.n_gpu_layers
            for overrides in ((), ((r"ffn_.*", "CPU"),))
        )
        assert plain < kept

    def test_the_first_pattern_that_matches_decides(self, experts: Shape) -> None:
        patterns = (r"blk\.0\.ffn_.*_exps", "CUDA0"), (r"_exps", "CPU")
        both, second = (
            estimate(experts, context(), Placement(33, overrides=overrides)).vram.weights
            for overrides in (patterns, patterns[1:])
        )
        layer = sum(one.n_bytes for one in experts.tensors if one.name.startswith("blk.0.") and "_exps" in one.name)
        assert both - second == layer

    def test_experts_that_are_to_be_on_the_gpu_are_counted_there(self, experts: Shape) -> None:
        choice = chosen(experts, machine(8), overrides=((r"_exps", "CUDA0"),))
        assert choice.estimate.vram.total > machine(8).vram_usable()
        assert not choice.fits


class TestRam:
    def test_what_does_not_fit_is_said(self, dense: Shape) -> None:
        assert not chosen(dense, machine(ram_gib=8)).fits
        assert chosen(dense, machine(ram_gib=24)).fits

    def test_shared_memory_is_counted_once(self, dense: Shape) -> None:
        apple = Machine(24 * GIB, 24 * GIB, (Device("Metal", 20 * GIB, 20 * GIB, shares_ram=True),))
        assert chosen(dense, apple).fits
        cramped = Machine(12 * GIB, 24 * GIB, apple.devices)
        assert not fits(estimate(dense, context(), Placement(33)), cramped)


class TestHostCache:
    """RAM for chats that lost their slot, where nobody says how much."""

    @pytest.mark.parametrize(("left_mib", "expected_mib"), [(-500, 0), (0, 0), (3, 1), (700, 350), (9999, 1024)])
    def test_half_of_what_is_left_and_no_more_than_it_needs(
        self, dense: Shape, left_mib: int, expected_mib: int
    ) -> None:
        one = estimate(dense, context(), Placement())
        full = machine(ram_gib=24)
        tight = replace(full, ram_free=full.ram_free - full.ram_usable + one.needed + left_mib * MIB)
        assert host_cache_bytes(one, tight) == expected_mib * MIB
        assert fits(one, tight) == (left_mib >= 0)

    def test_memory_that_a_gpu_shares_is_not_left(self, dense: Shape) -> None:
        apple = Machine(24 * GIB, 24 * GIB, (Device("Metal", 24 * GIB, 24 * GIB, shares_ram=True),))
        crowded = replace(apple, ram_free=16 * GIB)
        one = estimate(dense, context(), Placement(33))
        assert host_cache_bytes(one, crowded) < host_cache_bytes(one, apple) == GIB


class TestContext:
    def test_left_to_us_it_is_halved_until_it_fits(self, dense: Shape) -> None:
        wish = context(n_ctx=0, n_slots=4)
        assert chosen(dense, machine(ram_gib=64), context=wish).context.n_ctx == 8192
        small = chosen(dense, machine(ram_gib=20), context=wish)
        assert (small.context.n_ctx, small.fits) == (2048, True)

    def test_a_number_is_obeyed(self, dense: Shape) -> None:
        choice = chosen(dense, machine(ram_gib=20), context=context(n_ctx=32768))
        assert (choice.context.n_ctx, choice.fits) == (32768, False)

    def test_the_largest_that_fit(self, dense: Shape) -> None:
        on = machine(ram_gib=24)
        found = largest_contexts(dense, context(), Placement(), on)
        assert [slots for slots, _ in found] == list(SLOTS)
        for slots, n_ctx in found:
            assert n_ctx % 256 == 0
            assert fits(estimate(dense, context(n_slots=slots, n_ctx=n_ctx), Placement()), on)
            more = context(n_slots=slots, n_ctx=n_ctx + 256)
            assert n_ctx == 32768 or not fits(estimate(dense, more, Placement()), on)

    def test_nothing_fits_into_nothing(self, dense: Shape) -> None:
        assert {n for _, n in largest_contexts(dense, context(), Placement(), machine(ram_gib=1))} == {0}
