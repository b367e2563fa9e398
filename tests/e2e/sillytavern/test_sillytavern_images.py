"""A real SillyTavern sends images: inline in a chat, and for captions of every type that it has for backends like ours.

The projector's images say words, and all answers are greedy: an image is answered as its words are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.models.image_files import PATCHES, data_uri, patch_file
from tests.support.models.projector_file import FAST, write_projector
from tests.support.programs import sillytavern_app
from tests.support.programs.live_server import LiveServer, live_server
from tests.support.programs.sillytavern_app import SillyTavern

pytestmark = [pytest.mark.e2e, pytest.mark.sillytavern, pytest.mark.timeout(900)]

WORDS = tuple("abcdefgh")
SAID = ("cdacbhgf" * FAST.n_rows)[: FAST.n_rows]
IMAGE = data_uri(patch_file([PATCHES[WORDS.index(word)] for word in SAID]))
PROMPT = "What is in this image? "

CASES = [
    (version, api)
    for version in sillytavern_app.VERSIONS
    for api in ("koboldcpp", "vllm", "custom", "ooba", "llamacpp")
    if not (version.startswith("1.12.") and api == "llamacpp")
]
"""Types whose captions are chats. In all of them the image follows the text; in ooba's it is a message of its own."""

every_version = pytest.mark.parametrize("app", sillytavern_app.VERSIONS, indirect=True)


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    projector = write_projector(tmp_path_factory.mktemp("projector") / "mmproj.gguf", tiny_model, WORDS)
    arguments = ("--model", str(tiny_model), "--mmproj", str(projector), "--ctx-size", "2048", "--parallel", "2")
    # Requests for captions set no sampler and no limit, or a low temperature.
    with live_server(*arguments, "--top-k", "1", "--predict", "12", "--flash-attn", "on") as started:
        yield started


@pytest.fixture(scope="module")
def apps(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, SillyTavern]]:
    folder = tmp_path_factory.mktemp("sillytavern")
    with sillytavern_app.or_skip(), contextlib.ExitStack() as stack:
        yield {
            version: stack.enter_context(sillytavern_app.running(version, folder / version))
            for version in sillytavern_app.VERSIONS
        }


@pytest.fixture
def app(request: pytest.FixtureRequest, apps: dict[str, SillyTavern]) -> SillyTavern:
    return apps[request.param]


def typed(server: LiveServer, *messages: str) -> str:
    """What the server answers to these messages of a user."""
    body = {"messages": [{"role": "user", "content": message} for message in messages]}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60, trust_env=False).json()
    text: str = answer["choices"][0]["message"]["content"]
    return text


def caption(app: SillyTavern, path: str, server: LiveServer, **body: Any) -> str:
    url = {"custom": f"{server.url}/v1"}.get(body.get("api", ""), server.url)
    response = app.post(path, {"prompt": PROMPT, "image": IMAGE, "model": "any", "server_url": url, **body})
    assert response.status_code == 200, response.text
    text: str = response.json()["caption"]
    return text


@pytest.mark.parametrize(("app", "api"), CASES, indirect=["app"])
def test_a_caption_is_asked_for_by_a_chat(app: SillyTavern, api: str, server: LiveServer) -> None:
    expected = typed(server, PROMPT, SAID) if api == "ooba" else typed(server, PROMPT + SAID)
    assert caption(app, "/api/openai/caption-image", server, api=api) == expected
    assert expected


@every_version
def test_ollamas_caption_is_asked_for_by_its_own_route(app: SillyTavern, server: LiveServer) -> None:
    path = "/api/backends/text-completions/ollama/caption-image"
    told = caption(app, path, server, image=IMAGE.partition(",")[2], prompt=" What is it?")
    assert told == typed(server, SAID + " What is it?")


@pytest.mark.parametrize("app", [one for one in sillytavern_app.VERSIONS if one.startswith("1.12.")], indirect=True)
def test_the_older_caption_of_llamacpp_is_a_completion(app: SillyTavern, server: LiveServer) -> None:
    path = "/api/backends/text-completions/llamacpp/caption-image"
    told = caption(app, path, server, image=IMAGE.partition(",")[2], prompt=" What is it?")
    # It takes the blanks off what was typed.
    body = {"prompt": f"USER:{SAID}What is it?\nASSISTANT:", "temperature": 0.1, "stop": ["USER:", "</s>"]}
    answer = httpx.post(f"{server.url}/completion", json=body, timeout=60, trust_env=False).json()
    assert told == answer["content"]


@every_version
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_inline_image_is_answered_as_its_words_are(app: SillyTavern, stream: bool, server: LiveServer) -> None:
    parts = [{"type": "text", "text": "Look: "}, {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}}]
    body = {
        "messages": [{"role": "user", "content": parts}], "model": "any", "temperature": 0, "max_tokens": 12,
        "stream": stream, "type": "continue", "chat_completion_source": "custom", "custom_url": f"{server.url}/v1",
        "user_name": "User", "char_name": "Ada", "custom_include_body": "", "custom_exclude_body": "",
        "custom_include_headers": "", "custom_prompt_post_processing": "",
    }  # fmt: skip
    path = "/api/backends/chat-completions/generate"
    if stream:
        with app.streamed(path, body) as events:
            said = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    else:
        said = app.post(path, body).json()["choices"][0]["message"]["content"]
    assert said == typed(server, "Look: " + SAID)
