"""Bounded reading alone: what is there is read, what is not is refused before it is believed."""

from __future__ import annotations

import struct

import pytest

from ggufd.errors import ModelError
from ggufd.llama.gguf.byte_reader import ByteReader


def reader_of(data: bytes, n_bytes: int | None = None) -> ByteReader:
    return ByteReader(lambda offset, n: data[offset : offset + n], len(data) if n_bytes is None else n_bytes, "x.bin")


def texts(*values: bytes) -> bytes:
    return b"".join(struct.pack("<Q", len(value)) + value for value in values)


def test_numbers_and_strings_come_one_after_the_other() -> None:
    reader = reader_of(struct.pack("<I", 7) + texts(b"abc", b"", b"de") + b"!")
    assert reader.number("I") == 7
    assert reader.text(10) == "abc"
    assert reader.texts(2) == [b"", b"de"]
    assert (reader.peek(9), reader.take(1)) == (b"!", b"!")


def test_skipped_strings_are_as_long_as_read_ones() -> None:
    data = texts(*[b"x" * n for n in range(50)])
    read, skipped = reader_of(data), reader_of(data)
    read.texts(50)
    skipped.skip_texts(50)
    assert read.at == skipped.at == len(data)


def test_the_end_is_named_with_what_was_being_read() -> None:
    reader = reader_of(b"ab")
    reader.where = "the third pair"
    with pytest.raises(ModelError, match=r"x\.bin: ends within its header, at byte 2 \(the third pair\)"):
        reader.number("Q")


def test_a_file_that_became_shorter_is_noticed() -> None:
    with pytest.raises(ModelError, match="ends within its header, at byte 3"):
        reader_of(b"abc", n_bytes=100).take(50)


@pytest.mark.parametrize("read", [lambda reader: reader.text(9), lambda reader: reader.count("pairs", 9)])
def test_numbers_that_nobody_would_write_are_refused(read: object) -> None:
    with pytest.raises(ModelError, match=r"at most 9|more than 9"):
        read(reader_of(struct.pack("<Q", 10) + b"x" * 10))  # type: ignore[operator]


def test_more_things_than_there_is_room_for_are_not_begun() -> None:
    with pytest.raises(ModelError, match="5 tensors are announced, but only 4 bytes follow"):
        reader_of(b"1234").check_room(5, 1, "tensors")
