"""Both pages by axe-core's rules (WCAG 2.2 A and AA, and its best practices): nothing to be mended, dark and light."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, expect

from tests.support.models.image_files import BLUE, RED, patch_uri
from tests.support.programs import web_page
from tests.support.programs.live_server import LiveServer, live_server
from tests.support.programs.long_requests import long_requests
from tests.support.programs.sillytavern_app import or_skip
from tests.support.programs.web_page import WebPage
from tests.support.programs.web_tools import modules

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 800}
SCHEMES: tuple[Literal["dark", "light"], ...] = ("dark", "light")

_RUN = """
async (isCovered) => {
  await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
  await Promise.all(document.getAnimations().map((one) => one.finished.catch(() => {})));
  const found = await axe.run(document, { preload: false, rules: { "target-size": { enabled: !isCovered } } });
  return { violations: found.violations, passes: found.passes.length };
}
"""

ANSWER = """Here is **some** text with `code` and a [link](https://example.org/).

## A heading

- one
- two

| name | size |
|---|---|
| ship | 12 |

> Said by somebody.

```python
# A comment
def sail(ship: str, n: int = 3) -> None:
    print(f"{ship} sails {n} times")
```
"""


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server("--ctx-size", "4096", "--parallel", "2") as started:
        yield started


@pytest.fixture(scope="module")
def axe() -> str:
    """The program that looks for faults."""
    with or_skip():
        return (modules() / "axe-core" / "axe.min.js").read_text("utf-8")


class Finder:
    """Faults of a page, looked for in both schemes wherever `look` is called."""

    def __init__(self, page: WebPage, axe: str) -> None:
        self._page = page.page
        self._axe = axe
        self.faults: list[str] = []

    def look(self, where: str, *, is_covered: bool = False) -> None:
        """Look at the page as it is now. What a menu covers in part is no target while that is open, nor what the
        field at the bottom covers while the text above it grows."""
        self._page.evaluate(self._axe)
        for scheme in SCHEMES:
            self._page.emulate_media(color_scheme=scheme)
            found: dict[str, Any] = self._page.evaluate(_RUN, is_covered)
            assert found["passes"] > 15, "hardly anything was looked at"
            self.faults += [
                f"{where}, {scheme}: {rule['id']}: {node['target']} {node['html'][:200]} {node['failureSummary']}"
                for rule in found["violations"]
                for node in rule["nodes"]
            ]


def import_chat(page: WebPage) -> None:
    """A chat with everything in it that an answer may hold."""
    page.page.get_by_role("button", name="Import and export").click()
    with page.page.expect_file_chooser() as chooser:
        page.page.get_by_role("menuitem", name="Import").click()
    call = {"id": "c", "type": "function", "function": {"name": "clock", "arguments": '{"city": "Oslo"}'}}
    image = {"type": "image_url", "image_url": {"url": patch_uri([RED, BLUE])}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Show me what you can write."}, image]},
        {"role": "assistant", "content": ANSWER, "reasoning_content": "They want to see it all.", "tool_calls": [call]},
    ]
    file = {"title": "A chat with a rather long name, longer than the list of chats is wide", "messages": messages}
    chooser.value.set_files({"name": "x.json", "mimeType": "application/json", "buffer": json.dumps(file).encode()})
    expect(page.answer.get_by_role("heading", name="A heading")).to_be_visible()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_chat_page(browser: Browser, server: LiveServer, axe: str, size: dict[str, int]) -> None:
    with web_page.opened(browser, server.url, viewport=size, reduced_motion="reduce") as page:
        finder = Finder(page, axe)
        expect(page.page.get_by_role("heading", name="Chat with")).to_be_visible()
        finder.look("empty")
        if size == PHONE:
            page.page.get_by_role("button", name="Chats").click()
        import_chat(page)
        finder.look("with an answer")
        page.answer.get_by_text("Thoughts").click()
        expect(page.answer.get_by_text("They want to see it all.")).to_be_visible()
        finder.look("unfolded")
        page.press("More")
        expect(page.page.get_by_role("menuitem", name="Delete")).to_be_visible()
        finder.look("with a menu", is_covered=True)
        page.page.get_by_role("menuitem", name="Delete").click()
        expect(page.page.get_by_role("dialog")).to_be_visible()
        finder.look("asked")
        page.page.keyboard.press("Escape")
        expect(page.page.get_by_role("dialog")).to_have_count(0)
        page.press("Edit")
        field = page.page.get_by_label("Text of the message")
        expect(field).to_be_focused()
        finder.look("edited")
        page.page.keyboard.press("Escape")
        expect(field).to_have_count(0)
        page.page.get_by_role("button", name="Settings", exact=True).click()
        expect(page.page.locator(".settings-panel")).to_be_visible()
        finder.look("with its settings")
        page.page.get_by_role("button", name="Close settings").click()
        if size == PHONE:
            page.page.get_by_role("button", name="Chats").click()
            expect(page.page.get_by_role("button", name="New chat")).to_be_visible()
            finder.look("with its chats")
        assert not finder.faults, "\n".join(finder.faults)


def test_an_answer_that_runs_and_one_that_failed(browser: Browser, server: LiveServer, axe: str) -> None:
    with web_page.opened(browser, server.url, reduced_motion="reduce") as page:
        finder = Finder(page, axe)
        page.ask_for(max_tokens=1000, ignore_eos=True)
        page.send("Tell me everything that you know about ships.")
        page.wait_begun(10)
        finder.look("running", is_covered=True)
        page.page.keyboard.press("Escape")
        page.wait_ended()
        finder.look("stopped")
        page.send("word " * 5000)
        expect(page.answer.get_by_role("alert")).to_be_visible()
        finder.look("failed")
        assert not finder.faults, "\n".join(finder.faults)


def test_connect_and_the_key(browser: Browser, axe: str) -> None:
    with (
        live_server("--ctx-size", "512", "--api-key", "right") as guarded,
        web_page.opened(browser, guarded.url, reduced_motion="reduce") as page,
    ):
        finder = Finder(page, axe)
        dialog = page.page.get_by_role("dialog", name="This server asks for a key")
        expect(dialog).to_be_visible()
        finder.look("asked for a key")
        dialog.get_by_label("API key").fill("wrong")
        dialog.get_by_label("API key").press("Enter")
        expect(dialog.get_by_role("alert")).to_be_visible()
        finder.look("told that it is wrong")
        dialog.get_by_label("API key").fill("right")
        dialog.get_by_label("API key").press("Enter")
        expect(dialog).to_have_count(0)
        page.page.get_by_role("button", name="Connect").click()
        expect(page.page.get_by_role("dialog")).to_be_visible()
        finder.look("with its addresses")
        assert not finder.faults, "\n".join(finder.faults)


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_live_page(browser: Browser, server: LiveServer, axe: str, size: dict[str, int]) -> None:
    """While somebody is answered, who is ended in the end."""
    with web_page.opened(browser, server.url, "live", viewport=size, reduced_motion="reduce") as page:
        finder = Finder(page, axe)
        tile = page.page.locator(".tile .value").first
        expect(tile).to_have_text("Idle")
        expect(page.page.locator("canvas")).to_have_count(4)
        finder.look("idle")
        with long_requests(server.url, ""):
            expect(tile).to_have_text("Serving")
            finder.look("busy")
        assert not finder.faults, "\n".join(finder.faults)
