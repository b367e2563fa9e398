"""The encoder process itself, with projectors whose images say words: killed, stopped, broken and at work."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from ggufd.engine.messages.images import ImageRows
from ggufd.errors import EngineFailure, InvalidRequest, ModelError
from ggufd.images.encoded import EncodedImage
from ggufd.images.encoder.encoder import ImageEncoder
from ggufd.images.encoder.messages import EncoderParams
from ggufd.images.encoder.row_store import RowStore
from ggufd.images.pixels import Pixels
from ggufd.keys.principal import NOBODY
from ggufd.llama.gguf import projector_file
from ggufd.llama.params import ProjectorParams
from tests.support.models.projector_file import (
    COLOURS,
    FAST,
    SLOW,
    embeddings_of,
    picture,
    write_projector,
    write_shaped,
)
from tests.support.models.tiny_model import N_EMBD

WORDS = tuple("abcdefgh")
NAMES = list(COLOURS)

Make = Callable[[Path], ImageEncoder]


@pytest.fixture(scope="module")
def fast(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_projector(tmp_path_factory.mktemp("fast") / "mmproj.gguf", tiny_model, WORDS)


@pytest.fixture(scope="module")
def slow(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_projector(tmp_path_factory.mktemp("slow") / "mmproj.gguf", tiny_model, WORDS, slow=True)


@pytest.fixture
async def make(tiny_model: Path) -> AsyncIterator[Make]:
    made: list[ImageEncoder] = []

    def make(projector: Path) -> ImageEncoder:
        params = EncoderParams(str(tiny_model), ProjectorParams(str(projector), N_EMBD, n_threads=2), niceness=5)
        made.append(ImageEncoder(params))
        return made[-1]

    yield make
    for one in made:
        await one.stop()


def plain(name: str, side: int = 4) -> Pixels:
    """An image of one colour."""
    return Pixels(*picture([[name] * side] * side))


def slow_image(name: str) -> Pixels:
    return plain(name, SLOW.image_size // SLOW.patch_size)


def rows_of(image: EncodedImage) -> np.ndarray:
    """The rows of an image that is nothing but rows, from their file."""
    (rows,) = image.parts
    assert isinstance(rows, ImageRows)
    return np.fromfile(rows.path, np.float32).reshape(rows.n_rows, N_EMBD)


def word(tiny_model: Path, name: str) -> np.ndarray:
    return embeddings_of(tiny_model, WORDS)[NAMES.index(name)]


def store_of(encoder: ImageEncoder) -> RowStore:
    assert encoder.store is not None
    return encoder.store


async def at_work(encoder: ImageEncoder, pid: int) -> None:
    """The process with this id has begun to compute: it has used the processor since it was asked."""
    process = psutil.Process(pid)
    before = process.cpu_times().user
    while encoder.process.pid == pid and process.cpu_times().user < before + 0.1:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def test_an_image_becomes_the_rows_of_its_words(make: Make, fast: Path, tiny_model: Path) -> None:
    encoder = make(fast)
    await encoder.start()
    order = [3, 1, 4, 1, 5, 2, 6, 0, 7, 7, 0, 6, 2, 5, 1, 4]
    names = [[NAMES[i] for i in order[start : start + 4]] for start in range(0, 16, 4)]
    image = await encoder.encode(Pixels(*picture(names)), NOBODY)
    assert np.array_equal(rows_of(image), embeddings_of(tiny_model, WORDS)[order])
    assert encoder.process.pid is not None
    assert psutil.Process(encoder.process.pid).nice() == 5
    assert encoder.figures.encoded == 1


async def test_a_process_killed_at_work_is_started_again_and_the_image_tried_once_more(
    make: Make, slow: Path, tiny_model: Path
) -> None:
    encoder = make(slow)
    await encoder.start()
    first = encoder.process.pid
    assert first is not None
    red, blue = (asyncio.create_task(encoder.encode(slow_image(name), NOBODY)) for name in ("red", "blue"))
    await at_work(encoder, first)
    os.kill(first, signal.SIGKILL)
    for task, name in ((red, "red"), (blue, "blue")):
        assert np.array_equal(rows_of(await task)[-1], word(tiny_model, name))
    assert encoder.process.pid not in (None, first)
    assert encoder.process.n_exits == 1


async def test_an_image_over_which_two_processes_ended_fails_alone(make: Make, slow: Path, tiny_model: Path) -> None:
    encoder = make(slow)
    await encoder.start()
    red, blue = (asyncio.create_task(encoder.encode(slow_image(name), NOBODY)) for name in ("red", "blue"))
    killed: set[int] = set()
    while len(killed) < 2:
        pid = encoder.process.pid
        if pid is not None and pid not in killed:
            await at_work(encoder, pid)
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        await asyncio.sleep(0.01)
    with pytest.raises(EngineFailure) as caught:
        await red
    assert caught.value.message == "The encoder ended twice while it worked on this image: signal SIGKILL."
    assert np.array_equal(rows_of(await blue)[0], word(tiny_model, "blue"))


async def test_an_image_that_nobody_waits_for_is_stopped_and_the_next_one_begins(make: Make, slow: Path) -> None:
    encoder = make(slow)
    await encoder.start()
    pid = encoder.process.pid
    assert pid is not None
    red = asyncio.create_task(encoder.encode(slow_image("red"), NOBODY))
    await at_work(encoder, pid)
    red.cancel()
    await asyncio.gather(red, return_exceptions=True)
    # The next one is whole: nothing of the stopped one is left in it.
    assert np.ptp(rows_of(await encoder.encode(slow_image("green"), NOBODY)), axis=0).max() == 0
    assert (encoder.process.pid, encoder.figures.encoded) == (pid, 1)
    assert len(store_of(encoder)) == 1


async def test_sizes_are_answered_while_an_image_is_encoded(make: Make, slow: Path) -> None:
    encoder = make(slow)
    await encoder.start()
    assert encoder.process.pid is not None
    red = asyncio.create_task(encoder.encode(slow_image("red"), NOBODY))
    await at_work(encoder, encoder.process.pid)
    assert (await encoder.measure(Pixels(3, 5, bytes(45)))).n_rows == SLOW.n_rows
    assert not red.done()
    red.cancel()


async def test_a_size_that_cannot_be_encoded_is_wrong_input(make: Make, fast: Path) -> None:
    encoder = make(fast)
    await encoder.start()
    with pytest.raises(InvalidRequest) as caught:
        await encoder.encode(Pixels(0, 5, b""), NOBODY)
    assert caught.value.message == "The projector takes no image of 0 x 5 pixels."


async def test_a_projector_that_ends_the_process_is_an_error_of_one_line(
    make: Make, tiny_model: Path, tmp_path: Path
) -> None:
    """One that passes the checks of its header: libmtmd aborts over a number where it expects yes or no."""
    rows = embeddings_of(tiny_model, WORDS)
    damaged = write_shaped(tmp_path / "damaged.gguf", rows, FAST, {"clip.use_gelu": 1})
    assert projector_file.read(damaged).n_embd == N_EMBD
    with pytest.raises(ModelError) as caught:
        await make(damaged).start()
    said = caught.value.message
    assert said.startswith(f"{damaged}: llama.cpp cannot use this projector: signal SIGABRT: ")
    assert "\n" not in said


async def test_a_projector_that_cannot_be_loaded_says_what_llama_cpp_says(
    make: Make, tiny_model: Path, tmp_path: Path
) -> None:
    rows = embeddings_of(tiny_model, WORDS)
    damaged = write_shaped(tmp_path / "damaged.gguf", rows, FAST, {"clip.projector_type": "no-such"})
    with pytest.raises(ModelError) as caught:
        await make(damaged).start()
    said = caught.value.message
    assert said.startswith(f"llama.cpp could not load the projector {damaged} (")
    assert "unknown projector type: no-such" in said
    assert "\n" not in said


async def test_a_resting_encoder_has_no_process_and_is_back_for_the_next_image(
    make: Make, fast: Path, tiny_model: Path
) -> None:
    encoder = make(fast)
    await encoder.start()
    first = encoder.process.pid
    assert first is not None
    encoder.rest()
    # At once, while the old one may still be ending.
    assert np.array_equal(rows_of(await encoder.encode(plain("red"), NOBODY))[0], word(tiny_model, "red"))
    second = encoder.process.pid
    encoder.rest()
    while second is not None and psutil.pid_exists(second):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert encoder.process.pid is None
    assert np.array_equal(rows_of(await encoder.encode(plain("blue"), NOBODY))[0], word(tiny_model, "blue"))
    assert encoder.process.n_exits == 0
    assert encoder.process.pid not in (first, second)


async def test_an_encoder_at_work_does_not_rest(make: Make, slow: Path) -> None:
    encoder = make(slow)
    await encoder.start()
    pid = encoder.process.pid
    assert pid is not None
    red = asyncio.create_task(encoder.encode(slow_image("red"), NOBODY))
    await at_work(encoder, pid)
    encoder.rest()
    assert (await red).n_rows == SLOW.n_rows
    assert encoder.process.pid == pid


async def test_nothing_is_left_when_it_is_stopped(make: Make, slow: Path) -> None:
    encoder = make(slow)
    await encoder.start()
    pid = encoder.process.pid
    assert pid is not None
    folder = store_of(encoder).path("", "").parent
    task = asyncio.create_task(encoder.encode(slow_image("red"), NOBODY))
    await at_work(encoder, pid)
    await encoder.stop()
    assert not psutil.pid_exists(pid)
    assert folder.name not in os.listdir(folder.parent)
    with pytest.raises(Exception, match="shutting down"):
        await task
