"""Makes the documentation's pictures of SillyTavern, connected to the real server: `python -m
tests.support.programs.screenshots`.

Not a test. Needs what tests/e2e/sillytavern/test_sillytavern_page.py needs, and port 8080 free, because the
documentation says 8080.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from playwright.sync_api import FloatRect

from tests.support.programs import sillytavern_app, sillytavern_page
from tests.support.programs.live_server import ROOT, live_server
from tests.support.programs.sillytavern_page import API_PANEL, TavernPage

FOLDER = ROOT / "docs" / "images"
VERSION = sillytavern_app.VERSIONS[-1]
WIDTH, HEIGHT = 960, 720
MARGIN = 8
SETTINGS = sillytavern_page.SETTINGS | {
    "amount_gen": 110,
    "max_context": 8192,
    "textgenerationwebui_settings": {
        "streaming": True, "temp": 0.5, "min_p": 0.1, "rep_pen": 1.12, "rep_pen_range": 300, "seed": 11,
    },
    "power_user": sillytavern_page.SETTINGS["power_user"] | {"trim_sentences": True},
}  # fmt: skip


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        live_server("--port", "8080", "--threads", "1") as server,
        sillytavern_app.running(VERSION, Path(folder) / "data", SETTINGS) as app,
        sillytavern_page.opened(app, WIDTH, HEIGHT) as page,
    ):
        sillytavern_page.add_character(app)
        page.reload()
        page.connect("custom", f"{server.url}/v1")
        _shoot(page, "sillytavern-custom.png", API_PANEL[1])
        page.connect("llamacpp", server.url)
        _shoot(page, "sillytavern-llamacpp.png", API_PANEL[1])
        _chat(page)
        _shoot(page, "sillytavern-chat.png", "#sheld")


def _chat(page: TavernPage) -> None:
    page.choose_template("ChatML")
    page.open_chat()
    for said in ("Hello! What is it like to live in a lighthouse?", "What do you see from up here at night?"):
        page.send(said)
        page.wait_text(0)
        page.wait_written()


def _shoot(page: TavernPage, name: str, part: str) -> None:
    """A picture of one part of the page with the bar above it, once nothing moves any more."""
    page.page.mouse.move(1, 1)
    page.page.wait_for_timeout(1500)
    box = page.page.locator(part).bounding_box()
    assert box is not None
    bottom = min(box["y"] + box["height"] + MARGIN, HEIGHT)
    clip = FloatRect(x=max(box["x"] - MARGIN, 0), y=0, width=box["width"] + 2 * MARGIN, height=bottom)
    page.page.screenshot(path=FOLDER / name, clip=clip)


if __name__ == "__main__":
    main()
