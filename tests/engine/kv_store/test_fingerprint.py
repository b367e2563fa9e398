"""The name of computed states: another one for whatever changes them or how they are laid out, and for nothing else."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ggufd.engine.kv_store import fingerprint as fingerprint_module
from ggufd.engine.kv_store import model_file
from ggufd.engine.kv_store.fingerprint import fingerprint
from ggufd.engine.kv_store.model_file import FirstLoaded, contents
from ggufd.llama.model import system
from ggufd.llama.params import ContextParams, ControlVector, ModelParams

PLAIN = ContextParams(n_ctx=512, n_slots=2, flash_attn="off")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of which only pieces are read, as of a large one."""
    monkeypatch.setattr(model_file, "_HEAD_BYTES", 1000)
    path = tmp_path / "m.gguf"
    path.write_bytes(os.urandom(6_000_000))
    return path


def name(file: Path, context: ContextParams = PLAIN, **changes: Any) -> str:
    return fingerprint(ModelParams(str(file), **changes), context)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_slots": 4},
        {"n_slots": 1},
        {"n_ctx": 1024},
        {"flash_attn": "on"},
        {"cache_type_k": "q8_0"},
        {"cache_type_v": "f32"},
        {"swa_full": False},
        {"rope_freq_base": 5e5},
        {"rope_freq_scale": 0.5},
        {"rope_scaling": "yarn"},
        {"yarn_orig_ctx": 256},
        {"kv_offload": False},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_numbers_of_the_context_are_another_name(file: Path, changes: dict[str, Any]) -> None:
    assert name(file, dataclasses.replace(PLAIN, **changes)) != name(file)


def test_every_field_of_the_context_counts_but_how_fast_it_is_computed(file: Path) -> None:
    """A field that is added some day must be decided about."""
    other = {int: 7, float: 0.7, str: "on", bool: True}
    ignored = set()
    for field in dataclasses.fields(ContextParams):
        before = getattr(PLAIN, field.name)
        changed: Any = not before if isinstance(before, bool) else other[type(before)]
        if name(file, dataclasses.replace(PLAIN, **{field.name: changed})) == name(file):
            ignored.add(field.name)
    assert ignored == {"n_batch", "n_ubatch", "n_threads", "n_threads_batch"}


def test_adapters_vectors_and_metadata_are_another_name(file: Path, tmp_path: Path) -> None:
    for letter in "ab":
        (tmp_path / f"{letter}.gguf").write_text(letter)
    a, b = (str(tmp_path / f"{letter}.gguf") for letter in "ab")
    names = [
        name(file),
        name(file, loras=(a,)),
        name(file, loras=(b,)),
        name(file, control_vectors=(ControlVector(a),)),
        name(file, control_vectors=(ControlVector(a, 0.5),)),
        name(file, control_vectors=(ControlVector(a),), control_layers=(1, 2)),
        name(file, metadata=(("llama.expert_used_count", 3),)),
    ]
    assert len(set(names)) == len(names)
    assert name(file, mlock=True, n_gpu_layers=3) == name(file)


def test_another_build_and_another_layout_of_streams_are_another_name(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name(file)]
    monkeypatch.setattr(fingerprint_module, "KV_UNIFIED", True)
    names.append(name(file))
    monkeypatch.setattr(system, "build", lambda: "llama-cpp-python 9.9.9")
    names.append(name(file))
    # llama.cpp itself may be replaced under the same binding.
    (tmp_path / "libllama.so").write_bytes(b"another one")
    monkeypatch.setattr(system, "library", lambda: tmp_path / "libllama.so")
    names.append(name(file))
    assert len(set(names)) == 4


def test_the_library_is_the_one_that_is_loaded() -> None:
    assert system.library().is_file()
    assert "llama" in system.library().name


# --- files ------------------------------------------------------------------------------------------------------------


def changed(file: Path, at: int, n_bytes: int) -> None:
    with file.open("r+b") as handle:
        handle.seek(at)
        before = handle.read(n_bytes)
        handle.seek(at)
        handle.write(bytes(byte ^ 1 for byte in before))


def test_a_copy_and_another_date_are_the_same_file(file: Path, tmp_path: Path) -> None:
    shutil.copyfile(file, tmp_path / "copy.gguf")
    os.utime(file, (1, 1))
    assert contents(tmp_path / "copy.gguf") == contents(file)
    assert name(tmp_path / "copy.gguf") == name(file)


@pytest.mark.parametrize("at", [0, 500, 1_500_000, 3_000_000, 5_990_000])
def test_a_tensor_of_other_numbers_is_another_file_of_the_same_size(file: Path, at: int) -> None:
    before = contents(file)
    changed(file, at, 10_000)
    assert file.stat().st_size == 6_000_000
    assert contents(file) != before


def test_the_last_byte_counts(file: Path) -> None:
    before = contents(file)
    changed(file, 5_999_999, 1)
    assert contents(file) != before


def test_a_small_file_is_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(bytes(100_000))
    before = contents(file)
    changed(file, 54_321, 1)
    assert contents(file) != before


class TestFirstLoaded:
    def loaded(self, file: Path) -> FirstLoaded:
        first = FirstLoaded(str(file))
        first.note()
        return first

    def test_another_date_and_a_copy_moved_over_it_are_the_same(self, file: Path, tmp_path: Path) -> None:
        first = self.loaded(file)
        assert not first.is_replaced()
        os.utime(file, (1, 1))
        assert not first.is_replaced()
        shutil.copyfile(file, tmp_path / "copy.gguf")
        os.replace(tmp_path / "copy.gguf", file)
        assert not first.is_replaced()

    def test_other_weights_are_another_model_until_the_first_is_back(self, file: Path, tmp_path: Path) -> None:
        first = self.loaded(file)
        shutil.copyfile(file, tmp_path / "kept.gguf")
        changed(file, 3_000_000, 100_000)
        os.utime(file, (1, 1))
        assert first.is_replaced()
        os.replace(tmp_path / "kept.gguf", file)
        assert not first.is_replaced()

    def test_one_that_is_gone_is_not_replaced(self, file: Path) -> None:
        first = self.loaded(file)
        file.unlink()
        assert not first.is_replaced()

    def test_one_that_changed_before_it_was_read_is_not_taken_for_the_first(self, file: Path) -> None:
        first = FirstLoaded(str(file))
        os.utime(file, (1, 1))
        first.note()
        assert first.is_replaced()

    def test_every_part_counts(self, tmp_path: Path) -> None:
        parts = [tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
        for part in parts:
            part.write_bytes(b"weights")
        first = self.loaded(parts[0])
        parts[1].write_bytes(b"WEIGHTS")
        os.utime(parts[1], (1, 1))
        assert first.is_replaced()
