"""The server's pages in headless Chromium, used as a person uses them. What they must never do is watched all along."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

from tests.support.programs.sillytavern_page import PAGE_S, chromium

PAGE_MS = PAGE_S * 1000

_WATCH = """
window.watched = { violations: [], banners: [] };
document.addEventListener("securitypolicyviolation", (event) =>
  window.watched.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
new MutationObserver(() => {
  for (const one of document.querySelectorAll(".banner")) window.watched.banners.push(one.textContent);
}).observe(document, { subtree: true, childList: true, characterData: true });
"""
_KEPT = """
() => new Promise((resolve) => {
  indexedDB.open("ggufd chats").onsuccess = ({ target }) => {
    const all = target.result.transaction("messages").objectStore("messages").getAll();
    all.onsuccess = () => {
      target.result.close();
      resolve(all.result);
    };
  };
})
"""


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A running browser. Raises Unavailable."""
    path = chromium()
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield started
        finally:
            started.close()


class WatchedPage:
    """A page of the server at `url`, and what went wrong in it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.faults: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("request", lambda request: self._note_request(request.url))

    def _note_request(self, address: str) -> None:
        if not address.startswith((self.url, "data:", "blob:")):
            self.faults.append(f"request to {address}")

    def watched(self, what: str) -> list[Any]:
        """`violations` of the policy, or the texts of all `banners` that were shown."""
        found: list[Any] = self.page.evaluate(f"window.watched.{what}")
        return found

    def check(self) -> None:
        """No script failed, nobody else was asked, and the policy was never violated."""
        assert self.faults == []
        assert self.watched("violations") == []

    def wait_until(self, condition: Callable[[], object], timeout_ms: int = PAGE_MS) -> None:
        """Wait for something that is no state of an element."""
        deadline = time.monotonic() + timeout_ms / 1000
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            self.page.wait_for_timeout(50)

    def wait_banner(self, text: str) -> None:
        """Wait until a banner with this text is shown, or was: it goes as soon as the trouble is over."""
        self.wait_until(lambda: any(text in one for one in self.watched("banners")))

    def wait_still(self) -> None:
        """Wait until nothing moves."""
        self.page.evaluate(
            "() => Promise.all(document.getAnimations().filter((one) => one.effect.getTiming().iterations !== Infinity)"
            ".map((one) => one.finished.catch(() => {})))"
        )


_Page = TypeVar("_Page", bound=WatchedPage)


@contextlib.contextmanager
def watched(kind: type[_Page], browser: Browser, url: str, at: str, *scripts: str, **options: Any) -> Iterator[_Page]:
    """A page in a fresh profile, in which these scripts run first, at this address; it must have broken no rule."""
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
    context.set_default_timeout(PAGE_MS)
    for script in (_WATCH, *scripts):
        context.add_init_script(script)
    try:
        page = kind(context.new_page(), url)
        page.page.goto(at)
        yield page
        page.check()
    finally:
        context.close()


@contextlib.contextmanager
def opened(browser: Browser, url: str, path: str = "", **options: Any) -> Iterator[WebPage]:
    """The chat page of this server, or its page at `path`."""
    with watched(WebPage, browser, url, f"{url}/{path}", **options) as page:
        yield page


@contextlib.contextmanager
def looking(browser: Browser, url: str, key: str = "", at: str = "", **options: Any) -> Iterator[LivePage]:
    """The live view with this key, or `at` another page first."""
    scripts = [f"sessionStorage.setItem('ggufd.key /', {json.dumps(key)})"] if key else []
    with watched(LivePage, browser, url, at or f"{url}/live", *scripts, **options) as page:
        yield page


@contextlib.contextmanager
def longest_task(browser: Browser, page: WebPage) -> Iterator[list[float]]:
    """A list that holds, once left, how long the page's main thread computed without a pause, in milliseconds.

    Time of its processor, not of the clock: what else runs on the machine does not count.
    """
    found: list[float] = []
    browser.start_tracing(page=page.page, categories=["toplevel", "__metadata"])
    try:
        yield found
    finally:
        events = json.loads(browser.stop_tracing())["traceEvents"]
    mains = {
        (event["pid"], event["tid"])
        for event in events
        if event.get("name") == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    tasks = [event["tdur"] for event in events if (event["pid"], event["tid"]) in mains and "tdur" in event]
    assert len(tasks) > 10
    found.append(max(tasks) / 1000)


class WebPage(WatchedPage):
    """The chat page."""

    @property
    def field(self) -> Locator:
        return self.page.get_by_role("textbox", name="Message", exact=True)

    @property
    def messages(self) -> Locator:
        return self.page.locator("article.message")

    @property
    def answer(self) -> Locator:
        """The last answer."""
        return self.page.locator("article.assistant").last

    def ask_for(self, **fields: Any) -> None:
        """Every request of the page carries these fields too."""

        def more(route: Route) -> None:
            route.continue_(post_data=json.dumps(route.request.post_data_json | fields))

        self.page.route("**/v1/chat/completions", more)

    def send(self, text: str) -> None:
        self.field.fill(text)
        self.field.press("Enter")

    def wait_begun(self, n: int = 1) -> None:
        """Wait until the last answer has this many characters."""
        self.page.wait_for_function(
            "n => (Array.from(document.querySelectorAll('article.assistant .markdown')).at(-1)?.textContent.length"
            " ?? 0) >= n",
            arg=n,
        )

    def wait_ended(self, timeout_ms: int = PAGE_MS) -> None:
        """Wait until no answer is being written, and all of each is shown."""
        expect(self.page.locator("article[aria-busy=true], article [aria-busy=true]")).to_have_count(
            0, timeout=timeout_ms
        )

    def press(self, name: str) -> None:
        """Press a button of a message by its name: of the last one that has it."""
        self.page.locator("article").get_by_role("button", name=name, exact=True).last.click()

    @property
    def _said(self) -> Locator:
        return self.page.locator("article .markdown, article .bubble")

    def texts(self) -> list[str]:
        """What the conversation says right now, message by message. Who goes on to something else has to wait."""
        return self._said.all_inner_texts()

    def wait_texts(self, texts: Sequence[str]) -> None:
        """Wait until the conversation says this, message by message."""
        expect(self._said).to_have_text(texts, use_inner_text=True)

    def wait_last(self, text: str) -> None:
        """Wait until this is what the last message says."""
        expect(self._said.last).to_have_text(text, use_inner_text=True)

    def answered(self, text: str) -> str:
        """The whole answer to a text."""
        self.send(text)
        self.wait_begun()
        self.wait_ended()
        return self.texts()[-1]

    def kept(self) -> list[dict[str, Any]]:
        """The messages that the browser keeps right now."""
        found: list[dict[str, Any]] = self.page.evaluate(_KEPT)
        return found

    def wait_kept(self) -> None:
        """Wait until the browser keeps every message that is shown, with its end."""
        self.wait_until(self._keeps_all)

    def _keeps_all(self) -> bool:
        ended = {one["id"] for one in self.kept() if one["state"] != "writing"}
        shown: list[str] = self.messages.evaluate_all("all => all.map((one) => one.dataset.message)")
        return ended.issuperset(shown)


class LivePage(WatchedPage):
    """The page of the live view."""

    def part(self, name: str) -> Locator:
        """A part of the page by its heading."""
        return self.page.get_by_role("region", name=name, exact=True)

    def rows(self, part: str) -> Locator:
        """The rows of a part's table."""
        return self.part(part).locator("tbody tr")

    def press(self, name: str) -> None:
        """Press the button of this name."""
        self.page.get_by_role("button", name=name, exact=True).click()

    def tile(self, name: str) -> Locator:
        """The figure of this name at the top."""
        return self.page.locator(".tile", has=self.page.get_by_text(name, exact=True)).locator(".value")

    @property
    def dialog(self) -> Locator:
        return self.page.get_by_role("dialog")

    @property
    def text(self) -> str:
        """All that the page says right now."""
        return self.page.locator("body").inner_text()
