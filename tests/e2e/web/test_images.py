"""A person who shows the model images: attached, pasted, dropped, taken back, sent, kept."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Route, expect

from ggufd.models import hub
from tests.support.models.image_files import (
    BLUE,
    GREEN,
    PATCHES,
    RED,
    Colour,
    image_bytes,
    patch_file,
    patch_uri,
    patches,
)
from tests.support.models.projector_file import write_projector
from tests.support.programs import web_page
from tests.support.programs.live_server import LiveServer, live_server
from tests.support.programs.web_page import WebPage

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

ANSWER = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "I see it."}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
]

# What a person's clipboard or hand holds; scripts can make such an event, but not the permission to read.
GIVE = """
([selector, type, files, texts]) => {
  const data = new DataTransfer();
  for (const [name, kind, base64] of files) {
    const bytes = Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
    data.items.add(new File([bytes], name, { type: kind }));
  }
  for (const [kind, text] of texts) data.setData(kind, text);
  const options = { bubbles: true, cancelable: true };
  const event = type === "paste"
    ? new ClipboardEvent(type, { ...options, clipboardData: data })
    : new DragEvent(type, { ...options, dataTransfer: data });
  document.querySelector(selector).dispatchEvent(event);
}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server("--ctx-size", "4096") as started:
        yield started


class SeeingPage:
    """The page of a server whose model reads images, so it says; requests are kept, and answered in its place."""

    def __init__(self, page: WebPage, *, sees: bool = True) -> None:
        self.page = page
        self.sees = sees
        self.sent: list[dict[str, Any]] = []
        page.page.route("**/props", self._props)
        page.page.route("**/v1/chat/completions", self._answer)
        page.page.reload()

    def _props(self, route: Route) -> None:
        said = route.fetch().json()
        route.fulfill(json=said | {"modalities": {"vision": self.sees, "audio": False}})

    def _answer(self, route: Route) -> None:
        self.sent.append(route.request.post_data_json)
        lines = [*(json.dumps(chunk) for chunk in ANSWER), "[DONE]"]
        body = "".join(f"data: {line}\n\n" for line in lines)
        route.fulfill(body=body, content_type="text/event-stream")

    @property
    def attach(self) -> Locator:
        return self.page.page.get_by_role("button", name="Attach images")

    @property
    def attached(self) -> Locator:
        return self.page.page.get_by_role("list", name="Attached images").get_by_role("img")

    @property
    def shown(self) -> Locator:
        """The images of messages."""
        return self.page.page.locator("article.user").get_by_role("img")

    def choose(self, *files: tuple[str, str, bytes]) -> None:
        with self.page.page.expect_file_chooser() as chooser:
            self.attach.click()
        chooser.value.set_files([{"name": name, "mimeType": kind, "buffer": data} for name, kind, data in files])

    def give(self, selector: str, event: str, *files: tuple[str, str, bytes], texts: tuple[str, ...] = ()) -> None:
        """Paste or drop files, and texts of these kinds."""
        packed = [[name, kind, base64.b64encode(data).decode("ascii")] for name, kind, data in files]
        self.page.page.evaluate(GIVE, [selector, event, packed, [[kind, "text"] for kind in texts]])

    def send(self, text: str = "") -> list[dict[str, Any]]:
        """The messages of the request that this makes."""
        n = len(self.sent)
        if text:
            self.page.field.fill(text)
        self.page.page.get_by_role("button", name="Send").click()
        expect(self.page.answer.get_by_text("I see it.")).to_be_visible()
        self.page.wait_ended()
        assert len(self.sent) == n + 1
        messages: list[dict[str, Any]] = self.sent[-1]["messages"]
        return messages


@pytest.fixture
def page(browser: Browser, server: LiveServer) -> Iterator[SeeingPage]:
    with web_page.opened(browser, server.url) as opened:
        yield SeeingPage(opened)


def bytes_of(part: dict[str, Any]) -> bytes:
    assert part["type"] == "image_url"
    return base64.b64decode(part["image_url"]["url"].partition(",")[2])


RED_PNG = ("red.png", "image/png", patch_file([RED]))
BLUE_PNG = ("blue.png", "image/png", patch_file([BLUE]))


def test_images_are_chosen_taken_back_and_sent(page: SeeingPage) -> None:
    page.choose(RED_PNG, BLUE_PNG)
    expect(page.attached).to_have_count(2)
    page.page.page.get_by_role("button", name="Remove image 1").click()
    expect(page.attached).to_have_count(1)
    page.choose(RED_PNG)
    expect(page.attached).to_have_count(2)
    (message,) = page.send("What is it?")
    *images, text = message["content"]
    # A small PNG goes as it is, byte by byte.
    assert [bytes_of(one) for one in images] == [BLUE_PNG[2], RED_PNG[2]]
    assert text == {"type": "text", "text": "What is it?"}
    expect(page.attached).to_have_count(0)
    expect(page.shown).to_have_count(2)


def test_an_image_needs_no_words(page: SeeingPage) -> None:
    expect(page.page.page.get_by_role("button", name="Send")).to_be_disabled()
    page.choose(RED_PNG)
    (message,) = page.send()
    assert len(message["content"]) == 1
    expect(page.page.page).to_have_title("Image - ggufd")


def test_images_are_pasted_and_text_beside_them_goes_first(page: SeeingPage) -> None:
    page.give(".composer-field", "paste", RED_PNG)
    expect(page.attached).to_have_count(1)
    # A table on the clipboard has its picture with it.
    page.give(".composer-field", "paste", BLUE_PNG, texts=("text/plain", "text/html"))
    page.give(".composer-field", "paste", texts=("text/plain",))
    expect(page.attached).to_have_count(1)


def test_images_are_dropped_anywhere(page: SeeingPage) -> None:
    page.give("main", "dragover", RED_PNG)
    expect(page.page.page.get_by_text("Drop images here")).to_be_visible()
    page.give("main", "drop", RED_PNG, BLUE_PNG)
    expect(page.page.page.get_by_text("Drop images here")).to_have_count(0)
    expect(page.attached).to_have_count(2)


def test_a_file_that_is_no_image_is_said(page: SeeingPage) -> None:
    page.choose(("notes.txt", "text/plain", b"hello"), RED_PNG)
    expect(page.page.page.get_by_text("notes.txt is no image that this browser can read.")).to_be_visible()
    expect(page.attached).to_have_count(1)


def test_a_large_image_is_made_smaller_and_stands_upright(page: SeeingPage) -> None:
    photo = patches(PATCHES, columns=4, patch=1000).rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    page.choose(("photo.jpg", "image/jpeg", image_bytes(photo, "JPEG", exif=exif)))
    page.choose(("large.gif", "image/gif", image_bytes(patches([RED], 1, 3000), "GIF")))
    expect(page.attached).to_have_count(2)
    (message,) = page.send("What is it?")
    jpeg, gif = (Image.open(io.BytesIO(bytes_of(part))) for part in message["content"][:2])
    assert (jpeg.format, jpeg.size) == ("JPEG", (1600, 800))
    assert not jpeg.getexif()
    first = jpeg.getpixel((200, 200))
    assert isinstance(first, tuple)
    assert max(first) < 20, "the first patch is black"
    assert (gif.format, gif.size) == ("PNG", (1600, 1600))


def test_images_stay_with_their_chat(page: SeeingPage, tmp_path: Path) -> None:
    page.choose(RED_PNG)
    page.send("What is it?")
    page.page.wait_kept()
    page.page.page.reload()
    expect(page.shown).to_have_count(1)
    page.page.press("Regenerate")
    page.page.wait_ended()
    expect(page.page.page.get_by_label("Version 2 of 2")).to_be_visible()
    assert bytes_of(page.sent[-1]["messages"][0]["content"][0]) == RED_PNG[2]

    page.shown.click()
    expect(page.page.page.get_by_role("dialog", name="Image").get_by_role("img")).to_be_visible()
    page.page.page.keyboard.press("Escape")

    page.page.messages.first.hover()
    page.page.messages.first.get_by_role("button", name="Edit").click()
    page.page.page.get_by_label("Text of the message").fill("And now?")
    page.page.press("Send")
    expect(page.page.answer.get_by_text("I see it.")).to_be_visible()
    page.page.wait_ended()
    image, text = page.sent[-1]["messages"][0]["content"]
    assert (bytes_of(image), text["text"]) == (RED_PNG[2], "And now?")

    page.page.page.get_by_role("button", name="More on").click()
    with page.page.page.expect_download() as download:
        page.page.page.get_by_role("menuitem", name="Export").click()
    file = tmp_path / "chat.json"
    download.value.save_as(file)
    exported = json.loads(file.read_text("utf-8"))
    assert bytes_of(exported["messages"][0]["content"][0]) == RED_PNG[2]


def test_where_the_model_reads_none_the_page_says_so(browser: Browser, server: LiveServer) -> None:
    with web_page.opened(browser, server.url) as opened:
        page = SeeingPage(opened, sees=False)
        button = opened.page.get_by_role("button", name="This model reads no images")
        expect(button).to_be_disabled()
        page.give("main", "drop", RED_PNG)
        expect(opened.page.get_by_text("This model reads no images: the server has no projector")).to_be_visible()
        expect(page.attached).to_have_count(0)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server whose model reads images, of which each patch says a word."""
    projector = write_projector(tmp_path_factory.mktemp("eyes") / "mmproj.gguf", hub.find("").path)
    flags = ("--mmproj", str(projector), "--temp", "0", "--predict", "12")
    with live_server("--ctx-size", "4096", *flags) as started:
        yield started


def said_by_api(server: LiveServer, colour: Colour, text: str) -> str:
    """What the server says of a plain image to a program."""
    image = {"type": "image_url", "image_url": {"url": patch_uri([colour] * 16)}}
    body = {"messages": [{"role": "user", "content": [image, {"type": "text", "text": text}]}]}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, trust_env=False, timeout=120)
    assert answer.status_code == 200, answer.text
    said: str = answer.json()["choices"][0]["message"]["content"]
    return said.strip()


def test_a_person_drops_an_image_and_is_answered(browser: Browser, seeing: LiveServer) -> None:
    expected = {colour: said_by_api(seeing, colour, "What is it?") for colour in (GREEN, BLUE)}
    assert expected[GREEN] != expected[BLUE]
    with web_page.opened(browser, seeing.url) as page:
        for colour in (GREEN, BLUE):
            page.page.get_by_role("button", name="New chat").click()
            expect(page.page.get_by_role("button", name="Attach images")).to_be_enabled()
            data = base64.b64encode(patch_file([colour] * 16)).decode("ascii")
            page.page.evaluate(GIVE, ["main", "drop", [["patch.png", "image/png", data]], []])
            expect(page.page.get_by_role("list", name="Attached images").get_by_role("img")).to_have_count(1)
            page.send("What is it?")
            expect(page.answer.locator(".markdown")).to_have_text(expected[colour])
            page.wait_ended()


def test_a_refused_image_is_said_in_the_servers_words(browser: Browser, seeing: LiveServer) -> None:
    with web_page.opened(browser, seeing.url) as page:
        page.ask_for(
            messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]
        )
        page.send("What is it?")
        expect(page.answer.get_by_role("alert")).to_contain_text("files of the server's machine are not read here")
