"""The engine's own process and the demo model: images whose rows are those of words are answered like the words."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ggufd.engine.client.client import EngineClient
from ggufd.engine.messages.config import EngineConfig
from ggufd.engine.messages.events import Output
from ggufd.engine.messages.images import ImageRows
from ggufd.engine.messages.requests import EngineRequest
from ggufd.errors import EngineFailure
from ggufd.llama.params import ContextParams, ModelParams
from tests.support.fakes.fake_llama import make_image_request
from tests.support.models.vocabularies import demo_model

WAIT_S = 120
RED, GREEN = ("red",) * 16, ("green", "blue", "yellow", "white") * 4
QUESTION = ["Ġ", "is", "Ġthe", "Ġcolor", "Ġof", "Ġthe", "Ġrose", "?", "ĠThe", "Ġrose", "Ġis", "Ġnot", "Ġonly"]


class Words:
    """Token ids of words, and their rows of `token_embd`, from the model's file."""

    def __init__(self, path: str, folder: Path) -> None:
        self._reader = gguf.GGUFReader(path)
        field = self._reader.fields["tokenizer.ggml.tokens"]
        self._ids = {bytes(field.parts[at]).decode(): token for token, at in enumerate(field.data)}
        self._folder = folder

    def ids(self, words: Iterable[str]) -> list[int]:
        return [self._ids[word if word in self._ids else f"Ġ{word}"] for word in words]

    def image(self, words: tuple[str, ...]) -> ImageRows:
        (tensor,) = [one for one in self._reader.tensors if one.name == "token_embd.weight"]
        rows = gguf.dequantize(tensor.data[self.ids(words)], tensor.tensor_type)
        path = self._folder / f"{'-'.join(words)}.rows"
        path.write_bytes(rows.astype(np.float32).tobytes())
        return ImageRows(hashlib.sha256(path.name.encode()).hexdigest(), len(words), str(path))


@pytest.fixture
def words(tmp_path: Path) -> Words:
    return Words(demo_model(), tmp_path)


@pytest.fixture
async def client() -> AsyncIterator[EngineClient]:
    context = ContextParams(n_ctx=512, n_slots=3, n_batch=128, n_threads=1, flash_attn="on")
    made = EngineClient(EngineConfig(ModelParams(demo_model()), context))
    made.start()
    async with asyncio.timeout(WAIT_S):
        await made.wait_ready()
    yield made
    await made.stop()


async def answer(client: EngineClient, request: EngineRequest) -> tuple[dict[int, str], int]:
    """The texts of a request, and how much of its prompt was cached."""
    texts: dict[int, str] = {}
    n_cached = 0
    request = dataclasses.replace(request, request_id=client.new_request_id())
    async with asyncio.timeout(WAIT_S), client.submit(request) as stream:
        async for event in stream:
            if isinstance(event, Output):
                texts[event.index] = texts.get(event.index, "") + event.text
                if event.finish is not None:
                    n_cached = max(n_cached, event.finish.usage.cached_tokens)
    return texts, n_cached


async def test_rows_of_words_are_answered_like_the_words(client: EngineClient, words: Words) -> None:
    question, opening = words.ids(QUESTION), words.ids(["ĠLook", ":"])
    red, green = words.image(RED), words.image(GREEN)
    options: dict[str, Any] = {"max_tokens": 16, "ignore_eos": True}
    shown = make_image_request(0, [opening, red, green, question], **options)
    typed = make_image_request(0, [opening, words.ids(RED), words.ids(GREEN), question], **options)
    other = make_image_request(0, [opening, question], max_tokens=150, ignore_eos=True)
    stream = asyncio.create_task(answer(client, other))
    (alike, n_first), (same, _) = await answer(client, shown), await answer(client, typed)
    assert alike[0] == same[0]
    assert len(alike[0]) > 10
    await stream
    # Again, from the cache, and twice at once.
    (again, n_again), (both, _) = await answer(client, shown), await answer(client, dataclasses.replace(shown, n=2))
    assert again == alike
    assert n_again == len(shown.prompt) - 1 > n_first
    assert both == {0: alike[0], 1: alike[0]}
    # The first image alone, and a changed second one.
    for parts, said in (([opening, red, question], RED), ([opening, red, red, question], RED + RED)):
        (text, n_kept), (twin, _) = (
            await answer(client, make_image_request(0, parts, **options)),
            await answer(client, make_image_request(0, [opening, words.ids(said), question], **options)),
        )
        assert text == twin
        assert n_kept >= len(opening) + len(RED)


async def test_an_image_without_rows_fails_its_request_alone(client: EngineClient, words: Words) -> None:
    question, red = words.ids(QUESTION), words.image(RED)
    other = asyncio.create_task(answer(client, make_image_request(0, [question], max_tokens=40, ignore_eos=True)))
    gone = dataclasses.replace(red, path=red.path + ".gone")
    with pytest.raises(EngineFailure, match="cannot be read"):
        await answer(client, make_image_request(0, [gone, question]))
    short = dataclasses.replace(red, n_rows=8)
    with pytest.raises(EngineFailure, match="36864 bytes for 8 rows, where 576 numbers a row were expected"):
        await answer(client, make_image_request(0, [short, question]))
    texts, _ = await other
    assert len(texts[0]) > 40
