"""A person attaches an image on SillyTavern's page, and is answered as to the words that it says."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from tests.support.models.image_files import PATCHES, patch_file
from tests.support.models.projector_file import FAST, write_projector
from tests.support.programs import sillytavern_app, sillytavern_page
from tests.support.programs.live_server import LiveServer, live_server
from tests.support.programs.sillytavern_page import PAGE_S, TavernPage

pytestmark = [pytest.mark.long, pytest.mark.sillytavern, pytest.mark.timeout(900)]

WORDS = tuple("abcdefgh")
SAID = ("cdacbhgf" * FAST.n_rows)[: FAST.n_rows]
SETTINGS = sillytavern_page.SETTINGS | {
    "main_api": "openai",
    "max_context": 1536,
    "oai_settings": {
        **sillytavern_page.SETTINGS["oai_settings"],
        "stream_openai": False,
        "openai_max_tokens": 24,
        "image_inlining": True,
        "media_inlining": True,
        "custom_include_body": "top_k: 1",
    },
}


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A model of exact numbers: what it says is noise, but the same noise for an image as for its words."""
    projector = write_projector(tmp_path_factory.mktemp("projector") / "mmproj.gguf", tiny_model, WORDS)
    arguments = ("--model", str(tiny_model), "--mmproj", str(projector), "--ctx-size", "8192", "--parallel", "2")
    with live_server(*arguments, "--flash-attn", "on") as started:
        yield started


@pytest.fixture(scope="module")
def open_page(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], TavernPage]]:
    with contextlib.ExitStack() as stack:
        yield sillytavern_page.opener(stack, tmp_path_factory, SETTINGS)


@pytest.fixture
def page(request: pytest.FixtureRequest, open_page: Callable[[str], TavernPage]) -> TavernPage:
    return open_page(request.param)


def in_words(body: dict[str, Any]) -> dict[str, Any]:
    """The same request with the image's words in its place."""
    typed = copy.deepcopy(body)
    n_images = 0
    for message in typed["messages"]:
        if isinstance(message["content"], list):
            n_images += sum(part["type"] == "image_url" for part in message["content"])
            parts = [SAID if part["type"] == "image_url" else part["text"] for part in message["content"]]
            message["content"] = "".join(parts)
    assert n_images == 1, "the page sent no image"
    return typed


@pytest.mark.parametrize("page", sillytavern_app.VERSIONS, indirect=True)
def test_an_attached_image_is_answered_as_its_words_are(page: TavernPage, server: LiveServer, tmp_path: Path) -> None:
    # It is small, so the page leaves it as it is.
    file = tmp_path / "words.png"
    file.write_bytes(patch_file([PATCHES[WORDS.index(word)] for word in SAID]))
    page.connect("custom", f"{server.url}/v1")
    page.open_chat()
    page.page.set_input_files("#file_form_input", str(file))
    before = page.answers.count()
    with page.page.expect_response(lambda reply: reply.url.endswith("/chat-completions/generate")) as caught:
        page.run("What do you see?")
    answer, sent = caught.value.json(), json.loads(caught.value.request.post_data or "{}")
    expect(page.answers).to_have_count(before + 1, timeout=PAGE_S * 1000)
    assert page.complaints() == []
    said = answer["choices"][0]["message"]["content"]
    assert said
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == FAST.n_rows
    wanted = {name: in_words(sent)[name] for name in ("messages", "max_tokens", "temperature", "stop") if name in sent}
    typed = httpx.post(
        f"{server.url}/v1/chat/completions", json={**wanted, "top_k": 1}, timeout=120, trust_env=False
    ).json()
    assert said == typed["choices"][0]["message"]["content"]
