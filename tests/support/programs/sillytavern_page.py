"""SillyTavern's page in headless Chromium, used as a person uses it: connect, write, stop, swipe."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Error, Locator, Page, Response, expect, sync_playwright

from tests.support.programs.sillytavern_app import SillyTavern, Unavailable, or_skip, running

PAGE_S = 60
"""A page waits for a server that waits for a busy machine."""

TOGGLES = 10
TOGGLED_MS = 5000
"""A panel opens or closes in half a second; after so long its click was lost."""

expect.set_options(timeout=PAGE_S * 1000)

CHARACTER = "Marlow"
API_PANEL = ("#sys-settings-button .drawer-toggle", "#rm_api_block")
FORMAT_PANEL = ("#advanced-formatting-button .drawer-toggle", "#AdvancedFormatting")
CHARACTER_PANEL = ("#rightNavHolder .drawer-toggle", "#right-nav-panel")
_SET = """(field, value) => {
    if (field.type === 'checkbox') field.checked = value; else field.value = value;
    for (const event of ['input', 'change']) field.dispatchEvent(new Event(event, { bubbles: true }));
}"""
URL_FIELDS = {"ooba": "textgenerationwebui"}
"""Where the name of a type's address field is not the type's own."""

SETTINGS: dict[str, Any] = {
    "firstRun": False,
    "main_api": "textgenerationwebui",
    "amount_gen": 160,
    "max_context": 2048,
    "textgenerationwebui_settings": {"streaming": True, "temp": 0.7, "min_p": 0.05},
    "oai_settings": {"stream_openai": True, "openai_max_tokens": 160, "openai_max_context": 2048},
    "power_user": {
        "instruct": {"enabled": True},
        "instruct_derived": True,
        "context_derived": True,
        "context_size_derived": True,
    },
}
"""What a person has set who was here before: no welcome dialogue, streaming, the backend's own template and context."""


def chromium() -> str:
    """The path of Debian's Chromium, or of another one. Raises Unavailable."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    raise Unavailable("chromium is not installed")


@contextlib.contextmanager
def opened(app: SillyTavern, width: int = 1200, height: int = 900) -> Iterator[TavernPage]:
    """Its page, loaded. Raises Unavailable."""
    path = chromium()
    flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*flags, "--disable-gpu"])
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(PAGE_S * 1000)
            page.goto(app.url)
            tavern = TavernPage(page)
            tavern.wait_loaded()
            yield tavern
        finally:
            browser.close()


def opener(
    stack: contextlib.ExitStack, folders: pytest.TempPathFactory, settings: dict[str, Any]
) -> Callable[[str], TavernPage]:
    """Opens the page of a version, with a character to talk to; that of another version is closed first."""
    open_now: dict[str, TavernPage] = {}

    def page_of(version: str) -> TavernPage:
        if version not in open_now:
            open_now.clear()
            stack.close()
            folder = folders.mktemp("sillytavern") / "data"
            with or_skip():
                app = stack.enter_context(running(version, folder, settings))
                open_now[version] = stack.enter_context(opened(app))
            add_character(app)
            open_now[version].reload()
        return open_now[version]

    return page_of


class TavernPage:
    """What a person does on the page. Every method waits until the page shows that it was done."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def wait_loaded(self) -> None:
        self.page.locator("#preloader, #loader").first.wait_for(state="detached")

    def reload(self) -> None:
        self.page.reload()
        self.wait_loaded()

    def complaints(self) -> list[str]:
        """The errors and warnings that it shows as toasts right now."""
        return self.page.locator(".toast-error, .toast-warning").all_inner_texts()

    def connect(self, kind: str, url: str) -> str:
        """Choose an API type, type the address and press Connect; what the status line then says."""
        self.open_panel(*API_PANEL)
        is_chat = kind == "custom"
        self.page.select_option("#main_api", "openai" if is_chat else "textgenerationwebui")
        self.page.select_option("#chat_completion_source" if is_chat else "#textgen_type", kind)
        self.page.fill(f"#{URL_FIELDS.get(kind, kind)}_api_url_text", url)
        # A list of addresses that were typed before would lie over the button.
        self.page.keyboard.press("Tab")
        with self.page.expect_response(lambda reply: _is_status_of(reply, url)):
            self.page.click("#api_button_openai" if is_chat else "#api_button_textgenerationwebui")
        block = "#openai_api" if is_chat else "#textgenerationwebui_api"
        self.page.locator(f"{block} .online_status_indicator.success").wait_for()
        return self.page.locator(f"{block} .online_status_text").inner_text()

    def choose_template(self, name: str) -> None:
        """Context and instruct template by hand: it derives them only from the templates of models that it knows."""
        self.close_panel(*API_PANEL)
        self.open_panel(*FORMAT_PANEL)
        self.page.select_option("#context_presets", label=name)
        self.page.select_option("#instruct_presets", label=name)
        self.page.wait_for_timeout(500)
        self.close_panel(*FORMAT_PANEL)

    def open_panel(self, toggle: str, panel: str) -> None:
        self._toggle(toggle, self.page.locator(f"{panel}.openDrawer"))
        self.page.locator(f"{panel}.openDrawer").wait_for()

    def close_panel(self, toggle: str, panel: str) -> None:
        self._toggle(toggle, self.page.locator(f"{panel}.closedDrawer"))

    def _toggle(self, toggle: str, wanted: Locator) -> None:
        """Click until the panel is so: while a panel moves, the page takes no click."""
        for _ in range(TOGGLES):
            if wanted.count():
                return
            self.page.click(toggle)
            with contextlib.suppress(Error):
                wanted.wait_for(state="attached", timeout=TOGGLED_MS)
        assert wanted.count(), f"{toggle} does not open or close its panel"

    def wait_context_size(self, n_tokens: int) -> None:
        """Until its context slider says so: the page asks the backend once more after it has connected."""
        expect(self.page.locator("#max_context")).to_have_value(str(n_tokens))

    @property
    def derives_context_size(self) -> bool:
        """Whether this version can ask the backend for its context size."""
        return self.page.locator("#context_size_derived").count() > 0

    def open_chat(self) -> None:
        """Close the connection panel and have the chat with this character open."""
        self.close_panel(*API_PANEL)
        if self.answers.count():
            return
        self.open_panel(*CHARACTER_PANEL)
        self.page.locator("#rm_print_characters_block .character_select", has_text=CHARACTER).click()
        self.answers.first.wait_for()
        self.close_panel(*CHARACTER_PANEL)

    @property
    def answers(self) -> Locator:
        """The character's messages, oldest first."""
        return self.page.locator(f'#chat .mes[is_user="false"][ch_name="{CHARACTER}"]')

    def last_text(self) -> str:
        return self.answers.last.locator(".mes_text").inner_text()

    def send(self, text: str) -> None:
        """Write a message and press the paper plane; returns when the answer's message is there."""
        before = self.answers.count()
        self._type(text)
        expect(self.answers).to_have_count(before + 1)

    def wait_text(self, longer_than: int) -> None:
        """Wait until the last answer has more than this many characters."""
        expect(self.answers.last.locator(".mes_text")).to_have_text(re.compile(rf"^[\s\S]{{{longer_than + 1},}}"))

    def wait_written(self) -> None:
        """Wait until nothing is being written."""
        self.page.locator("#mes_stop").wait_for(state="hidden")

    def say(self, text: str) -> None:
        """Write a message; returns when all of the answer is there."""
        self.send(text)
        self.wait_text(0)
        self.wait_written()

    def run(self, command: str) -> None:
        """Type a slash command."""
        self._type(command)

    def _type(self, text: str) -> None:
        """Write and press the paper plane until the page takes it: right after an answer it may not."""
        field = self.page.locator("#send_textarea")
        field.fill(text)
        deadline = time.monotonic() + PAGE_S
        while field.input_value():
            assert time.monotonic() < deadline, f"the page does not take {text!r}"
            self.page.click("#send_but")
            with contextlib.suppress(AssertionError):
                expect(field).to_have_value("", timeout=3000)

    def set_sampler(self, name: str, value: float | str | bool) -> None:
        """Set a field of the sliders' panel, as its own name calls it, whether or not it is in view."""
        self.page.locator(f"#{name}_textgenerationwebui").evaluate(_SET, value)

    def stop(self) -> bool:
        """Press Stop; whether there was still something to stop."""
        was_writing: bool = self.page.evaluate(
            "() => { const stop = document.querySelector('#mes_stop');"
            " const there = stop.offsetParent !== null; if (there) stop.click(); return there; }"
        )
        self.wait_written()
        return was_writing

    def swipe(self) -> None:
        """Ask for another answer; returns when it is written."""
        before = self.last_text()
        self.answers.last.locator(".swipe_right").click()
        expect(self.answers.last.locator(".mes_text")).not_to_have_text(before)
        self.wait_text(3)
        self.wait_written()


def _is_status_of(reply: Response, url: str) -> bool:
    """Whether this is the answer to a Connect with this address: the page connects by itself, too."""
    return reply.url.endswith("/status") and url in (reply.request.post_data or "")


def add_character(app: SillyTavern) -> None:
    """A character to talk to."""
    card = {
        "ch_name": CHARACTER,
        "description": "Marlow keeps a lighthouse on a rocky island. He is calm, kind and likes short stories.",
        "personality": "calm, kind",
        "scenario": "A visitor has come to the lighthouse on a stormy evening.",
        "first_mes": "*The lamp turns above.* Come in, you are soaked! Sit by the stove. What brings you out here?",
        "mes_example": "",
    }
    app.http.post("/api/characters/create", data=card).raise_for_status()
