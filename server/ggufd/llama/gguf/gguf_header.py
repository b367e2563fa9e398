"""Reader of GGUF headers: metadata, and name, shape, type and place of every tensor. Never the weights.

The format is ggml's docs/gguf.md, versions 2 and 3, little-endian; what ggml's own reader refuses is refused here
first, in one line, so that a bad file never reaches C. Every number is checked against what the file can still hold
before it is used; the header as a whole is bounded, so no file makes this slow. Knows no llama_cpp and no numpy.
"""

from __future__ import annotations

import re
import stat
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import FileIO
from itertools import chain
from math import prod
from pathlib import Path
from typing import NamedTuple

from ggufd.errors import ModelError
from ggufd.llama.gguf.byte_reader import MAX_TEXT, ByteReader, ReadAt
from ggufd.llama.gguf.tensor_types import TENSOR_TYPES, TensorType

VERSIONS = (2, 3)


class Skipped(NamedTuple):
    """An array (or a very long string) that was stepped over: the type of its elements, and how many there are."""

    kind: str
    length: int


Scalar = int | float | bool | str
Value = Scalar | tuple[int | float | bool, ...] | Skipped
"""Short arrays of numbers are kept (one a layer); a vocabulary is skipped."""

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
"""What llama.cpp's gguf-split names the parts of a model."""

_MAX_PAIRS = 1 << 16
_MAX_TENSORS = 1 << 16
_MAX_KEY = 1 << 16
_MAX_KEPT = 4096
_MAX_NAME = 63
_MAX_DIMS = 4
_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20
_TOKENS = "tokenizer.ggml.tokens"

_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = {
    0: ("u8", "B"),
    1: ("i8", "b"),
    2: ("u16", "H"),
    3: ("i16", "h"),
    4: ("u32", "I"),
    5: ("i32", "i"),
    6: ("f32", "f"),
    7: ("bool", "B"),
    10: ("u64", "Q"),
    11: ("i64", "q"),
    12: ("f64", "d"),
}
"""Value types of the format that have a fixed size: name, and letter of `struct`."""

_PAIR_BYTES = 8 + 1 + 4 + 1
_TENSOR_BYTES = 8 + 4 + 4 + 8
"""The least that one takes; more of them than would fit are not begun."""


class TensorInfo(NamedTuple):
    """One tensor. `shape` has the row's length first; `offset` is in bytes from the start of the data."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int

    @property
    def n_elements(self) -> int:
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        return self.n_elements // self.type.block * self.type.block_bytes


@dataclass(frozen=True, slots=True)
class Header:
    """The header of one file. `n_bytes` is the size of the file, `data_offset` where its tensors begin."""

    name: str
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Gguf:
    """A whole model, of one file or several. `metadata` is the first file's; `n_bytes` is all files together."""

    parts: tuple[Header, ...]

    @property
    def name(self) -> str:
        return self.parts[0].name

    @property
    def metadata(self) -> Mapping[str, Value]:
        return self.parts[0].metadata

    @property
    def n_bytes(self) -> int:
        return sum(part.n_bytes for part in self.parts)

    def with_metadata(self, changes: Mapping[str, Scalar]) -> Gguf:
        """The same model with other values under some keys."""
        first, *others = self.parts
        return Gguf((replace(first, metadata={**first.metadata, **changes}), *others))

    def tensors(self) -> Iterator[TensorInfo]:
        return chain.from_iterable(part.tensors for part in self.parts)

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    def text(self, key: str, default: str = "") -> str:
        value = self.metadata.get(key, default)
        return value if isinstance(value, str) else default

    def integer(self, key: str, default: int = 0) -> int:
        """Metadata value, an integer of 0 or more, or `default`. `{arch}` in `key` is the architecture's name."""
        value = self.metadata.get(key.replace("{arch}", self.architecture))
        return value if isinstance(value, int) and value >= 0 else default

    def per_layer(self, key: str, n_layers: int, default: int = 0) -> tuple[int, ...]:
        """Metadata value of every layer: some files give one for all, others an array."""
        values = self.metadata.get(key.replace("{arch}", self.architecture))
        if not isinstance(values, tuple):
            return (self.integer(key, default),) * n_layers
        whole = [value if isinstance(value, int) and value >= 0 else default for value in values[:n_layers]]
        return tuple(whole + [default] * (n_layers - len(whole)))

    def has(self, key: str) -> bool:
        return key.replace("{arch}", self.architecture) in self.metadata


# --- from files -----------------------------------------------------------------------------------------------------


def parts_of(path: Path) -> list[Path]:
    """All files of the model that `path` is (a part of), in order, by their names; whether they are there or not."""
    part = _PART.fullmatch(path.name)
    if part is None:
        return [path]
    count = int(part["count"])
    return [path.with_name(f"{part['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]


def read(paths: Sequence[Path]) -> Gguf:
    """The header of a model whose files are `paths`, in order. Raises ModelError, one line."""
    headers = [read_file(path) for path in paths]
    if len(headers) > 1 or "split.count" in headers[0].metadata:
        _check_split(headers)
    return Gguf(tuple(headers))


def read_file(path: Path, flag: str = "--model") -> Header:
    """The header of one file, which `flag` names. Raises ModelError when it cannot be read or is damaged or cut."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            # Opening a pipe would wait for its other end.
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no ordinary file"
            raise ModelError(f"{path}: is {kind}; {flag} wants the path of a GGUF file")
        with path.open("rb", buffering=0) as file:
            return read_header(_reading(file), status.st_size, str(path), flag)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; {flag} wants the path of a GGUF file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_tokens(path: Path) -> list[bytes]:
    """Token texts of the vocabulary of a file with a valid header; empty where it has none."""
    with path.open("rb", buffering=0) as file:
        reader = ByteReader(_reading(file), path.stat().st_size, str(path))
        _version(reader)
        reader.number("Q")
        for _ in range(reader.number("Q")):
            key, kind = reader.text(_MAX_KEY), reader.number("I")
            if key == _TOKENS and kind == _ARRAY and reader.number("I") == _STRING:
                return reader.texts(reader.number("Q"))
            _value(reader, kind, is_vocabulary=False)
    return []


def _reading(file: FileIO) -> ReadAt:
    def read_at(offset: int, n: int) -> bytes:
        file.seek(offset)
        return file.read(n)

    return read_at


def _check_split(headers: Sequence[Header]) -> None:
    """Check of split files: the part number in each must match its file name, as llama.cpp requires."""
    for number, header in enumerate(headers):
        count, own = header.metadata.get("split.count"), header.metadata.get("split.no")
        if count in (0, 1) and len(headers) == 1:
            return
        if count != len(headers) or own != number:
            raise ModelError(
                f"{header.name}: says that it is part {_ordinal(own)} of {count}, but its name makes it part "
                f"{number + 1} of {len(headers)}; give the parts the names they were published with"
            )
    expected = headers[0].metadata.get("split.tensors.count")
    found = sum(len(header.tensors) for header in headers)
    if expected != found:
        raise ModelError(f"{headers[0].name}: its parts hold {found} tensors, {expected} were expected; fetch it again")
    names = [tensor.name for header in headers for tensor in header.tensors]
    if len(set(names)) != len(names):
        raise ModelError(f"{headers[0].name}: a tensor stands in two of its parts; fetch it again")


def _ordinal(number: Value | None) -> str:
    return str(number + 1) if isinstance(number, int) else "unknown"


# --- from bytes -----------------------------------------------------------------------------------------------------


def read_header(read_at: ReadAt, n_bytes: int, name: str, flag: str = "--model") -> Header:
    """Read the header of a stream of `n_bytes` bytes; `name` and `flag` are shown in errors. Raises ModelError."""
    reader = ByteReader(read_at, n_bytes, name)
    version = _version(reader, flag)
    n_tensors = reader.count("tensors", _MAX_TENSORS)
    n_pairs = reader.count("metadata pairs", _MAX_PAIRS)
    reader.check_room(n_tensors, _TENSOR_BYTES, "tensors")
    reader.check_room(n_pairs, _PAIR_BYTES, "metadata pairs")
    metadata = _metadata(reader, n_pairs)
    alignment = _alignment(reader, metadata)
    tensors = _tensors(reader, n_tensors, alignment)
    data_offset = _padded(reader.at, alignment)
    header = Header(name, version, metadata, tensors, data_offset, n_bytes)
    _check_size(header)
    return header


def _version(reader: ByteReader, flag: str = "--model") -> int:
    head = reader.peek(64)
    if head and b"version https://git-lfs".startswith(head[:23]):
        raise ModelError(f"{reader.name}: only a Git LFS pointer, not the model; fetch it with: git lfs pull")
    if head[:4] != b"GGUF":
        found = "is empty" if not head else "not a GGUF file"
        raise ModelError(f"{reader.name}: {found}; {flag} wants a file in llama.cpp's GGUF format")
    reader.where = "the first bytes"
    reader.take(4)
    version = reader.number("I")
    if version not in VERSIONS:
        is_swapped = version & 0xFFFF == 0 and version != 0
        found = "is big-endian" if is_swapped else f"version {version}"
        raise ModelError(
            f"{reader.name}: GGUF {found}; expected version 2 or 3, little-endian: convert the model again, or update "
            "ggufd if the file is newer"
        )
    return version


def _metadata(reader: ByteReader, n_pairs: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for i in range(n_pairs):
        reader.where = f"metadata pair {i + 1} of {n_pairs}"
        key = reader.text(_MAX_KEY)
        if not key:
            reader.fail("its key is empty")
        if key in metadata:
            reader.fail(f"the key {shown(key)} stands there twice")
        reader.where += f", {shown(key)}"
        metadata[key] = _value(reader, reader.number("I"), is_vocabulary=key == _TOKENS and not _may_repeat(metadata))
    return metadata


def _may_repeat(metadata: Mapping[str, Value]) -> bool:
    """Whether tokens may repeat: one tokenizer of llama.cpp tells equal ones apart by their place."""
    return metadata.get("tokenizer.ggml.model") == "hybriddna"


def _value(reader: ByteReader, kind: int, *, is_vocabulary: bool) -> Value:
    if kind == _STRING:
        return _text(reader)
    if kind == _ARRAY:
        return _array(reader, is_vocabulary=is_vocabulary)
    if kind not in _NUMBERS:
        reader.fail(f"{kind} is no type of value")
    value = reader.number(_NUMBERS[kind][1])
    return value != 0 if kind == _BOOL else value


def _text(reader: ByteReader) -> str | Skipped:
    n = reader.number("Q")
    if n > MAX_TEXT:
        reader.skip(n)
        return Skipped("character", n)
    return reader.take(n).decode("utf-8", "replace")


def _array(reader: ByteReader, *, is_vocabulary: bool) -> Value:
    kind, count = reader.number("I"), reader.number("Q")
    if kind == _STRING:
        reader.check_room(count, 8, "strings")
        if is_vocabulary:
            _check_distinct(reader, count)
        else:
            reader.skip_texts(count)
        return Skipped("string", count)
    if kind not in _NUMBERS:
        reader.fail(f"{kind} is no type of an array's elements")
    name, letter = _NUMBERS[kind]
    size = struct.calcsize(letter)
    reader.check_room(count, size, "numbers")
    if count > _MAX_KEPT:
        reader.skip(count * size)
        return Skipped(name, count)
    values = struct.unpack(f"<{count}{letter}", reader.take(count * size))
    return tuple(value != 0 for value in values) if kind == _BOOL else values


def _check_distinct(reader: ByteReader, count: int) -> None:
    """Check of the vocabulary: llama.cpp aborts where two tokens have the same text; empty ones it names itself."""
    texts = [text for text in reader.texts(count) if text]
    if len(set(texts)) != len(texts):
        twice = Counter(texts).most_common(1)[0][0]
        reader.fail(f"the token {shown(twice.decode('utf-8', 'replace'))} stands there twice")


def _alignment(reader: ByteReader, metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1) or alignment > _MAX_ALIGNMENT:
        reader.where = "'general.alignment'"
        reader.fail("expected a power of two, such as 32")
    return alignment


def _tensors(reader: ByteReader, n_tensors: int, alignment: int) -> tuple[TensorInfo, ...]:
    tensors: dict[str, TensorInfo] = {}
    end = 0
    for i in range(n_tensors):
        reader.where = f"tensor {i + 1} of {n_tensors}"
        name = reader.text(_MAX_NAME)
        if name in tensors:
            reader.fail(f"the name {shown(name)} stands there twice")
        reader.where += f", {shown(name)}"
        tensor = tensors[name] = _tensor(reader, name)
        if tensor.offset != end:
            reader.fail(f"its data begins at {tensor.offset}, {end} was expected")
        end += _padded(tensor.n_bytes, alignment)
    return tuple(tensors.values())


def _tensor(reader: ByteReader, name: str) -> TensorInfo:
    n_dims = reader.number("I")
    if n_dims > _MAX_DIMS:
        reader.fail(f"{n_dims} dimensions, at most {_MAX_DIMS} are possible")
    shape = struct.unpack(f"<{n_dims}q", reader.take(8 * n_dims))
    if any(length < 0 for length in shape) or prod(max(1, length) for length in shape) >= 1 << 60:
        reader.fail("its shape is impossible: " + " x ".join(map(str, shape)))
    number = reader.number("I")
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        reader.fail(f"is of type {number}, which llama.cpp does not know: convert the model again, or update ggufd")
    if (shape[0] if shape else 1) % kind.block:
        reader.fail(f"rows of {shape[0] if shape else 1} cannot be of type {kind.name}, in blocks of {kind.block}")
    return TensorInfo(name, shape, kind, reader.number("Q"))


def _check_size(header: Header) -> None:
    if not header.tensors:
        return
    last = header.tensors[-1]
    expected = header.data_offset + last.offset + last.n_bytes
    if header.n_bytes < expected:
        raise ModelError(
            f"{header.name}: cut off: {header.n_bytes:,} of {expected:,} bytes are there; the download is not "
            "complete, fetch it again"
        )


def _padded(n: int, alignment: int) -> int:
    return (n + alignment - 1) // alignment * alignment


def shown(name: str) -> str:
    """Name from an untrusted file, escaped for a terminal."""
    text = re.sub(r"[^\x20-\x7e]", "?", name)
    return f"'{text[:64]}…'" if len(text) > 64 else f"'{text}'"
