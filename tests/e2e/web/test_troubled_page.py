"""The chat page while the server is busy, while its engine starts again, and when it is gone."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, expect

from tests.support.programs import web_page
from tests.support.programs.live_server import live_server

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


def test_a_person_is_told_what_they_wait_for(browser: Browser) -> None:
    """One waits behind the other; then the engine dies under both; then the server goes."""
    with (
        live_server("--ctx-size", "4096", "--parallel", "1") as server,
        web_page.opened(browser, server.url) as first,
        web_page.opened(browser, server.url) as second,
    ):
        first.ask_for(max_tokens=3000, ignore_eos=True)
        first.send("Tell me a long story.")
        first.wait_begun(5)
        second.ask_for(max_tokens=20)
        second.send("Hello.")
        expect(second.page.locator(".waiting")).to_have_text(re.compile("Next in the queue"))

        server.engine.kill()
        banner = second.page.locator(".banner")
        expect(banner).to_have_text("The engine has stopped and is starting again.")
        begun = first.texts()[-1]
        assert len(begun) >= 5
        for page in (first, second):
            expect(page.answer.get_by_role("alert")).to_contain_text("the request is lost")
        expect(banner).to_have_count(0, timeout=60_000)
        second.press("Try again")
        second.wait_begun()
        second.wait_ended()
        assert len(second.texts()) == 2

        server.stop()
        expect(banner).to_have_text("The server does not answer. This page goes on as soon as it does.")
        second.send("Are you there?")
        expect(second.answer.get_by_role("alert")).to_contain_text("The server does not answer.")
