"""The page of the live view in headless Chromium, with a watch on what it must never do."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
from playwright.sync_api import Browser, Locator, Page

PAGE_MS = 30_000
_WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


@contextlib.contextmanager
def looking(browser: Browser, url: str, key: str = "", at: str = "", **options: Any) -> Iterator[LivePage]:
    """The page with this key, in a fresh profile, or `at` another one first; at the end it must have broken no rule."""
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
    context.set_default_timeout(PAGE_MS)
    context.add_init_script(_WATCH)
    if key:
        context.add_init_script(f"sessionStorage.setItem('ggufd.key /', {json.dumps(key)})")
    try:
        live = LivePage(context.new_page(), url)
        live.page.goto(at or f"{url}/live")
        yield live
        live.check()
    finally:
        context.close()


class LivePage:
    """The page, and what went wrong in it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self._url = page, url
        self._faults: list[str] = []
        page.on("pageerror", lambda error: self._faults.append(f"error: {error}"))
        page.on("request", lambda request: self._note_request(request.url))

    def _note_request(self, address: str) -> None:
        if not address.startswith((self._url, "data:", "blob:")):
            self._faults.append(f"request to {address}")

    def check(self) -> None:
        """No script failed, nobody else was asked, and the policy was never violated."""
        assert self._faults == []
        assert self.page.evaluate("window.violations") == []

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
        """All that the page says."""
        return self.page.locator("body").inner_text()


class LongRequest:
    """A streamed completion on a thread, until it ends or is left."""

    def __init__(self, url: str, key: str, prompt: str, n_tokens: int = 1500) -> None:
        self.lines: list[str] = []
        self.status = 0
        self._url, self._key = url, key
        self._body = {"prompt": prompt, "max_tokens": n_tokens, "ignore_eos": True, "stream": True}
        self._is_left = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        headers = {"x-api-key": self._key} if self._key else {}
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.stream(
                "POST", f"{self._url}/v1/completions", json=self._body, headers=headers, trust_env=False, timeout=120
            ) as answer,
        ):
            self.status = answer.status_code
            for line in answer.iter_lines():
                self.lines += [line] if line else []
                if self._is_left.is_set():
                    return

    def wait_ended(self, timeout_s: float = 20.0) -> str:
        """Wait for its end by itself; its last line."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the request goes on"
        return self.lines[-1]

    def leave(self) -> None:
        """Close the connection."""
        self._is_left.set()
        self._thread.join(30)


@contextlib.contextmanager
def long_requests(url: str, *keys: str, prompt: str = "Once upon a time") -> Iterator[list[LongRequest]]:
    """A request of each key, the first of them first; they are left at the end."""
    started: list[LongRequest] = []
    try:
        for number, key in enumerate(keys):
            one = LongRequest(url, key, f"{prompt} {number}")
            started.append(one)
            _wait_placed(url, key)
        yield started
    finally:
        for one in started:
            one.leave()


def _wait_placed(url: str, key: str) -> None:
    """Wait until a request of the key runs or waits."""
    headers = {"x-api-key": key} if key else {}
    for _ in range(200):
        if httpx.get(f"{url}/v1/queue", headers=headers, trust_env=False).json()["data"]:
            return
