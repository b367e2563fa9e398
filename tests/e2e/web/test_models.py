"""The choice of a model on the chat page, with the real server and models that say different things."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, expect

from tests.support.models.tiny_bert import write_tiny_bert
from tests.support.models.tiny_model import write_tiny_model
from tests.support.programs import web_page
from tests.support.programs.live_server import LiveServer, live_server
from tests.support.programs.web_page import WebPage

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

LOAD_MS = 120_000
FLAGS = ("--ctx-size", "1024", "--parallel", "1", "--flash-attn", "off", "--swap-after-s", "0", "--n-predict", "12")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("tiny-a", "tiny-b", "tiny-broken")):
        write_tiny_model(models / f"{name}.gguf", seed=seed)
    write_tiny_bert(models / "vectors.gguf")
    return models


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LiveServer]:
    with live_server("--models-dir", str(folder), *FLAGS) as started:
        broken = folder / "tiny-broken.gguf"
        broken.write_bytes(broken.read_bytes()[:-1000])
        yield started


def choice(page: WebPage) -> Locator:
    found = page.page.get_by_role("combobox", name="Model", exact=True)
    expect(found).to_be_visible()
    return found


def test_a_chat_is_answered_by_the_model_that_is_chosen_and_keeps_it(browser: Browser, server: LiveServer) -> None:
    with web_page.opened(browser, server.url) as page:
        lines = choice(page).locator("option")
        expect(lines).to_have_text(
            ["The loaded model: tiny-a", "tiny-a (loaded)", "tiny-b (loads in 3 s)", "tiny-broken (loads in 3 s)"]
        )
        choice(page).select_option("tiny-b")
        expect(page.page.get_by_text("tiny-b is loaded when you send, which takes about 3 s.")).to_be_visible()
        page.send("Hi")
        expect(page.page.get_by_text("Waiting for tiny-b to be loaded")).to_be_visible(timeout=LOAD_MS)
        page.wait_begun()
        page.wait_ended(LOAD_MS)
        page.wait_kept()
        assert {one["model"] for one in page.kept() if one["role"] == "assistant"} == {"tiny-b"}
        expect(choice(page)).to_have_value("tiny-b")
        expect(lines.nth(2)).to_have_text("tiny-b (loaded)")
        expect(page.page.locator(".model-note")).to_have_count(0)
        page.page.reload()
        expect(choice(page)).to_have_value("tiny-b")
        # Another chat has its own.
        page.page.get_by_role("button", name="New chat", exact=True).click()
        expect(choice(page)).to_have_value("")
        expect(lines.first).to_have_text("The loaded model: tiny-b")


def test_one_that_does_not_load_says_why(browser: Browser, server: LiveServer) -> None:
    with web_page.opened(browser, server.url) as page:
        choice(page).select_option("tiny-broken")
        page.send("Hi")
        expect(page.page.locator(".failed")).to_contain_text("tiny-broken.gguf: cut off", timeout=LOAD_MS)
        expect(page.page.locator(".model-note")).to_have_count(0)
        page.page.get_by_role("button", name="New chat", exact=True).click()
        choice(page).select_option("tiny-broken")
        expect(page.page.locator(".model-note.bad")).to_contain_text("tiny-broken could not be loaded: ")


@pytest.mark.parametrize("size", [(1280, 800), (320, 568)], ids=["wide", "narrow"])
def test_one_that_this_key_may_not_have_loaded_says_so(browser: Browser, folder: Path, size: tuple[int, int]) -> None:
    width, height = size
    with (
        live_server("--models-dir", str(folder), *FLAGS, "--swap-for", "nobody") as server,
        web_page.opened(browser, server.url, viewport={"width": width, "height": height}) as page,
    ):
        lines = choice(page).locator("option")
        expect(lines.nth(2)).to_have_text("tiny-b (not loaded, not for this key)")
        choice(page).select_option("tiny-b")
        expect(page.page.get_by_text("this key may not have it loaded")).to_be_visible()
        page.send("Hi")
        expect(page.page.locator(".failed")).to_contain_text("this key may not have it loaded", timeout=LOAD_MS)
        assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        box = choice(page).bounding_box()
        assert box is not None
        assert box["width"] > 100
        assert box["x"] + box["width"] <= width


def test_a_server_with_one_model_gives_no_choice(browser: Browser, folder: Path) -> None:
    with (
        live_server("-m", str(folder / "tiny-a.gguf"), *FLAGS) as server,
        web_page.opened(browser, server.url) as page,
    ):
        expect(page.page.locator(".brand")).to_contain_text("tiny-a")
        expect(page.page.get_by_role("combobox", name="Model", exact=True)).to_have_count(0)
