"""Data URIs and base64, as clients write them and as they should not."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufd.errors import InvalidRequest
from ggufd.images.fetching.limits import ImageLimits
from ggufd.images.fetching.source import ImageSource

MAX_BYTES = 3_000_000
ANY = st.characters(exclude_categories=())
"""Halves of surrogate pairs as well, which JSON can hold."""
DATA = bytes(range(256)) * 3 + b"\xfb\xff"

Read = Callable[[str], Awaitable[bytes]]


@pytest.fixture
def read() -> Read:
    source = ImageSource(ImageLimits(max_bytes=MAX_BYTES))
    return lambda reference: source.read(reference, "messages.0.content.1.image_url.url")


async def refusal(read: Read, reference: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        await read(reference)
    assert caught.value.param == "messages.0.content.1.image_url.url"
    return caught.value.message.removeprefix("'messages.0.content.1.image_url.url': ")


def encoded(data: bytes = DATA) -> str:
    return base64.b64encode(data).decode("ascii")


FORMS = {
    "bare": encoded(),
    "padding left out": encoded().rstrip("="),
    "the alphabet of URLs": base64.urlsafe_b64encode(DATA).decode("ascii"),
    "lines": "\r\n".join(encoded()[at : at + 76] for at in range(0, len(encoded()), 76)) + "\n",
    "a data URI": f"data:image/png;base64,{encoded()}",
    "capitals": f"DATA:IMAGE/PNG;BASE64,{encoded()}",
    "a parameter": f"data:image/png;charset=utf-8;base64,{encoded()}",
    "no media type": f"data:;base64,{encoded()}",
    "a media type that lies": f"data:text/html;base64,{encoded()}",
    "blanks around": f"  data:image/png;base64, {encoded()} ",
    "base64 in percent": f"data:image/png;base64,{quote(encoded(), safe='')}",
    "percent": f"data:image/png,{quote(DATA)}",
}


@pytest.mark.parametrize("form", FORMS)
async def test_every_form_is_read(read: Read, form: str) -> None:
    assert await read(FORMS[form]) == DATA


NOT_READ = {
    "letters of others": ("data:image/png;base64,äöü", "the image is not base64"),
    "a letter too many": ("data:image/png;base64,AAAAA", "the image is not base64"),
    "padding in the middle": ("data:image/png;base64,AA==AAAA", "the image is not base64"),
    "punctuation": ("data:image/png;base64,AA!!", "the image is not base64"),
    "words": ("this is an image", "the image is not base64"),
    "no comma": ("data:image/png;base64", "the data URI has no comma"),
    "another kind": ("ftp://example.com/a.png", "the image's URL is of a kind that is not read here"),
    "a page's own": ("blob:https://example.com/1", "the image's URL is of a kind that is not read here"),
    "script": ("javascript:alert(1)", "the image's URL is of a kind that is not read here"),
    "too large": (encoded(bytes(MAX_BYTES + 1)), "the image's file is larger than 3,000,000 bytes"),
    "too large in percent": ("data:," + "x" * (MAX_BYTES + 1), "the image's file is larger than 3,000,000 bytes"),
    "the network": ("https://example.com/a.png", "images are not fetched from the network here"),
    "a file": ("file:///etc/passwd", "files of the server's machine are not read here"),
}


@pytest.mark.parametrize("what", NOT_READ)
async def test_anything_else_is_refused_and_said(read: Read, what: str) -> None:
    reference, message = NOT_READ[what]
    assert (await refusal(read, reference)).startswith(message)


async def test_nothing_is_an_empty_file(read: Read) -> None:
    """What is no image is the decoder's to say."""
    assert await read("") == await read("data:image/png;base64,") == b""


@pytest.mark.parametrize("before", ["", "A", "AA"])
async def test_no_piece_ends_within_an_escape(read: Read, before: str) -> None:
    """Three megabytes of escapes, read in pieces of one."""
    text = before + "%2B%2f" * 500_000 + "A" * (-len(before) % 4)
    plain = text.replace("%2B", "+").replace("%2f", "/")
    assert await read(f"data:;base64,{text}") == await read(plain)


async def test_few_bytes_may_be_percent_encoded(read: Read) -> None:
    assert await read("data:,50%") == b"50%"
    assert "too many percent-encoded bytes" in await refusal(read, "data:," + "%41" * 30_000)


async def test_the_largest_file_is_read_in_pieces(read: Read) -> None:
    data = DATA * (MAX_BYTES // len(DATA))
    assert await read(encoded(data)) == data


@settings(deadline=None)
@given(data=st.binary(max_size=200), gap=st.integers(1, 40), white=st.sampled_from(["\n", " ", "\r\n", "\t"]))
async def test_white_space_anywhere_changes_nothing(data: bytes, gap: int, white: str) -> None:
    text = encoded(data)
    spread = white.join(text[at : at + gap] for at in range(0, len(text), gap))
    assert await ImageSource(ImageLimits()).read("data:;base64," + spread, "x") == data


@settings(deadline=None)
@given(st.text(ANY, max_size=100))
async def test_any_text_is_read_or_refused(text: str) -> None:
    source = ImageSource(ImageLimits())
    for reference in (text, "data:" + text, "data:;base64," + text, "http://" + text, "file://" + text):
        try:
            assert isinstance(await source.read(reference, "x"), bytes)
        except InvalidRequest:
            continue


@pytest.mark.parametrize("half", ["data:,\ud800", "data:;base64,%41\ud800", "\ud800", "file://\ud800"])
async def test_half_a_character_is_refused(half: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        await ImageSource(ImageLimits(media_path=tmp_path)).read(half, "x")
