"""What the page says when the server behind it is in trouble, and that it stops saying so by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.support.programs import web_page
from tests.support.programs.live_server import LiveServer, free_port, live_server

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

STORY = "Tell me everything that you know about ships, one by one."
LOOKS_MS = 15_000
"""A page looks every five seconds whether its server answers."""

BACK_MS = 90_000
"""An engine starts in seconds; on a busy machine in many."""


@pytest.fixture
def server() -> Iterator[LiveServer]:
    with live_server("--ctx-size", "4096", "--parallel", "2") as started:
        yield started


def test_an_engine_that_is_killed_is_a_banner_that_goes_by_itself(browser: Browser, server: LiveServer) -> None:
    with web_page.opened(browser, server.url) as page:
        page.ask_for(max_tokens=400, ignore_eos=True)
        page.send(STORY)
        page.wait_begun(10)
        banner = page.page.get_by_text("The engine has stopped and is starting again.")
        server.engine.kill()
        expect(banner).to_be_visible()
        page.wait_ended()
        begun = page.texts()[-1]
        assert len(begun) >= 10
        failed = page.answer.get_by_role("alert")
        expect(failed).to_contain_text("engine")
        expect(banner).to_have_count(0, timeout=BACK_MS)
        expect(failed).to_be_visible()
        page.page.unroute_all()
        page.ask_for(max_tokens=20)
        failed.get_by_role("button", name="Try again").click()
        page.wait_begun()
        page.wait_ended()
        expect(page.answer.get_by_role("alert")).to_have_count(0)
        expect(page.answer.get_by_label("Version 2 of 2")).to_be_visible()


def test_a_server_that_stops_is_said_and_the_page_goes_on_with_the_next_one(browser: Browser) -> None:
    port = str(free_port())
    with live_server("--port", port, "--ctx-size", "2048") as first, web_page.opened(browser, first.url) as page:
        page.ask_for(max_tokens=20)
        page.answered("Say hello.")
        first.stop()
        banner = page.page.get_by_text("The server does not answer. This page goes on as soon as it does.")
        expect(banner).to_be_visible(timeout=LOOKS_MS)
        page.send("Are you there?")
        expect(page.answer.get_by_role("alert")).to_contain_text("The server does not answer.")
        with live_server("--port", port, "--ctx-size", "2048"):
            expect(banner).to_have_count(0, timeout=BACK_MS)
            page.press("Try again")
            page.wait_begun()
            page.wait_ended()
            assert len(page.messages.all()) == 4
