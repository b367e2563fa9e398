"""Forms with a file: whatever way they are cut into pieces, and whatever is wrong with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufd.api.batches.multipart import Form, boundary_of, read_form
from ggufd.errors import InvalidRequest


def pieces_of(body: bytes, sizes: Sequence[int]) -> list[bytes]:
    pieces, start = [], 0
    for size in sizes:
        pieces.append(body[start : start + size])
        start += size
    return [*pieces, body[start:]]


def read(body: bytes, boundary: bytes = b"b", sizes: Sequence[int] = ()) -> tuple[Form, bytes]:
    written = bytearray()

    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces_of(body, sizes):
            yield piece
        yield b""

    async def write(piece: bytes) -> None:
        written.extend(piece)

    return asyncio.run(read_form(stream(), boundary, write)), bytes(written)


def part(head: str, content: bytes) -> bytes:
    return b"--b\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + content + b"\r\n"


@given(
    content=st.binary(max_size=300) | st.text("-\r\nb", max_size=60).map(str.encode),
    sizes=st.lists(st.integers(1, 40), max_size=30),
    filename=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
)
def test_a_form_of_a_real_client_is_read_whole_in_whatever_pieces_it_comes(
    content: bytes, sizes: list[int], filename: str
) -> None:
    form = {"purpose": "batch", "expires_after[seconds]": "3600"}
    request = httpx.Request("POST", "http://x/", data=form, files={"file": (filename, content)})
    boundary = boundary_of(request.headers["content-type"])
    found, written = read(request.read(), boundary, sizes)
    assert (found.fields, written) == (form, content)
    assert found.filename


def test_a_files_name_is_shown_as_it_was_sent() -> None:
    body = part('name="file"; filename="größe.jsonl"', b"x") + b"--b--\r\n"
    assert read(body)[0].filename == "größe.jsonl"


def test_a_name_that_would_leave_a_folder_or_a_line_is_only_a_name() -> None:
    body = part('name="file"; filename="../../etc/passwd\x07"', b"x") + b"--b--"
    assert read(body)[0].filename == "../../etc/passwd"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "ends before its last boundary"),
        (b"--b", "ends before its last boundary"),
        (part('name="file"', b"x"), "ends before its last boundary"),
        (b"--b\r\n\r\n\r\n\r\nx\r\n--b--", "has no name"),
        (part("filename=f", b"x") + b"--b--", "has no name"),
        (part('name="file"', b"1") + part('name="file"', b"2") + b"--b--", "expected one file"),
        (part('name="purpose"', b"\xff") + b"--b--", "is not UTF-8"),
        (part('name="purpose"', b"x" * 5000) + b"--b--", "is longer than 4096 bytes"),
        (part('name="p"', b"x") * 40 + b"--b--", "too many parts"),
        (part('name="p"; x="' + "y" * 9000 + '"', b"x") + b"--b--", "is longer than 8192 bytes"),
        (b"x" * 5000, "is longer than 1024 bytes"),
    ],
    ids=["empty", "cut", "endless", "nameless", "unnamed", "two", "bytes", "long", "many", "head", "preamble"],
)
def test_a_broken_form_is_a_bad_request(body: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        read(body)


@given(st.binary(max_size=200) | st.text('-b\r\n:;="ndfile', max_size=120).map(lambda text: b"--b\r\n" + text.encode()))
def test_no_bytes_are_anything_but_a_form_or_a_bad_request(body: bytes) -> None:
    try:
        read(body)
    except InvalidRequest:
        return


@pytest.mark.parametrize(
    "sent", ["", "application/json", "multipart/form-data", "multipart/form-data; boundary=", "x/y"]
)
def test_what_is_no_form_is_a_bad_request(sent: str) -> None:
    with pytest.raises(InvalidRequest, match="multipart/form-data"):
        boundary_of(sent)
