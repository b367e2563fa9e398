"""Both pages on a phone: nothing is wider than the screen, everything can be reached with a finger."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, expect

from tests.support.programs import web_page
from tests.support.programs.live_server import LiveServer, live_server
from tests.support.programs.web_page import WebPage

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

PHONES = {"a small one": {"width": 320, "height": 568}, "a usual one": {"width": 390, "height": 844}}
FINGER_PX = 24
"""The least size of what is pressed, as WCAG 2.2 has it."""

_WIDER = """
() => [...document.querySelectorAll("body *")]
  .filter((one) => one.checkVisibility({ visibilityProperty: true, opacityProperty: true }))
  .filter((one) => !one.closest(".unseen, pre, table, .sidebar:not(.open)"))
  .filter((one) => one.getBoundingClientRect().right > innerWidth + 1)
  .map((one) => one.outerHTML.slice(0, 120))
"""
"""What reaches beyond the right edge, but for code and tables, which are scrolled."""


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server("--ctx-size", "2048", "--parallel", "2", "--n-predict", "40") as started:
        yield started


@pytest.fixture(params=PHONES)
def page(request: pytest.FixtureRequest, browser: Browser, server: LiveServer) -> Iterator[WebPage]:
    options = {"viewport": PHONES[request.param], "has_touch": True, "is_mobile": True, "reduced_motion": "reduce"}
    with web_page.opened(browser, server.url, **options) as opened:
        yield opened


def check_fits(page: WebPage) -> None:
    page.wait_still()
    assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    assert page.page.evaluate(_WIDER) == []


def check_in_reach(page: WebPage, wanted: Locator) -> None:
    """It is on the screen, and large enough for a finger."""
    page.wait_still()
    box = wanted.bounding_box()
    size = page.page.viewport_size
    assert box is not None
    assert size is not None
    assert min(box["width"], box["height"]) >= FINGER_PX
    assert box["x"] >= 0
    assert box["y"] >= 0
    assert box["x"] + box["width"] <= size["width"] + 1
    assert box["y"] + box["height"] <= size["height"] + 1


def test_a_chat_with_the_thumb(page: WebPage) -> None:
    check_fits(page)
    check_in_reach(page, page.field)
    page.field.fill("Say hello to " + "everybodywithouthavinganyblank" * 12)
    check_fits(page)
    check_in_reach(page, page.page.get_by_role("button", name="Send"))
    page.page.get_by_role("button", name="Send").tap()
    page.wait_begun()
    page.wait_ended()
    check_fits(page)
    check_in_reach(page, page.field)
    for name in ("Copy", "Edit", "Regenerate", "More"):
        button = page.answer.get_by_role("button", name=name, exact=True)
        button.scroll_into_view_if_needed()
        check_in_reach(page, button)


def test_chats_and_settings_lie_over_the_conversation(page: WebPage) -> None:
    chats = page.page.get_by_role("button", name="Chats")
    check_in_reach(page, chats)
    new_chat = page.page.get_by_role("button", name="New chat")
    expect(new_chat).not_to_be_visible()
    chats.tap()
    expect(new_chat).to_be_visible()
    check_fits(page)
    check_in_reach(page, new_chat)
    new_chat.tap()
    expect(new_chat).not_to_be_visible()
    page.page.get_by_role("button", name="Settings", exact=True).tap()
    close = page.page.get_by_role("button", name="Close settings")
    expect(close).to_be_visible()
    check_fits(page)
    check_in_reach(page, close)
    close.tap()
    expect(close).to_have_count(0)


def test_the_live_view(page: WebPage, server: LiveServer) -> None:
    page.page.goto(f"{server.url}/live")
    expect(page.page.get_by_role("heading", name="Slots")).to_be_visible()
    check_fits(page)
    for place in ("Slots", "Queue"):
        page.page.get_by_role("heading", name=place).scroll_into_view_if_needed()
        check_fits(page)
