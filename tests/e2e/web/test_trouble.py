"""What the page says when its server is busy, when the engine starts again, and when nobody answers."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, expect

from tests.support.programs import web_page
from tests.support.programs.live_server import free_port, live_server

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

BACK_MS = 90_000
"""An engine starts in seconds; on a busy machine in many."""


def test_a_person_is_told_what_they_wait_for_and_that_an_engine_was_lost(browser: Browser) -> None:
    """One waits behind the other; then the engine dies under both."""
    with (
        live_server("--ctx-size", "4096", "--parallel", "1") as server,
        web_page.opened(browser, server.url) as first,
        web_page.opened(browser, server.url) as second,
    ):
        first.ask_for(max_tokens=3000, ignore_eos=True)
        first.send("Tell me a long story.")
        first.wait_begun(10)
        second.ask_for(max_tokens=20)
        second.send("Hello.")
        expect(second.page.locator(".waiting")).to_have_text(re.compile("Next in the queue"))

        server.engine.kill()
        for page in (first, second):
            expect(page.answer.get_by_role("alert")).to_contain_text("the request is lost")
            page.wait_banner("The engine has stopped and is starting again.")
            expect(page.page.locator(".banner")).to_have_count(0, timeout=BACK_MS)
            expect(page.answer.get_by_role("alert")).to_be_visible()
        first.wait_ended()
        assert len(first.texts()[-1]) >= 10

        first.page.unroute_all()
        first.ask_for(max_tokens=20)
        for page in (first, second):
            page.answer.get_by_role("alert").get_by_role("button", name="Try again").click()
            page.wait_begun()
            page.wait_ended()
            expect(page.page.get_by_role("alert")).to_have_count(0)
            expect(page.messages).to_have_count(2)
        expect(first.answer.get_by_label("Version 2 of 2")).to_be_visible()


def test_a_server_that_stops_is_said_and_the_page_goes_on_with_the_next_one(browser: Browser) -> None:
    port = str(free_port())
    with live_server("--port", port, "--ctx-size", "2048") as first, web_page.opened(browser, first.url) as page:
        page.ask_for(max_tokens=20)
        page.answered("Say hello.")
        first.stop()
        banner = page.page.locator(".banner")
        expect(banner).to_have_text("The server does not answer. This page goes on as soon as it does.")
        page.send("Are you there?")
        expect(page.answer.get_by_role("alert")).to_contain_text("The server does not answer.")
        with live_server("--port", port, "--ctx-size", "2048"):
            expect(banner).to_have_count(0, timeout=BACK_MS)
            page.press("Try again")
            page.wait_begun()
            page.wait_ended()
            expect(page.messages).to_have_count(4)
