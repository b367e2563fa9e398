"""A page that is reloaded, or loses its network, while an answer is being written: all of it is shown."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.support.programs import web_page
from tests.support.programs.live_server import LiveServer, live_server
from tests.support.programs.web_page import WebPage
from tests.support.programs.wire import wired

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

STORY = "Tell me everything that you know about ships, one by one."
LONG: dict[str, Any] = {"max_tokens": 120, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server("--ctx-size", "4096", "--parallel", "2") as started:
        yield started


@pytest.fixture
def page(browser: Browser, server: LiveServer) -> Iterator[WebPage]:
    with web_page.opened(browser, server.url) as opened:
        opened.ask_for(**LONG)
        yield opened


def kept(page: WebPage) -> list[dict[str, Any]]:
    """The answers as the browser keeps them right now."""
    return [one for one in page.kept() if one["role"] == "assistant"]


def wait_kept_some(page: WebPage) -> None:
    """Wait until the browser keeps a part of an answer, and where that ends."""
    page.wait_until(lambda: any(one["text"] and one["stream"]["last"] for one in kept(page)))


def wait_kept_stream(page: WebPage) -> None:
    """Wait until the browser keeps where the answer can be found."""
    page.wait_until(lambda: any(one.get("stream") for one in kept(page)))


def streams_of(server: LiveServer) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = httpx.get(f"{server.url}/v1/streams", trust_env=False, timeout=60).json()["data"]
    return data


def whole_text(server: LiveServer, stream_id: str) -> str:
    """What the server kept of an answer, from its beginning."""
    events = httpx.get(f"{server.url}/v1/streams/{stream_id}", trust_env=False, timeout=60).text
    chunks = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: {")]
    return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])


def check_whole(page: WebPage, server: LiveServer, n_tokens: int = LONG["max_tokens"]) -> None:
    """What is shown and kept is the answer that the server made, all of it and no part of it twice."""
    page.wait_ended(120_000)
    page.wait_kept()
    answer = kept(page)[-1]
    text = whole_text(server, answer["responseId"])
    assert (answer["state"], answer.get("stream")) == ("done", None)
    assert answer["text"] == text
    assert (answer["finishReason"], answer["usage"]["completion_tokens"]) == ("length", n_tokens)
    assert "".join(page.texts()[-1].split())[:20] == "".join(text.split())[:20]


def test_a_reload_in_the_middle_of_an_answer_shows_all_of_it(page: WebPage, server: LiveServer) -> None:
    """Once before anything of it is kept in the browser, and once when some of it is."""
    page.ask_for(**LONG | {"max_tokens": 500})
    page.send(STORY)
    page.wait_begun(10)
    for _ in range(2):
        page.page.reload()
        expect(page.answer).to_have_attribute("aria-busy", "true")
        assert server.n_running() == 1
        wait_kept_some(page)
    check_whole(page, server, 500)
    expect(page.messages).to_have_count(2)


def test_a_reload_after_the_end_shows_what_came_meanwhile(page: WebPage, server: LiveServer) -> None:
    page.send(STORY)
    page.wait_begun(10)
    page.page.goto("about:blank")
    assert server.wait_running(0, 120)
    page.page.go_back()
    page.wait_begun(200)
    page.wait_ended()
    check_whole(page, server)


def test_an_answer_of_another_chat_comes_to_its_end_too(page: WebPage, server: LiveServer) -> None:
    page.send(STORY)
    page.wait_begun(10)
    page.page.get_by_role("button", name="New chat").click()
    page.page.reload()
    expect(page.page.get_by_label("is being answered")).to_be_visible()
    expect(page.page.get_by_label("is being answered")).to_have_count(0, timeout=120_000)
    expect(page.messages).to_have_count(0)
    page.page.locator(".chat-name").first.click()
    page.wait_begun(200)
    check_whole(page, server)


def test_stop_ends_it_at_the_server_before_and_after_a_reload(page: WebPage, server: LiveServer) -> None:
    page.ask_for(**LONG, min_tokens=2)
    for reloads in (False, True):
        page.send(STORY)
        page.wait_begun(10)
        if reloads:
            page.page.reload()
            expect(page.answer).to_have_attribute("aria-busy", "true")
        page.page.keyboard.press("Escape")
        page.wait_ended()
        assert server.wait_running(0, 20)
        expect(page.answer.get_by_text("Stopped.")).to_be_visible()
        page.wait_kept()
        page.page.reload()
        expect(page.answer.get_by_text("Stopped.")).to_be_visible()
        assert server.n_running() == 0
        page.page.get_by_role("button", name="New chat").click()


def test_without_a_network_it_waits_and_goes_on(browser: Browser, server: LiveServer) -> None:
    with wired(server.url) as wire, web_page.opened(browser, wire.url) as page:
        page.ask_for(**LONG | {"max_tokens": 300})
        page.send(STORY)
        page.wait_begun()
        for _ in range(2):
            page.wait_begun(len(page.texts()[-1]) + 10)
            wire.cut()
            expect(page.page.get_by_text("The server does not answer.")).to_be_visible()
            expect(page.answer).to_have_attribute("aria-busy", "true")
            wire.mend()
            expect(page.page.get_by_text("The server does not answer.")).to_have_count(0)
        check_whole(page, server, 300)


def test_what_the_server_has_no_more_is_said_and_can_be_asked_for_again(page: WebPage, server: LiveServer) -> None:
    page.send(STORY)
    page.wait_begun(10)
    wait_kept_stream(page)
    page.page.goto("about:blank")
    for stream in streams_of(server):
        httpx.delete(f"{server.url}/v1/streams/{stream['id']}", trust_env=False, timeout=60)
    page.page.go_back()
    failed = page.answer.get_by_role("alert")
    expect(failed).to_contain_text("The rest of this answer is lost: the server has it no more.")
    page.press("Try again")
    page.wait_begun(10)
    page.page.keyboard.press("Escape")
    page.wait_ended()


@contextmanager
def all_slots_busy(server: LiveServer) -> Iterator[None]:
    """Others who keep the server busy until the end of the block."""
    url, body = f"{server.url}/v1/completions", {"prompt": "a", "max_tokens": 3000, "ignore_eos": True, "stream": True}
    ends = threading.Event()

    def ask() -> None:
        with httpx.Client(trust_env=False, timeout=60) as client, client.stream("POST", url, json=body) as response:
            for _ in response.iter_raw():
                if ends.is_set():
                    return

    others = [threading.Thread(target=ask) for _ in range(2)]
    for other in others:
        other.start()
    try:
        assert server.wait_running(2, 20)
        yield
    finally:
        ends.set()
        for other in others:
            other.join(20)


def test_a_reload_while_it_waits_for_its_turn_keeps_the_place(page: WebPage, server: LiveServer) -> None:
    with all_slots_busy(server):
        page.send("Say hello.")
        expect(page.answer.get_by_text("Next in the queue")).to_be_visible()
        wait_kept_stream(page)
        page.page.reload()
        expect(page.answer.get_by_text("Next in the queue")).to_be_visible()
        queue = httpx.get(f"{server.url}/v1/queue", trust_env=False, timeout=60).json()
        assert (queue["running"], queue["waiting"]) == (2, 1)
    page.wait_begun(200)
    page.wait_ended()
    check_whole(page, server)
