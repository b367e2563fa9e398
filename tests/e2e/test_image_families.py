"""The real server with a projector of each type beside `mlp`: an image is answered as its words and tokens typed."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.models.projector_kinds import FAMILIES, Family, Grid, write_kind, write_text_model
from tests.support.models.tiny_model import BOS
from tests.support.programs.live_server import LiveServer, live_server

GREEDY = {"n_predict": 16, "temperature": 0, "repeat_penalty": 1, "ignore_eos": True, "return_tokens": True}


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.kind)
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


@pytest.fixture(scope="module")
def server(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp(family.kind)
    model = write_text_model(folder / "model.gguf")
    projector = write_kind(folder / "mmproj.gguf", family, model)
    arguments = ("--mmproj", str(projector), "--flash-attn", "on", "--ctx-size", "1024")
    with live_server("--model", str(model), *arguments) as server:
        yield server


def png(family: Family, names: Grid) -> str:
    width, height, pixels = family.image(names)
    file = io.BytesIO()
    Image.frombytes("RGB", (width, height), pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def complete(server: LiveServer, prompt: Any) -> list[int]:
    answer = httpx.post(f"{server.url}/completion", json={"prompt": prompt, **GREEDY}, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    said: list[int] = answer.json()["tokens"]
    assert len(said) == GREEDY["n_predict"]
    return said


def test_an_image_is_answered_as_its_words_typed(server: LiveServer, family: Family) -> None:
    mixed, plain = family.mixed(), [[family.colours[1]] * family.rows] * family.rows
    images = [png(family, names) for names in (mixed, plain)]
    for order in ([0], [1], [0, 1], [1, 0]):
        shown = {
            "prompt_string": "see" + "<__media__> or ".join(["", *("" for _ in order)]) + "so",
            "multimodal_data": [images[number] for number in order],
        }
        typed = [BOS, *b"see"]
        for number in order:
            typed += [*family.typed((mixed, plain)[number]), *b" or "]
        typed += b"so"
        expected = complete(server, typed)
        assert complete(server, shown) == expected
        # From the cache, too.
        assert complete(server, shown) == expected


def test_two_images_differ(server: LiveServer, family: Family) -> None:
    """An oracle that always says the same would prove nothing."""
    said = [
        complete(server, {"prompt_string": "<__media__>", "multimodal_data": [png(family, names)]})
        for names in (family.mixed(), [[family.colours[2]] * family.rows] * family.rows)
    ]
    assert said[0] != said[1]
