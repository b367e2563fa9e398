"""The decoding process: one file after another, killed where one takes too long, with harm to nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from multiprocessing.connection import Connection

import psutil
import pytest
from PIL import Image

from ggufd.errors import EngineDown, InvalidRequest
from ggufd.images.decoding import decoder as module
from ggufd.images.decoding.decoder import ImageDecoder
from ggufd.images.decoding.limits import DecodeLimits
from ggufd.images.decoding.worker import DecoderReady, Outcome, outcome
from ggufd.images.pixels import Pixels
from tests.support.models.image_files import PATCHES, RED, gif_of_frames, image_bytes, patch_file, png_of_zeros

pytestmark = pytest.mark.e2e

LIMITS = DecodeLimits(timeout_s=2.0)
WAIT_S = 60.0


@contextlib.asynccontextmanager
async def running(limits: DecodeLimits = LIMITS) -> AsyncIterator[ImageDecoder]:
    decoder = ImageDecoder(limits)
    try:
        yield decoder
    finally:
        await decoder.stop()


def strange(conn: Connection, limits: DecodeLimits) -> None:
    """Main of a child that crashes, hangs or hoards at a word."""
    conn.send(DecoderReady())
    with contextlib.suppress(EOFError):
        while True:
            data = conn.recv()
            conn.send(_acted(data, limits))


def _acted(data: bytes, limits: DecodeLimits) -> Outcome:
    if data == b"crash":
        os.abort()
    while data == b"hang":
        pass
    return outcome(data, limits)


def stillborn(conn: Connection, limits: DecodeLimits) -> None:
    """Main of a child that never gets ready."""
    raise SystemExit("no such library")


@pytest.fixture
def strange_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "main", strange)


async def refusal(decoder: ImageDecoder, data: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        await decoder.decode(data, "messages.0.content.1")
    assert caught.value.param == "messages.0.content.1"
    return caught.value.message.removeprefix("'messages.0.content.1': ")


async def wait_until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110 - nothing tells that the process came or went
            await asyncio.sleep(0.01)


async def test_files_are_decoded_in_a_process_that_comes_with_the_first() -> None:
    async with running() as decoder:
        assert decoder.pid is None
        pixels = await decoder.decode(patch_file([RED], patch=8, columns=1), "x")
        assert pixels == Pixels(8, 8, bytes(RED) * 64)
        assert psutil.Process(decoder.pid).ppid() == os.getpid()
        assert psutil.Process(decoder.pid).nice() > psutil.Process().nice()


async def test_a_refusal_names_the_place_and_the_next_file_is_read() -> None:
    async with running() as decoder:
        said = await asyncio.gather(
            *(refusal(decoder, data) for data in (b"", b"%PDF", png_of_zeros(1, 1, (9999, 9999))))
        )
        assert [one.split(".")[0] for one in said] == [
            "the image is empty",
            "the file is PDF, which is not read here",
            "the image has 9999 x 9999 pixels; of a PNG file at most 18,000,000 are taken",
        ]
        assert (await decoder.decode(patch_file(PATCHES), "x")).width == 64


@pytest.mark.usefixtures("strange_child")
@pytest.mark.parametrize(("data", "why"), [(b"crash", "it stopped the decoder"), (b"hang", "it took longer than 2 s")])
async def test_a_file_that_ends_the_process_is_refused_and_nobody_else_notices(data: bytes, why: str) -> None:
    async with running() as decoder:
        others = [asyncio.create_task(decoder.decode(patch_file(PATCHES), "x")) for _ in range(3)]
        bad = asyncio.create_task(refusal(decoder, data))
        others += [asyncio.create_task(decoder.decode(patch_file(PATCHES), "x")) for _ in range(3)]
        assert why in await bad
        assert {pixels.width for pixels in await asyncio.gather(*others)} == {64}


async def test_a_process_that_somebody_killed_is_replaced() -> None:
    async with running() as decoder:
        await decoder.decode(patch_file(PATCHES), "x")
        first = decoder.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        assert (await decoder.decode(patch_file(PATCHES), "x")).width == 64
        assert decoder.pid not in (first, None)


@pytest.mark.usefixtures("strange_child")
async def test_a_file_whose_process_was_killed_from_outside_is_tried_once_more() -> None:
    async with running(DecodeLimits(timeout_s=30)) as decoder:
        hanging = asyncio.create_task(refusal(decoder, b"hang"))
        for _ in range(2):
            await wait_until(lambda: decoder.pid)
            pid = decoder.pid
            assert pid is not None
            await wait_until(lambda pid=pid: psutil.Process(pid).cpu_times().user > 0.1)
            assert not hanging.done()
            os.kill(pid, signal.SIGKILL)
            await wait_until(lambda pid=pid: decoder.pid != pid)
        assert "it stopped the decoder" in await hanging


@pytest.mark.usefixtures("strange_child")
async def test_a_caller_that_goes_leaves_the_process_to_the_next() -> None:
    async with running() as decoder:
        gone = [asyncio.create_task(decoder.decode(patch_file(PATCHES), "x")) for _ in range(3)]
        await wait_until(lambda: decoder.pid)
        for task in gone:
            task.cancel()
        assert (await decoder.decode(patch_file([RED]), "x")).width == 64


async def test_a_process_that_never_starts_is_given_up_until_the_next_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "main", stillborn)
    async with running() as decoder:
        for _ in range(2):
            with pytest.raises(EngineDown, match="does not start: no such library"):
                await decoder.decode(patch_file(PATCHES), "x")


async def test_stopping_fails_what_waits_and_leaves_no_process() -> None:
    decoder = ImageDecoder(LIMITS)
    decoder.start()
    await wait_until(lambda: decoder.pid)
    pid = decoder.pid
    waiting = asyncio.create_task(decoder.decode(patch_file(PATCHES), "x"))
    await asyncio.sleep(0)
    await decoder.stop()
    with pytest.raises(EngineDown):
        await waiting
    with pytest.raises(EngineDown):
        await decoder.decode(b"", "x")
    assert not psutil.pid_exists(pid)


HOSTILE = {
    "a bomb": png_of_zeros(1, 1, said=(16_000, 16_000)),
    "a bomb that is just small enough": png_of_zeros(4242, 4242),
    "a bomb with alpha": image_bytes(Image.new("RGBA", (4242, 4242)), "PNG"),
    "a WebP that is just small enough": image_bytes(Image.new("RGBA", (3000, 3000)), "WEBP"),
    "an animation": gif_of_frames(16, 900_000),
}


@pytest.mark.timed
@pytest.mark.parametrize("what", HOSTILE)
async def test_no_file_takes_much_time_or_memory(what: str) -> None:
    async with running(DecodeLimits()) as decoder:
        await decoder.decode(patch_file(PATCHES), "x")
        child = psutil.Process(decoder.pid)
        before, begun_s = child.memory_info().rss, time.monotonic()
        decoding = asyncio.create_task(decoder.decode(HOSTILE[what], "x"))
        most = before
        while not decoding.done():
            most = max(most, child.memory_info().rss)
            await asyncio.sleep(0.002)
        with contextlib.suppress(InvalidRequest):
            await decoding
        took_s, mib = time.monotonic() - begun_s, (most - before) >> 20
        print(f"{what}: {took_s:.2f} s, {mib} MiB")
        assert mib < 200
        assert took_s < 20
        assert decoder.pid == child.pid
