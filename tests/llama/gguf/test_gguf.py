"""The header reader: real files, every defect in one line, and no file that is slow, hungry or a crash."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from gguf import GGUFReader
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufd import cli
from ggufd.errors import ModelError
from ggufd.llama.gguf import gguf_header, shape
from ggufd.llama.gguf.gguf_header import Skipped
from ggufd.llama.gguf.tensor_types import FILE_TYPES, TENSOR_TYPES
from ggufd.models import hub
from tests.support.examples import examples
from tests.support.models import gguf_files
from tests.support.models.gguf_files import llama, text, write


def read_bytes(data: bytes, n_bytes: int | None = None) -> gguf_header.Header:
    def read_at(offset: int, n: int) -> bytes:
        return data[offset : offset + n]

    return gguf_header.read_header(read_at, len(data) if n_bytes is None else n_bytes, "m.gguf")


def fault(data: bytes, n_bytes: int | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        read_bytes(data, n_bytes)
    assert "\n" not in caught.value.message
    return caught.value.message


def file_fault(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        shape.of(gguf_header.read([path]))
    message = caught.value.message
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


START = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
"""A header that announces one metadata pair."""


class TestTypes:
    def test_the_table_is_the_gguf_packages(self) -> None:
        known = {int(kind): (kind.name, *GGML_QUANT_SIZES[kind]) for kind in GGMLQuantizationType}
        # A type of intermediate results, never in a file: older versions of the package have it wrong.
        del known[9]
        ours = {number: tuple(kind)[1:] for number, kind in TENSOR_TYPES.items()}
        assert {number: ours[number] for number in known} == known

    def test_file_types_are_the_gguf_packages(self) -> None:
        for kind in LlamaFileType:
            if kind is not LlamaFileType.GUESSED:
                name = kind.name.removeprefix("MOSTLY_").removeprefix("ALL_").removesuffix("_MOE")
                assert FILE_TYPES[int(kind)] == name

    def test_bits(self) -> None:
        assert {TENSOR_TYPES[n].name: TENSOR_TYPES[n].bits for n in (2, 8, 14)} == {
            "Q4_0": 4.5,
            "Q8_0": 8.5,
            "Q6_K": 6.5625,
        }


class TestRealFile:
    def test_it_agrees_with_the_gguf_package(self) -> None:
        path = hub.find("").path
        ours, theirs = gguf_header.read([path]), GGUFReader(path)
        tensors = list(ours.tensors())
        assert [one.name for one in tensors] == [one.name for one in theirs.tensors]
        assert [one.shape for one in tensors] == [tuple(map(int, one.shape)) for one in theirs.tensors]
        assert [one.n_bytes for one in tensors] == [one.n_bytes for one in theirs.tensors]
        assert [ours.parts[0].data_offset + one.offset for one in tensors] == [
            one.data_offset for one in theirs.tensors
        ]
        for key, field in theirs.fields.items():
            if not key.startswith("GGUF."):
                value = ours.metadata[key]
                assert value == field.contents() or isinstance(value, Skipped), key

    def test_a_vocabulary_is_skipped_and_counted(self) -> None:
        metadata = gguf_header.read([hub.find("").path]).metadata
        assert metadata["tokenizer.ggml.tokens"] == Skipped("string", 49152)

    def test_it_takes_no_time_and_no_memory(self) -> None:
        path = hub.find("").path
        tracemalloc.start()
        try:
            gguf_header.read([path])
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 16 << 20
        start = time.process_time()
        gguf_header.read([path])
        assert time.process_time() - start < 0.5


class TestValues:
    def test_every_kind(self, tmp_path: Path) -> None:
        extra = {"a": 7, "b": True, "c": "text", "d": 0.5, "e": [1, 2], "f": [True, False], "g": ["x", "y"]}
        metadata, tensors = llama(extra=extra)
        found = gguf_header.read([write(tmp_path / "m.gguf", metadata, tensors)]).metadata
        assert [found[key] for key in "abcdefg"] == [7, True, "text", 0.5, (1, 2), (True, False), Skipped("string", 2)]

    def test_long_arrays_are_stepped_over(self, tmp_path: Path) -> None:
        metadata, tensors = llama(extra={"a": [1] * 5000, "b": 3})
        found = gguf_header.read([write(tmp_path / "m.gguf", metadata, tensors)])
        assert (found.metadata["a"], found.metadata["b"]) == (Skipped("u32", 5000), 3)

    def test_strings_longer_than_what_is_read_at_once(self, tmp_path: Path) -> None:
        metadata, tensors = llama(extra={"a": ["x" * 700_000] * 5, "b": "y" * 2_000_000, "c": 3})
        found = gguf_header.read([write(tmp_path / "m.gguf", metadata, tensors)]).metadata
        assert found["a"] == Skipped("string", 5)
        assert found["b"] == Skipped("character", 2_000_000)
        assert found["c"] == 3

    def test_numbers_for_each_layer(self, tmp_path: Path) -> None:
        metadata, tensors = llama(extra={"llama.x": [3, 4], "llama.y": 5, "llama.z": [0.5, 1.5]})
        found = gguf_header.read([write(tmp_path / "m.gguf", metadata, tensors)])
        assert found.per_layer("{arch}.x", 2) == (3, 4)
        assert found.per_layer("{arch}.x", 3) == (3, 4, 0)
        assert found.per_layer("{arch}.y", 2) == (5, 5)
        assert found.per_layer("{arch}.z", 2, 9) == (9, 9)

    def test_version_2_is_read_the_same(self, tmp_path: Path) -> None:
        made = llama()
        two, three = (gguf_header.read([write(tmp_path / f"{v}.gguf", *made, version=v)]) for v in (2, 3))
        assert list(two.tensors()) == list(three.tensors())

    def test_another_alignment(self, tmp_path: Path) -> None:
        metadata, tensors = llama(extra={"general.alignment": 256})
        found = gguf_header.read([write(tmp_path / "m.gguf", metadata, tensors, alignment=256)])
        assert found.parts[0].data_offset % 256 == 0


class TestDamage:
    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"", "is empty"),
            (b"PK\x03\x04" + bytes(30), "not a GGUF file"),
            (b"GGML" + bytes(100), "not a GGUF file"),
            (b"GGUF\x03\x00", "ends within its header, at byte 6 (the first bytes)"),
            (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1; expected version 2 or 3"),
            (b"GGUF" + struct.pack("<IQQ", 4, 0, 0), "version 4; expected version 2 or 3, little-endian"),
            (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is big-endian"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
            (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "9,223,372,036,854,775,808 tensors, more than"),
            (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40), "1,099,511,627,776 metadata pairs, more than"),
            (b"GGUF" + struct.pack("<IQQ", 3, 60_000, 0), "60,000 tensors are announced, but only 0 bytes follow"),
            (START + struct.pack("<Q", 2**62) + bytes(20), "ends within its header"),
            (START + struct.pack("<Q", 0) + bytes(20), "its key is empty"),
            (START + text("k") + struct.pack("<I", 77) + bytes(20), "'k'): 77 is no type of value"),
            (START + text("k") + struct.pack("<IIQ", 9, 9, 1) + bytes(20), "9 is no type of an array's elements"),
            (START + text("k") + struct.pack("<IIQ", 9, 8, 2**61) + bytes(9), "strings are announced, but only 9"),
            (START + text("k") + struct.pack("<IIQ", 9, 4, 2**63) + bytes(9), "numbers are announced, but only 9"),
            (START + text("k") + struct.pack("<IQ", 8, 2**50), "ends within its header"),
            (START + text("general.alignment") + struct.pack("<II", 4, 24), "expected a power of two"),
            (START + text("general.alignment") + struct.pack("<I", 8) + text("32"), "expected a power of two"),
        ],
    )
    def test_one_line_says_what_and_where(self, data: bytes, words: str) -> None:
        message = fault(data)
        assert message.startswith("m.gguf: ")
        assert words in message

    def test_a_key_twice(self) -> None:
        pair = text("k") + struct.pack("<II", 4, 1)
        assert "'k' stands there twice" in fault(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + pair + pair)

    def test_a_token_twice(self, tmp_path: Path) -> None:
        """llama.cpp would abort."""
        metadata, tensors = llama()
        metadata["tokenizer.ggml.tokens"] = ["a", "", "b", "", "a"]
        assert "the token 'a' stands there twice" in file_fault(write(tmp_path / "m.gguf", metadata, tensors))
        metadata["tokenizer.ggml.tokens"] = ["a", "", "b", "", "c"]
        assert gguf_header.read([write(tmp_path / "m.gguf", metadata, tensors)])

    @pytest.mark.parametrize("length", [1, 1000, 700_000])
    def test_a_vocabulary_longer_than_what_is_read_at_once(self, tmp_path: Path, length: int) -> None:
        metadata, tensors = llama()
        tokens = [f"{i:06}" + "x" * length for i in range(3_000_000 // (length + 14))]
        metadata["tokenizer.ggml.tokens"] = tokens
        read = gguf_header.read([write(tmp_path / "m.gguf", metadata, tensors)]).metadata
        assert read["tokenizer.ggml.tokens"] == Skipped("string", len(tokens))
        metadata["tokenizer.ggml.tokens"] = [*tokens, tokens[0]]
        assert "stands there twice" in file_fault(write(tmp_path / "m.gguf", metadata, tensors))

    def test_names_are_shown_fit_for_a_terminal(self) -> None:
        key = text("\x1b[31m\n" + "x" * 1000)
        message = fault(START + key + struct.pack("<I", 99) + bytes(20))
        assert "\x1b" not in message
        assert len(message) < 200

    @pytest.mark.parametrize(
        ("tensor", "words"),
        [
            (text("t") + struct.pack("<IQIQ", 5, 1, 0, 0) + bytes(40), "5 dimensions"),
            (text("t") + struct.pack("<IqIQ", 1, -1, 0, 0), "its shape is impossible: -1"),
            (text("t") + struct.pack("<IqqIQ", 2, 2**40, 2**40, 0, 0), "its shape is impossible"),
            (text("t") + struct.pack("<IQIQ", 1, 32, 4, 0), "is of type 4, which llama.cpp does not know"),
            (text("t") + struct.pack("<IQIQ", 1, 32, 2**31, 0), "is of type 2147483648"),
            (text("t") + struct.pack("<IQIQ", 1, 33, 2, 0), "rows of 33 cannot be of type Q4_0, in blocks of 32"),
            (text("t") + struct.pack("<IQIQ", 1, 32, 0, 64), "its data begins at 64, 0 was expected"),
            (text("t" * 64) + struct.pack("<IQIQ", 1, 32, 0, 0), "a name of 64 bytes, at most 63"),
            (text("t") + struct.pack("<IQIQ", 1, 2**50, 0, 0), "cut off: "),
        ],
    )
    def test_a_bad_tensor(self, tensor: bytes, words: str) -> None:
        assert words in fault(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + tensor)

    def test_a_tensor_twice(self) -> None:
        tensor = text("t") + struct.pack("<IQIQ", 1, 0, 0, 0)
        assert "'t' stands there twice" in fault(b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + tensor + tensor)

    @pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
    def test_a_cut_file(self, tmp_path: Path, share: float) -> None:
        path = write(tmp_path / "m.gguf", *llama())
        whole = path.stat().st_size
        os.truncate(path, int(whole * share))
        message = file_fault(path)
        assert "fetch it again" in message
        assert share < 0.5 or f"{int(whole * share):,} of {whole:,} bytes are there" in message

    def test_a_file_that_shrinks_while_it_is_read(self) -> None:
        head, _ = gguf_files.header(*llama())
        assert "ends within its header" in fault(head[:300], n_bytes=10**6)

    def test_holes_as_long_as_a_disk_are_not_walked_through(self, tmp_path: Path) -> None:
        """Billions of empty strings, or one of half a terabyte, that the file really could hold."""
        for count, length in ((2**33, 0), (2**21, 2**39)):
            path = tmp_path / "m.gguf"
            start = START + text("k") + struct.pack("<IIQQ", 9, 8, count, length)
            with path.open("wb") as file:
                file.write(start)
                file.truncate(1 << 41)
            began = time.process_time()
            assert "not believable" in file_fault(path)
            assert time.process_time() - began < 1


class TestModel:
    """What a whole header must still have to be a model."""

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"general.architecture": 5}, "'general.architecture' is missing"),
            ({"llama.block_count": 513}, "'llama.block_count' is 513; llama.cpp takes 1 to 512"),
            ({"llama.block_count": 0}, "is 0; llama.cpp takes 1"),
            ({"llama.block_count": "two"}, "is 0; llama.cpp takes 1"),
            ({"llama.embedding_length": 0}, "embedding_length"),
            ({"llama.block_count": 3}, "tensors are missing, 'blk.2'"),
            ({"llama.expert_count": 2000, "llama.expert_used_count": 2}, "2 of 2000 experts"),
            ({"llama.expert_count": 4, "llama.expert_used_count": 5}, "5 of 4 experts"),
            ({"llama.expert_used_count": 2}, "2 of 0 experts"),
            ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "is nan; expected a small number"),
            ({"llama.attention.layer_norm_rms_epsilon": -1.0}, "is -1.0; expected a small number"),
        ],
    )
    def test_impossible_metadata(self, tmp_path: Path, change: dict[str, object], words: str) -> None:
        metadata, tensors = llama()
        assert words in file_fault(write(tmp_path / "m.gguf", metadata | change, tensors))

    @pytest.mark.parametrize("key", ["block_count", "context_length", "embedding_length"])
    def test_missing_metadata(self, tmp_path: Path, key: str) -> None:
        metadata, tensors = llama()
        del metadata[f"llama.{key}"]
        assert f"'llama.{key}' is missing" in file_fault(write(tmp_path / "m.gguf", metadata, tensors))

    @pytest.mark.parametrize("name", ["token_embd.weight", "blk.1.attn_q.weight", "blk.0.ffn_down.weight"])
    def test_a_missing_tensor(self, tmp_path: Path, name: str) -> None:
        metadata, tensors = llama()
        tensors = [one for one in tensors if one[0] != name]
        assert f"'{name}'" in file_fault(write(tmp_path / "m.gguf", metadata, tensors))

    def test_experts_one_by_one_as_files_had_them_once(self, tmp_path: Path) -> None:
        """llama.cpp has forgotten them, and would say that another tensor is missing."""
        metadata, tensors = llama(n_experts=2)
        apart = [
            (one[0].replace("_exps", f".{i}"), one[1][:2], one[2])
            for one in tensors
            for i in range(2 if "_exps" in one[0] else 1)
        ]
        fault = file_fault(write(tmp_path / "m.gguf", metadata, apart))
        assert "keeps each expert in a tensor of its own" in fault
        assert "convert it again" in fault

    @pytest.mark.parametrize(
        ("name", "kind", "words"),
        [
            ("blk.1.attn_q.weight", "i32", "is of type I32, expected a type for weights"),
            ("token_embd.weight", "q8_1", "is of type Q8_1, expected a type for weights"),
            ("output_norm.weight", "f16", "is of type F16, expected F32"),
        ],
    )
    def test_a_type_that_crashes_llama_cpp(self, tmp_path: Path, name: str, kind: str, words: str) -> None:
        metadata, tensors = llama()
        tensors = [(one, dims, kind if one == name else old) for one, dims, old in tensors]
        assert words in file_fault(write(tmp_path / "m.gguf", metadata, tensors))

    @pytest.mark.parametrize(
        ("name", "kind", "is_refused"),
        [
            ("rope_freqs.weight", "f16", True),
            ("rope_freqs.weight", "i32", True),
            ("rope_freqs.weight", "f32", False),
            ("blk.0.attn_q.bias", "i32", True),
            ("blk.0.attn_q.bias", "bf16", True),
            ("blk.0.attn_q.bias", "f16", False),
            ("blk.0.attn_q.bias", "f32", False),
        ],
    )
    def test_a_row_of_numbers_that_no_backend_reads(
        self, tmp_path: Path, name: str, kind: str, is_refused: bool
    ) -> None:
        metadata, tensors = llama()
        path = write(tmp_path / "m.gguf", metadata, [*tensors, (name, (64,), kind)])
        if is_refused:
            fault = f"the tensor '{name}' is of type {kind.upper()}, expected F32; convert the model again"
            assert file_fault(path) == f"{path}: {fault}"
        else:
            assert hub.find(str(path)).shape is not None

    @pytest.mark.parametrize("key", ["tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"])
    @pytest.mark.parametrize(("token", "is_refused"), [(99, False), (100, True), (2**32 - 2, True), (2**32 - 1, False)])
    def test_a_special_token_beyond_the_vocabulary(
        self, tmp_path: Path, key: str, token: int, is_refused: bool
    ) -> None:
        metadata, tensors = llama()
        path = write(tmp_path / "m.gguf", metadata | {key: token}, tensors)
        if is_refused:
            assert f"'{key}' is {token}, but the vocabulary has 100 tokens" in file_fault(path)
        else:
            assert hub.find(str(path)).shape is not None

    def test_only_a_vocabulary(self, tmp_path: Path) -> None:
        assert "only a vocabulary" in file_fault(write(tmp_path / "m.gguf", llama()[0], []))

    def test_a_folder(self, tmp_path: Path) -> None:
        assert "is a folder" in file_fault(tmp_path)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes in folders")
    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "m.gguf")
        assert "no ordinary file" in file_fault(tmp_path / "m.gguf")

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
    def test_unreadable(self, tmp_path: Path) -> None:
        path = write(tmp_path / "m.gguf", *llama())
        path.chmod(0)
        assert "cannot be read: Permission denied" in file_fault(path)


class TestParts:
    def parts(self, folder: Path, *changes: dict[str, int]) -> list[Path]:
        metadata, tensors = llama()
        cut = [tensors[:5], tensors[5:11], tensors[11:]]
        paths = []
        for number, change in zip(range(3), changes or ({}, {}, {}), strict=True):
            split = {"split.no": number, "split.count": 3, "split.tensors.count": len(tensors)} | change
            own = metadata if number == 0 else {}
            paths.append(write(folder / f"m-0000{number + 1}-of-00003.gguf", own | split, cut[number]))
        return paths

    def test_together_they_are_the_model(self, tmp_path: Path) -> None:
        parts = self.parts(tmp_path)
        found = gguf_header.read(parts)
        assert [one.name for one in found.tensors()] == [name for name, _, _ in llama()[1]]
        assert found.n_bytes == sum(part.stat().st_size for part in parts)
        assert shape.of(found).n_layers == 2

    def test_a_part_under_another_name(self, tmp_path: Path) -> None:
        parts = self.parts(tmp_path, {}, {"split.no": 2}, {"split.no": 1})
        with pytest.raises(ModelError, match=r"says that it is part 3 of 3, but its name makes it part 2 of 3"):
            gguf_header.read(parts)

    def test_one_of_several_under_a_name_of_its_own(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="part 1 of 3, but its name makes it part 1 of 1"):
            gguf_header.read(self.parts(tmp_path)[:1])

    def test_parts_of_different_models(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="99 were expected"):
            gguf_header.read(self.parts(tmp_path, {"split.tensors.count": 99}, {}, {}))

    def test_a_cut_part_is_named(self, tmp_path: Path) -> None:
        parts = self.parts(tmp_path)
        os.truncate(parts[1], parts[1].stat().st_size - 1)
        with pytest.raises(ModelError, match=r"m-00002-of-00003\.gguf: cut off"):
            gguf_header.read(parts)


def bounded(data: bytes, n_bytes: int) -> None:
    """Read it: a header or a ModelError of one line, within a second of the processor's time."""
    began = time.process_time()
    message = ""
    try:
        shape.of(gguf_header.Gguf((read_bytes(data, n_bytes),)))
    except ModelError as error:
        message = error.message
    assert message.isprintable()
    assert time.process_time() - began < 1


REAL = gguf_files.header(*llama(extra={"llama.rope.sections": [1, 2, 3], "x.y": [0.5], "x.z": True, "x.n": ["a", "b"]}))

VICIOUS = [0, 1, 7, 8, 9, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1]


class TestFuzz:
    """Nothing but ModelError comes out, whatever goes in."""

    @given(st.binary(max_size=4000))
    @settings(max_examples=examples(300), deadline=None)
    def test_random_bytes(self, data: bytes) -> None:
        bounded(data, len(data))
        bounded(b"GGUF" + struct.pack("<I", 3) + data, 8 + len(data))

    @given(
        st.lists(st.tuples(st.integers(4, len(REAL[0]) - 8), st.sampled_from(VICIOUS)), min_size=1, max_size=4),
        st.sampled_from(["<Q", "<I", "B"]),
        st.integers(0, 10**13),
    )
    @settings(max_examples=examples(600), deadline=None)
    def test_a_real_header_with_vicious_numbers(self, changes: list[tuple[int, int]], size: str, n_bytes: int) -> None:
        data = bytearray(REAL[0])
        for at, number in changes:
            struct.pack_into(size, data, at, number % 256 ** struct.calcsize(size))
        bounded(bytes(data), max(len(data), n_bytes))

    @given(st.integers(0, len(REAL[0])), st.binary(max_size=40))
    @settings(max_examples=examples(200), deadline=None)
    def test_a_real_header_cut_and_with_something_in_it(self, at: int, data: bytes) -> None:
        head = REAL[0]
        bounded(head[:at], at)
        bounded(head[:at] + data + head[at:], len(head) + len(data) + REAL[1])

    def test_the_demo_models_header_with_flipped_bits(self) -> None:
        path = hub.find("").path
        n_bytes = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(2_000_000)
        seeded = random.Random(7)
        for _ in range(40):
            data = bytearray(head)
            for _ in range(seeded.randint(1, 8)):
                data[seeded.randrange(8, seeded.choice([300, 5000, len(data)]))] ^= 1 << seeded.randrange(8)
            bounded(bytes(data), n_bytes)


class TestCommand:
    """A bad file ends `check` and `serve` in one line, at once, before any C code."""

    @pytest.mark.parametrize("command", ["check", "serve"])
    @pytest.mark.parametrize("defect", ["cut", "magic", "version", "endian", "tensors", "counts", "folder"])
    def test_one_line_and_exit_code_1(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        command: str,
        defect: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        path = self.broken(tmp_path, defect)
        began = time.process_time()
        with pytest.raises(SystemExit) as caught:
            cli.main([command, "-m", str(path), "--port", "0"])
        assert time.process_time() - began < 1
        said = capsys.readouterr()
        assert (caught.value.code, said.out) == (1, "")
        assert said.err.startswith(f"ggufd: {path}: ")
        assert said.err.count("\n") == 1

    def broken(self, folder: Path, defect: str) -> Path:
        head, size = gguf_files.header(*llama())
        data = {
            "cut": head + bytes(size // 2),
            "magic": b"GGJT" + head[4:],
            "version": head[:4] + b"\x09" + head[5:],
            "endian": head[:4] + head[4:8][::-1] + head[8:],
            "tensors": gguf_files.header(llama()[0], llama()[1][:3])[0] + bytes(size),
            "counts": head[:8] + b"\xff" * 16 + head[24:],
        }
        path = folder / "model.gguf"
        if defect == "folder":
            path.mkdir()
        else:
            path.write_bytes(data[defect])
        return path

    def test_no_binding_is_loaded_for_it(self, tmp_path: Path) -> None:
        path = self.broken(tmp_path, "cut")
        code = (
            "import sys\nfrom ggufd import cli\n"
            f"try: cli.main(['check', '-m', {str(path)!r}])\n"
            "finally: assert not {'llama_cpp', 'numpy', 'gguf'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
