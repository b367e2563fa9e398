"""The documentation's pictures of the chat page, taken of the real server.

`TESTS_PICTURES=docs/images` writes them there; without it they are taken all the same, and thrown away.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.support.programs import web_page
from tests.support.programs.live_server import LiveServer, live_server
from tests.support.programs.web_page import WebPage

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

LEAST_BYTES = 15_000
"""An empty page is smaller."""

QUESTIONS = ("Write a Python function that counts the words of a text.", "Explain it in two sentences.")
FIELDS = {"temperature": 0.2, "seed": 7, "max_tokens": 160}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server("--ctx-size", "4096") as started:
        yield started


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(os.environ.get("TESTS_PICTURES") or tmp_path)


def shoot(page: WebPage, path: Path) -> None:
    """A picture, once nothing moves any more."""
    page.page.mouse.move(1, 1)
    page.wait_still()
    page.page.screenshot(path=path)
    assert path.stat().st_size > LEAST_BYTES


def test_a_chat(browser: Browser, server: LiveServer, folder: Path) -> None:
    size = {"width": 1100, "height": 720}
    with web_page.opened(browser, server.url, viewport=size, color_scheme="light", reduced_motion="reduce") as page:
        page.ask_for(**FIELDS)
        for question in QUESTIONS:
            assert page.answered(question)
        page.press("Regenerate")
        page.wait_begun()
        page.wait_ended()
        expect(page.answer.get_by_label("Version 2 of 2")).to_be_visible()
        shoot(page, folder / "chat-page.png")


def test_the_first_screen_on_a_phone(browser: Browser, server: LiveServer, folder: Path) -> None:
    phone = {"viewport": {"width": 390, "height": 720}, "is_mobile": True, "has_touch": True}
    with web_page.opened(browser, server.url, color_scheme="dark", reduced_motion="reduce", **phone) as page:
        expect(page.page.get_by_role("heading", name="Chat with SmolLM2")).to_be_visible()
        shoot(page, folder / "chat-page-phone.png")
