"""The reader of images: what was read before is not decoded again, and tells nobody else that it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ggufd.engine.messages.images import ImageRows
from ggufd.errors import InvalidRequest
from ggufd.images.encoded import EncodedImage
from ggufd.images.encoder.reader import ImageReader
from ggufd.images.pixels import Pixels
from ggufd.keys.principal import NOBODY, Principal

ALICE, BOB = (replace(NOBODY, cache_namespace=name) for name in ("alice", "bob"))
ROWS = ImageRows("ab" * 32, 2, "")


class FakeLoader:
    """Source, decoder and encoder in one: a reference is its own file, and its own pixels."""

    def __init__(self) -> None:
        self.source = self.decoder = self
        self.decoded: list[bytes] = []
        self.encoded: list[tuple[str, bytes]] = []

    async def read(self, reference: str, place: str) -> bytes:
        return reference.encode()

    async def decode(self, data: bytes, place: str) -> Pixels:
        self.decoded.append(data)
        if data == b"bad":
            raise InvalidRequest("no image", param=place)
        return Pixels(1, 1, data)

    async def measure(self, pixels: Pixels) -> EncodedImage:
        return EncodedImage(((7,), ROWS))

    def kept(self, image: EncodedImage, principal: Principal) -> EncodedImage | None:
        scopes = [scope for scope, _ in self.encoded]
        return self._with_file(principal) if principal.cache_namespace in scopes else None

    async def encode(self, pixels: Pixels, principal: Principal) -> EncodedImage:
        self.encoded.append((principal.cache_namespace, pixels.data))
        return self._with_file(principal)

    def _with_file(self, principal: Principal) -> EncodedImage:
        return EncodedImage(((7,), replace(ROWS, path=f"/{principal.cache_namespace}")))


@pytest.fixture
def fake() -> FakeLoader:
    return FakeLoader()


@pytest.fixture
def reader(fake: FakeLoader) -> ImageReader:
    both: Any = fake
    return ImageReader(both, both)


async def turn(reader: ImageReader, name: str, principal: Principal) -> EncodedImage:
    image = await reader.load(name, "messages[0].image_url", principal)
    assert (await image.measure()).parts == ((7,), ROWS)
    return await image.encode()


async def test_an_image_is_decoded_once_for_a_turn_and_not_for_the_next(reader: ImageReader, fake: FakeLoader) -> None:
    first = await turn(reader, "red", ALICE)
    assert (fake.decoded, fake.encoded) == ([b"red"], [("alice", b"red")])
    assert await turn(reader, "red", ALICE) == first
    assert (fake.decoded, fake.encoded) == ([b"red"], [("alice", b"red")])


async def test_another_key_learns_nothing_of_it(reader: ImageReader, fake: FakeLoader) -> None:
    await turn(reader, "red", ALICE)
    await turn(reader, "red", BOB)
    assert fake.decoded == [b"red", b"red"]


async def test_an_image_whose_rows_are_gone_is_decoded_again(reader: ImageReader, fake: FakeLoader) -> None:
    await turn(reader, "red", ALICE)
    fake.encoded.clear()
    await turn(reader, "red", ALICE)
    assert (fake.decoded, fake.encoded) == ([b"red", b"red"], [("alice", b"red")])


async def test_what_is_no_image_is_refused_each_time(reader: ImageReader, fake: FakeLoader) -> None:
    for _ in range(2):
        with pytest.raises(InvalidRequest):
            await turn(reader, "bad", ALICE)
    assert fake.decoded == [b"bad", b"bad"]


async def test_it_holds_the_file_and_its_pixels(reader: ImageReader) -> None:
    image = await reader.load("red", "here", ALICE)
    assert image.n_bytes == 3
    await image.measure()
    assert image.n_bytes == 6
