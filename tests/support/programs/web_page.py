"""The chat page in headless Chromium, used as a person uses it. What it must never do is watched all the time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from playwright.sync_api import Browser, Locator, Page, Route, sync_playwright

from tests.support.programs.sillytavern_page import chromium

PAGE_MS = 30_000
_WATCH = """
window.watched = { violations: [] };
document.addEventListener("securitypolicyviolation", (event) =>
  window.watched.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
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


@contextlib.contextmanager
def opened(browser: Browser, url: str, path: str = "", **options: Any) -> Iterator[WebPage]:
    """A page of this server in a fresh profile; at the end it must have broken no rule."""
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
    context.set_default_timeout(PAGE_MS)
    context.add_init_script(_WATCH)
    try:
        page = WebPage(context.new_page(), url)
        page.page.goto(f"{url}/{path}")
        yield page
        page.check()
    finally:
        context.close()


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


class WebPage:
    """The page, and what went wrong in it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.faults: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("request", lambda request: self._note_request(request.url))

    def _note_request(self, address: str) -> None:
        if not address.startswith((self.url, "data:", "blob:")):
            self.faults.append(f"request to {address}")

    def watched(self, what: str) -> list[Any]:
        """`violations` of the policy."""
        found: list[Any] = self.page.evaluate(f"window.watched.{what}")
        return found

    def check(self) -> None:
        """No script failed, nobody else was asked, and the policy was never violated."""
        assert self.faults == []
        assert self.watched("violations") == []

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

    def wait_ended(self) -> None:
        """Wait until no answer is being written."""
        self.page.locator("article[aria-busy=true]").first.wait_for(state="detached")

    def press(self, name: str) -> None:
        """Press a button of a message by its name: of the last one that has it."""
        self.page.locator("article").get_by_role("button", name=name, exact=True).last.click()

    def texts(self) -> list[str]:
        """What the conversation says, message by message."""
        return self.page.locator("article .markdown, article .bubble").all_inner_texts()

    def answered(self, text: str) -> str:
        """The whole answer to a text."""
        self.send(text)
        self.wait_begun()
        self.wait_ended()
        return self.texts()[-1]

    def wait_kept(self) -> None:
        """Wait until the browser has kept what is shown."""
        self.page.wait_for_timeout(300)
