"""The encoder in front of its process: each image once, in its scope, for as long as somebody waits."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ggufd.engine.messages.images import ImageRows
from ggufd.errors import EngineFailure
from ggufd.images.encoded import EncodedImage
from ggufd.images.encoder.encoder import ImageEncoder
from ggufd.images.encoder.messages import Encoded, EncoderParams, Layout
from ggufd.images.pixels import Pixels
from ggufd.keys.principal import NOBODY, Principal
from ggufd.llama.params import ProjectorParams

N_EMBD = 4
ADA, BOB = Principal(account="ada", cache_namespace="ada"), Principal(account="bob", cache_namespace="bob")


def pixels(value: int, width: int = 2, height: int = 1) -> Pixels:
    return Pixels(width, height, bytes([value]) * (3 * width * height))


def write(path: str, n_rows: int) -> None:
    Path(path).write_bytes(bytes(4 * N_EMBD * n_rows))


def sizes_of(image: EncodedImage) -> list[int]:
    return [Path(rows.path).stat().st_size for rows in image.rows]


class FakeProcess:
    """A process that writes rows of zeros when it is told to: two tiles with a token between them."""

    def __init__(self) -> None:
        self.encoded: list[Pixels] = []
        self.begun: asyncio.Queue[Pixels] = asyncio.Queue()
        self.measured: list[tuple[int, int]] = []
        self.cancelled = self.n_exits = 0
        self.layout: Layout = (2, (7,), 3)
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.error: Exception | None = None

    async def start(self, temporary: str = "") -> None: ...
    async def stop(self) -> None: ...

    async def measure(self, width: int, height: int) -> Layout:
        self.measured.append((width, height))
        return (2, (7,), 3)

    async def encode(self, asked: Pixels, paths: tuple[str, ...]) -> Encoded:
        self.encoded.append(asked)
        self.begun.put_nowait(asked)
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        for path, n_rows in zip(paths, (2, 3), strict=True):
            write(path, n_rows)
        return Encoded(1, self.layout, 0.5)


@pytest.fixture
async def encoder(tmp_path: Path) -> AsyncIterator[ImageEncoder]:
    projector = tmp_path / "mmproj.gguf"
    projector.write_bytes(b"weights")
    params = EncoderParams("model.gguf", ProjectorParams(str(projector), N_EMBD))
    encoder = ImageEncoder(params, tmp_path / "rows")
    encoder.process = FakeProcess()  # type: ignore[assignment]
    await encoder.start()
    yield encoder
    await encoder.stop()


def process_of(encoder: ImageEncoder) -> FakeProcess:
    assert isinstance(encoder.process, FakeProcess)
    return encoder.process


async def all_wait(encoder: ImageEncoder, n_waiting: int) -> None:
    """Wait until so many wait for one encoding: their images are hashed on threads, in any order."""
    for _ in range(10_000):
        if [one.n_waiting for one in encoder._shared.values()] == [n_waiting]:
            return
        await asyncio.sleep(0.001)
    raise AssertionError("some do not wait")


async def test_the_rows_of_each_tile_have_a_file_and_a_digest_of_their_own(encoder: ImageEncoder) -> None:
    image = await encoder.encode(pixels(1), NOBODY)
    first, tokens, second = image.parts
    assert isinstance(first, ImageRows)
    assert isinstance(second, ImageRows)
    assert (first.n_rows, tokens, second.n_rows) == (2, (7,), 3)
    assert first.digest != second.digest
    assert sizes_of(image) == [2 * 4 * N_EMBD, 3 * 4 * N_EMBD]


async def test_an_image_is_encoded_once(encoder: ImageEncoder) -> None:
    assert await encoder.encode(pixels(1), NOBODY) == await encoder.encode(pixels(1), NOBODY)
    await encoder.encode(pixels(2), NOBODY)
    assert process_of(encoder).encoded == [pixels(1), pixels(2)]
    assert (encoder.figures.encoded, encoder.figures.hits) == (2, 1)


async def test_equal_bytes_of_another_shape_are_another_image(encoder: ImageEncoder) -> None:
    wide, high = await encoder.measure(pixels(1, 2, 1)), await encoder.measure(pixels(1, 1, 2))
    assert not {rows.digest for rows in wide.rows} & {rows.digest for rows in high.rows}


async def test_another_scope_has_rows_of_its_own(encoder: ImageEncoder) -> None:
    ada, bob = await encoder.encode(pixels(1), ADA), await encoder.encode(pixels(1), BOB)
    assert len(process_of(encoder).encoded) == 2
    assert [rows.digest for rows in ada.rows] == [rows.digest for rows in bob.rows]
    assert not {rows.path for rows in ada.rows} & {rows.path for rows in bob.rows}


async def test_a_measured_image_is_the_encoded_one_without_files(encoder: ImageEncoder) -> None:
    measured = await encoder.measure(pixels(1))
    assert process_of(encoder).encoded == []
    image = await encoder.encode(pixels(1), NOBODY)
    assert [(rows.digest, rows.n_rows) for rows in measured.rows] == [(rows.digest, rows.n_rows) for rows in image.rows]
    assert all(rows.path == "" for rows in measured.rows)
    assert process_of(encoder).measured == [(2, 1)]


async def test_requests_for_one_image_share_an_encoding(encoder: ImageEncoder) -> None:
    process_of(encoder).may_end.clear()
    tasks = [asyncio.create_task(encoder.encode(pixels(1), NOBODY)) for _ in range(3)]
    await all_wait(encoder, 3)
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    process_of(encoder).may_end.set()
    second, third = await asyncio.gather(*tasks[1:])
    assert second == third
    assert process_of(encoder).encoded == [pixels(1)]
    assert process_of(encoder).cancelled == 0


async def test_an_encoding_that_nobody_waits_for_is_given_up_and_can_be_asked_for_again(encoder: ImageEncoder) -> None:
    process_of(encoder).may_end.clear()
    task = asyncio.create_task(encoder.encode(pixels(1), NOBODY))
    await process_of(encoder).begun.get()
    task.cancel()
    again = asyncio.create_task(encoder.encode(pixels(1), NOBODY))
    await process_of(encoder).begun.get()
    assert process_of(encoder).cancelled == 1
    process_of(encoder).may_end.set()
    assert (await again).n_rows == 5
    assert encoder.figures.failed == 0


async def test_an_error_is_told_to_all_who_wait_and_kept_by_nobody(encoder: ImageEncoder) -> None:
    process_of(encoder).error = EngineFailure("it broke")
    process_of(encoder).may_end.clear()
    tasks = [asyncio.create_task(encoder.encode(pixels(1), NOBODY)) for _ in range(2)]
    await all_wait(encoder, 2)
    process_of(encoder).may_end.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(answer) for answer in answers] == ["it broke", "it broke"]
    process_of(encoder).error = None
    assert (await encoder.encode(pixels(1), NOBODY)).n_rows == 5
    assert encoder.figures.failed == 1


async def test_other_parts_than_the_size_promised_are_no_image(encoder: ImageEncoder) -> None:
    process_of(encoder).layout = (2, (7,), 4)
    with pytest.raises(EngineFailure, match="other parts than its size promised"):
        await encoder.encode(pixels(1), NOBODY)


async def test_a_file_that_is_gone_is_encoded_again(encoder: ImageEncoder) -> None:
    image = await encoder.encode(pixels(1), NOBODY)
    os.unlink(next(image.rows).path)
    assert await encoder.encode(pixels(1), NOBODY) == image
    assert len(process_of(encoder).encoded) == 2


async def test_rows_depend_on_the_projector_and_its_limits(tmp_path: Path) -> None:
    async def digest(weights: bytes, max_tokens: int | None = None) -> str:
        path = tmp_path / "other.gguf"
        path.write_bytes(weights)
        params = EncoderParams("model.gguf", ProjectorParams(str(path), N_EMBD, max_tokens=max_tokens))
        encoder = ImageEncoder(params, tmp_path / "rows")
        encoder.process = FakeProcess()  # type: ignore[assignment]
        await encoder.start()
        return next((await encoder.measure(pixels(1))).rows).digest

    digests = [await digest(b"one"), await digest(b"two"), await digest(b"one", 64)]
    assert len(set(digests)) == 3
    assert await digest(b"one") == digests[0]
