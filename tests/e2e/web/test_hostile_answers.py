"""Answers that no model should give: nothing in them runs or loads, and none freezes the page."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.support.programs import web_page
from tests.support.programs.live_server import LiveServer, live_server
from tests.support.programs.web_page import WebPage

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

LONGEST_TASK_MS = 200

_FAKE_STREAM = """
([pieces, pause]) => {
  const real = window.fetch;
  const event = (delta, reason) => `data: ${JSON.stringify({ id: "chatcmpl-0", object: "chat.completion.chunk",
    model: "m", choices: [{ index: 0, delta, logprobs: null, finish_reason: reason }] })}\\n\\n`;
  window.fetch = (address, options) => {
    if (!String(address).endsWith("/chat/completions")) return real(address, options);
    const bytes = new TextEncoder();
    let at = 0;
    const body = new ReadableStream({
      async pull(stream) {
        if (at === pieces.length) {
          stream.enqueue(bytes.encode(event({}, "stop") + "data: [DONE]\\n\\n"));
          return stream.close();
        }
        stream.enqueue(bytes.encode(event({ content: pieces[at++] }, null)));
        if (pause && at % 20 === 0) await new Promise((resolve) => setTimeout(resolve, pause));
      },
    });
    return Promise.resolve(new Response(body, { headers: { "content-type": "text/event-stream" } }));
  };
}
"""
"""Instead of the server's answer: these pieces, one event each, with pauses of so many milliseconds."""


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server("--ctx-size", "2048") as started:
        yield started


@pytest.fixture
def page(browser: Browser, server: LiveServer) -> Iterator[WebPage]:
    with web_page.opened(browser, server.url) as opened:
        yield opened


def answer_with(page: WebPage, pieces: list[str], pause_ms: int = 0) -> None:
    """An answer of these pieces, shown to its end."""
    page.page.evaluate(_FAKE_STREAM, [pieces, pause_ms])
    page.send("Go.")
    expect(page.answer).to_be_visible()
    page.wait_ended()


HOSTILE = [
    "<img src=x onerror='window.owned = 1'>",
    "<script>window.owned = 1</script>",
    "<svg onload='window.owned = 1'><iframe srcdoc='<script>parent.owned = 1</script>'></iframe>",
    "[click](javascript:window.owned=1)",
    "[click](  JaVaScRiPt:window.owned=1)",
    "[click](data:text/html,<script>opener.owned=1</script>)",
    "![picture](https://elsewhere.example/pixel.png)",
    "<a href='javascript:window.owned=1'>click</a>",
    "<style>body { display: none }</style>",
    "<form action='https://elsewhere.example'><button>Send</button></form>",
    "<p style='position:fixed;inset:0' id='app' class='dialog'>over all</p>",
    "```html\n<img src=x onerror='window.owned = 1'>\n```",
    '```"><img src=x onerror=window.owned=1>\ncode\n```',
    "| <img src=x onerror='window.owned = 1'> |\n|---|\n| <b onmouseover='window.owned=1'>x</b> |",
    '<noscript><p title="</noscript><img src=x onerror=window.owned=1>">',
    "<math><mtext><table><mglyph><style><img src=x onerror=window.owned=1>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_in_an_answer_runs_or_loads(page: WebPage, text: str) -> None:
    answer_with(page, [f"Before.\n\n{text}\n\nAfter."])
    expect(page.answer.locator(".markdown")).to_contain_text("After.")
    for link in page.answer.get_by_text("click").all():
        link.click()
    inside = "img, script, iframe, svg:not(.icon), style, form, button:not(.code-copy), [style], [id], [onerror], math"
    expect(page.answer.locator(".markdown").locator(inside)).to_have_count(0)
    assert page.page.evaluate("window.owned") is None
    shown = page.answer.locator(".markdown").inner_text()
    assert "window.owned" in shown or "elsewhere" in shown or "<" in shown


def test_what_runs_in_no_answer_runs_in_no_name_and_no_import(page: WebPage) -> None:
    text = "<img src=x onerror='window.owned = 1'>"
    answer_with(page, ["a"])
    page.page.get_by_role("button", name="Import and export").click()
    with page.page.expect_file_chooser() as chooser:
        page.page.get_by_role("menuitem", name="Import").click()
    file = {"title": text, "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}
    chooser.value.set_files({"name": "x.json", "mimeType": "application/json", "buffer": json.dumps(file).encode()})
    expect(page.page.locator(".chat-name").first).to_have_text(text)
    page.wait_texts([text, text])
    assert page.page.evaluate("window.owned") is None


def test_links_open_elsewhere_and_tell_nothing(page: WebPage) -> None:
    answer_with(page, ["[docs](https://example.org/a?b) and **bold**\n\n3. three\n4. four\n"])
    link = page.answer.get_by_role("link", name="docs")
    for name, value in {
        "href": "https://example.org/a?b",
        "target": "_blank",
        "rel": "noopener noreferrer nofollow",
    }.items():
        expect(link).to_have_attribute(name, value)
    expect(page.answer.locator("strong")).to_have_text("bold")
    expect(page.answer.locator("ol")).to_have_attribute("start", "3")


_NOTE_SHOWN = """
() => {
  window.shown = [];
  new MutationObserver(() => {
    const text = document.querySelector("article.assistant .markdown");
    const isBusy = document.querySelector("article[aria-busy=true], article [aria-busy=true]");
    if (text && !isBusy) window.shown.push(text.textContent.length);
  }).observe(document, { subtree: true, attributes: true, childList: true });
}
"""
"""Notes how long the answer is whenever the page says that it is not busy with it."""


def test_an_answer_that_is_not_busy_is_shown_whole(page: WebPage) -> None:
    paragraphs = 3000
    page.page.evaluate(_NOTE_SHOWN)
    answer_with(page, ["word\n\n"] * paragraphs)
    assert page.answer.locator("p", has_text="word").count() == paragraphs
    lengths = set(page.page.evaluate("window.shown"))
    assert len(lengths) == 1
    assert lengths.pop() >= paragraphs * len("word")


WORDS = "The ship **sails** on, `while` the wind is strong. "
LONG = {
    "a megabyte without a blank": (["a" * 1000] * 1000, 0),
    "a megabyte without a blank, at once": (["a" * 1_000_000], 0),
    "a megabyte of words in one paragraph": ([WORDS * 20] * 1000, 0),
    "ten thousand tokens": ([f" word{i}" + ("\n\n" if i % 60 == 0 else "") for i in range(10_000)], 1),
    "ten thousand tokens of one list": ([("\n- **item**" if i % 12 == 0 else f" w{i}") for i in range(10_000)], 1),
    "ten thousand tokens of code": (["```python\n", *(f"x{i} = 'a'\n" for i in range(5000))], 1),
    "emphasis that never ends": (["a*_"] * 30_000, 0),
    "brackets that never end": (["[("] * 30_000, 0),
    "quotes in quotes": (["> "] * 30_000, 0),
    "a list in a list": (["- "] * 30_000, 0),
    "ten thousand paragraphs": (["a\n\n"] * 10_000, 0),
    "a table without an end": (["| a | b |\n|---|---|\n", *["| 1 | 2 |\n"] * 10_000], 0),
}


@pytest.mark.parametrize("name", LONG)
def test_no_answer_freezes_the_page(page: WebPage, browser: Browser, name: str) -> None:
    pieces, pause_ms = LONG[name]
    whole = "".join(pieces)
    least = len(whole.translate({ord(c): None for c in " \n*_`>-|[]("})) * 0.8
    page.page.evaluate(_FAKE_STREAM, [pieces, pause_ms])
    with web_page.longest_task(browser, page) as longest_ms:
        page.send("Go.")
        expect(page.answer).to_be_visible()
        page.wait_ended(120_000)
        page.wait_begun(int(least))
        page.page.wait_for_timeout(300)
    assert longest_ms[0] <= LONGEST_TASK_MS
