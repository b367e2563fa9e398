"""A person in front of SillyTavern's page, with the real server behind it: connect, write, stop, swipe."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.support.programs import sillytavern_app, sillytavern_page
from tests.support.programs.live_server import LiveServer, live_server
from tests.support.programs.sillytavern_page import TavernPage

pytestmark = [pytest.mark.long, pytest.mark.sillytavern, pytest.mark.timeout(900)]

OTHERS = ("koboldcpp", "ooba", "tabby", "vllm", "aphrodite", "generic", "ollama")
SINCE = {"generic": "1.18.0"}
CHATS = [(version, kind) for version in sillytavern_app.VERSIONS for kind in ("llamacpp", "custom")]
CASES = [
    (version, kind)
    for version in reversed(sillytavern_app.VERSIONS)
    for kind in OTHERS
    if SINCE.get(kind, "") <= version
]
"""The newest first: its page is open then."""


SLOT_TOKENS = 2048
SETTINGS = sillytavern_page.SETTINGS | {
    "max_context": 1536,
    "textgenerationwebui_settings": {"streaming": True, "ban_eos_token": True, "temp": 0.8},
    "oai_settings": sillytavern_page.SETTINGS["oai_settings"] | {"custom_include_body": "ignore_eos: true"},
}
"""An answer is as long as it may be: long enough to be stopped."""


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server("--ctx-size", str(4 * SLOT_TOKENS), "--parallel", "4", "--threads", "1") as started:
        yield started


@pytest.fixture(scope="module")
def open_page(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], TavernPage]]:
    with contextlib.ExitStack() as stack:
        yield sillytavern_page.opener(stack, tmp_path_factory, SETTINGS)


@pytest.fixture
def page(request: pytest.FixtureRequest, open_page: Callable[[str], TavernPage]) -> TavernPage:
    return open_page(request.param)


def address(kind: str, server: LiveServer) -> str:
    return f"{server.url}/v1" if kind == "custom" else server.url


def stopped_in_time(page: TavernPage) -> bool:
    """Whether Stop came before the answer's end: it may end early, at a stop string."""
    page.send("Tell me everything that you know about ships, one by one.")
    page.wait_text(10)
    return page.stop()


@pytest.mark.parametrize(("page", "kind"), CHATS, indirect=["page"])
def test_a_chat_is_streamed_stopped_and_swiped(page: TavernPage, kind: str, server: LiveServer) -> None:
    said = page.connect(kind, address(kind, server))
    assert "SmolLM2" in said or (kind == "custom" and said == "Valid")
    if kind == "llamacpp" and page.derives_context_size:
        page.wait_context_size(SLOT_TOKENS)
    page.open_chat()

    page.send("Tell me a story about a storm at sea.")
    page.wait_text(10)
    begun = page.last_text()
    page.wait_written()
    assert len(page.last_text()) >= len(begun)

    before = page.last_text()
    page.swipe()
    assert page.last_text() != before

    assert any(stopped_in_time(page) for _ in range(3))
    assert server.wait_running(0, 1.0)
    assert len(page.last_text()) > 10
    assert not page.complaints()


@pytest.mark.parametrize(("page", "kind"), CASES, indirect=["page"])
def test_every_other_type_connects_and_answers(page: TavernPage, kind: str, server: LiveServer) -> None:
    assert "SmolLM2" in page.connect(kind, server.url)
    page.open_chat()
    page.send("Good evening.")
    page.wait_text(0)
    page.stop()
    assert not page.complaints()
