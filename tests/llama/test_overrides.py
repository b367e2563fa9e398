"""Tensors by pattern to a buffer: what is refused, and that llama.cpp really reads the struct."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from ggufd.errors import ModelError
from ggufd.llama.gguf.shape import MAX_LAYERS
from ggufd.llama.model.model import Model
from ggufd.llama.model.overrides import native_overrides
from ggufd.llama.params import ModelParams


def patterns(n_cpu_moe: int, *overrides: tuple[str, str]) -> list[bytes | None]:
    _, array = native_overrides(n_cpu_moe, overrides)
    return [one.pattern for one in array]


def test_none_are_no_struct() -> None:
    assert native_overrides(0, ()) == (None, None)


def test_the_list_ends_with_an_empty_one() -> None:
    address, array = native_overrides(0, (("a", "CPU"), ("b", "CPU")))
    assert [one.pattern for one in array] == [b"a", b"b", None]
    assert ctypes.cast(array, ctypes.c_void_p).value == address.value


@pytest.mark.parametrize(
    ("n", "layers"), [(1, {0}), (3, {0, 1, 2}), (11, set(range(11))), (MAX_LAYERS, set(range(40)))]
)
def test_experts_of_the_first_layers(n: int, layers: set[int]) -> None:
    (pattern, end) = patterns(n)
    assert pattern is not None
    assert end is None
    for part in ("up", "gate", "down", "gate_up"):
        found = {i for i in range(40) if re.search(pattern.decode(), f"blk.{i}.ffn_{part}_exps.weight")}
        assert found == layers
    assert not re.search(pattern.decode(), "blk.0.ffn_down.weight")
    assert not re.search(pattern.decode(), "blk.0.ffn_up_shexp.weight")


def test_what_was_asked_for_goes_first() -> None:
    assert patterns(1, ("exps", "CPU"))[0] == b"exps"


def test_a_buffer_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match=r"x=CUDA7: this build has no such buffer; it has .*CPU"):
        native_overrides(0, (("x", "CUDA7"),))


@pytest.mark.parametrize("pattern", ["(", "a(?=b)", "[", "a{2}", "*", "", "é"])
def test_a_pattern_that_cpp_might_not_read_never_reaches_it(pattern: str) -> None:
    with pytest.raises(ModelError, match="expected a regular expression"):
        native_overrides(0, ((pattern, "CPU"),))


def test_llama_cpp_reads_them(tiny_model: Path) -> None:
    made = Model(ModelParams(str(tiny_model), n_cpu_moe=1, overrides=(("blk\\.0\\.attn", "CPU"),)))
    assert made.n_layer == 2
    made.close()
