"""The reader of images: what was read before is not decoded again, and tells nobody else that it was."""

from __future__ import annotations

import asyncio
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
    """Source, decoder and encoder in one: a reference is its own file and pixels, unless it names one of `files`."""

    def __init__(self) -> None:
        self.source = self.decoder = self
        self.files: dict[str, bytes] = {}
        self.read_texts: list[str] = []
        self.decoded: list[bytes] = []
        self.encoded: list[tuple[str, bytes]] = []

    async def read(self, reference: str, place: str, principal: Principal) -> bytes:
        self.read_texts.append(reference)
        return self.files.get(reference, reference.encode())

    def carries(self, reference: str) -> bool:
        return reference not in self.files

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


async def test_many_files_of_one_account_do_not_hold_up_another(
    reader: ImageReader, fake: FakeLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = asyncio.Semaphore(0)

    async def decode(data: bytes, place: str) -> Pixels:
        fake.decoded.append(data)
        await may_go_on.acquire()
        return Pixels(1, 1, data)

    monkeypatch.setattr(fake, "decode", decode)
    names = [*(f"a{i}" for i in range(5)), "b"]
    accounts = [Principal(account=name[0], cache_namespace=name[0]) for name in names]
    images = [await reader.load(name, "here", account) for name, account in zip(names, accounts, strict=True)]
    tasks = [asyncio.create_task(image.measure()) for image in images]
    await asyncio.sleep(0)
    for _ in names:
        may_go_on.release()
    await asyncio.gather(*tasks)
    assert fake.decoded == [b"a0", b"a1", b"b", b"a2", b"a3", b"a4"]


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


async def test_the_text_of_a_known_image_is_not_even_read(reader: ImageReader, fake: FakeLoader) -> None:
    await turn(reader, "red", ALICE)
    await turn(reader, "red", ALICE)
    assert fake.read_texts == ["red"]


async def test_texts_of_which_only_the_end_differs_are_two_images(reader: ImageReader, fake: FakeLoader) -> None:
    texts = ["x" * (3 << 20) + end for end in ("a", "b")]
    for one in [*texts, *texts]:
        await turn(reader, one, ALICE)
    assert fake.read_texts == texts


async def test_an_image_elsewhere_is_fetched_each_time_and_may_have_become_another(
    reader: ImageReader, fake: FakeLoader
) -> None:
    fake.files["http://x/y"] = b"red"
    await turn(reader, "http://x/y", ALICE)
    await turn(reader, "http://x/y", ALICE)
    fake.files["http://x/y"] = b"blue"
    await turn(reader, "http://x/y", ALICE)
    assert len(fake.read_texts) == 3
    assert fake.decoded == [b"red", b"blue"]


async def test_it_holds_its_pixels_and_a_file_that_was_fetched(reader: ImageReader, fake: FakeLoader) -> None:
    fake.files["http://x/y"] = b"blue"
    for reference, n_bytes in (("red", [0, 3]), ("http://x/y", [4, 8])):
        image = await reader.load(reference, "here", ALICE)
        before = image.n_bytes
        await image.measure()
        assert [before, image.n_bytes] == n_bytes
