"""Makes the documentation's pictures of the web page, with the real server behind it: `python -m
tests.support.programs.web_screenshots`.

Not a test. Needs what tests/e2e/web needs, and port 8080 free, because the documentation says 8080.
"""

from __future__ import annotations

from tests.support.programs import web_page
from tests.support.programs.live_server import ROOT, live_server

FOLDER = ROOT / "docs" / "images"
QUESTIONS = ("Write a Python function that counts the words of a text.", "Explain it in two sentences.")
FIELDS = {"temperature": 0.2, "seed": 7, "max_tokens": 160}


def main() -> None:
    with live_server("--port", "8080") as server, web_page.browser() as browser:
        with web_page.opened(browser, server.url, viewport={"width": 1100, "height": 720}) as page:
            page.ask_for(**FIELDS)
            for question in QUESTIONS:
                page.answered(question)
            page.press("Regenerate")
            page.wait_begun()
            page.wait_ended()
            page.page.mouse.move(1, 1)
            page.page.screenshot(path=FOLDER / "chat-page.png")
        phone = {
            "viewport": {"width": 390, "height": 720},
            "color_scheme": "dark",
            "is_mobile": True,
            "has_touch": True,
        }
        with web_page.opened(browser, server.url, **phone) as page:
            page.page.get_by_role("heading", name="Chat with SmolLM2").wait_for()
            page.page.screenshot(path=FOLDER / "chat-page-phone.png")


if __name__ == "__main__":
    main()
