"""A person in front of the chat page, with the real server behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from tests.support.programs import web_page
from tests.support.programs.live_server import LiveServer, live_server
from tests.support.programs.web_page import WebPage

pytestmark = pytest.mark.timeout(300)

STORY = "Tell me everything that you know about ships, one by one."

_TURN_BACK_AND_ON = """
() => new Promise((resolve) => {
  const said = () => Array.from(document.querySelectorAll("article.assistant .markdown")).at(-1)?.textContent;
  const before = said();
  new MutationObserver((_, watch) => {
    if (said() === before) return;
    watch.disconnect();
    document.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
    resolve();
  }).observe(document.querySelector("main"), { subtree: true, childList: true, characterData: true });
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
})
"""
"""A key as soon as another version is shown, before the browser has painted it."""


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server("--ctx-size", "8192", "--parallel", "4", "--n-predict", "24") as started:
        yield started


@pytest.fixture
def page(browser: Browser, server: LiveServer) -> Iterator[WebPage]:
    with web_page.opened(browser, server.url) as opened:
        yield opened


def test_a_stranger_sees_the_model_and_writes_at_once(page: WebPage) -> None:
    expect(page.page.get_by_role("heading", name="Chat with SmolLM2-135M-Instruct.Q4_1")).to_be_visible()
    expect(page.field).to_be_focused()
    page.page.keyboard.type("Say hello.")
    page.page.keyboard.press("Enter")
    page.wait_begun()
    page.wait_ended()
    own, answer = page.texts()
    assert own == "Say hello."
    assert len(answer) > 1


def test_an_answer_streams_and_stops(page: WebPage, server: LiveServer) -> None:
    page.ask_for(max_tokens=1500, ignore_eos=True)
    page.send(STORY)
    page.wait_begun(10)
    begun = page.texts()[-1]
    expect(page.answer).to_have_attribute("aria-busy", "true")
    page.page.keyboard.press("Escape")
    page.wait_ended()
    assert server.wait_running(0, 20)
    stopped = page.texts()[-1]
    assert stopped.startswith(begun[:10])
    expect(page.answer.get_by_text("Stopped.")).to_be_visible()

    page.press("Continue")
    page.page.wait_for_function(
        "n => document.querySelector('article.assistant .markdown').textContent.length > n", arg=len(stopped) + 10
    )
    page.page.get_by_role("button", name="Stop (Esc)").click()
    page.wait_ended()
    said = page.texts()
    assert said[-1].startswith(stopped[:40])
    assert len(said) == 2


def test_what_stands_under_a_stopped_answer_is_scrolled_to(browser: Browser, server: LiveServer) -> None:
    with web_page.opened(browser, server.url, viewport={"width": 1280, "height": 360}) as page:
        page.ask_for(max_tokens=1500, ignore_eos=True)
        page.send(STORY)
        page.wait_begun(900)
        page.page.keyboard.press("Escape")
        page.wait_ended()
        expect(page.answer.get_by_role("button", name="Tokens")).to_be_visible()
        below = "one => one.scrollHeight - one.scrollTop - one.clientHeight"
        assert page.page.locator(".scroll").evaluate(below) < 2


def test_versions_of_an_answer_are_kept_and_turned_with_arrows(page: WebPage) -> None:
    first = page.answered("Name an animal and what it eats.")
    page.press("Regenerate")
    page.wait_begun()
    page.wait_ended()
    second = page.texts()[-1]
    expect(page.answer.get_by_label("Version 2 of 2")).to_be_visible()
    page.press("Version before")
    page.wait_last(first)
    page.page.keyboard.press("ArrowRight")
    page.wait_last(second)
    page.page.evaluate(_TURN_BACK_AND_ON)
    page.wait_last(second)
    page.press("Another version")
    page.wait_begun()
    page.wait_ended()
    expect(page.answer.get_by_label("Version 3 of 3")).to_be_visible()


def test_an_edited_message_is_a_branch_and_both_stay(page: WebPage) -> None:
    first = page.answered("Name an animal.")
    page.answered("And another.")
    before = page.texts()
    page.messages.first.hover()
    page.messages.first.get_by_role("button", name="Edit").click()
    page.page.get_by_label("Text of the message").fill("Name a plant.")
    page.press("Send")
    page.wait_begun()
    page.wait_ended()
    assert page.texts()[0] == "Name a plant."
    expect(page.messages).to_have_count(2)
    page.messages.first.get_by_role("button", name="Version before").click()
    page.wait_texts(before)
    assert before[1] == first


def test_an_answer_can_be_reworded_and_gone_on_with(page: WebPage) -> None:
    page.answered("Name an animal.")
    page.press("Edit")
    page.page.get_by_label("Text of the message").fill("A fox.")
    page.press("Save")
    page.wait_last("A fox.")
    page.press("Edit")
    page.page.get_by_label("Text of the message").fill("The badger lives in")
    page.press("Go on from here")
    page.wait_begun(len("The badger lives in a"))
    page.wait_ended()
    assert page.texts()[-1].startswith("The badger lives in ")
    page.press("Version before")
    page.wait_last("A fox.")


def test_arrow_up_edits_the_last_own_message(page: WebPage) -> None:
    page.answered("Say hello.")
    page.field.press("ArrowUp")
    field = page.page.get_by_label("Text of the message")
    expect(field).to_be_focused()
    expect(field).to_have_value("Say hello.")
    field.press("Escape")
    expect(field).to_have_count(0)
    expect(page.page.locator(".bubble")).to_have_text("Say hello.")


def test_shift_enter_is_a_new_line(page: WebPage) -> None:
    page.field.fill("a")
    page.field.press("Shift+Enter")
    page.field.press("b")
    expect(page.field).to_have_value("a\nb")
    expect(page.messages).to_have_count(0)


def test_chats_are_kept_listed_and_searched(page: WebPage) -> None:
    page.answered("Tell me about whales.")
    page.page.get_by_role("button", name="New chat").click()
    page.answered("Tell me about bridges.")
    shown = page.texts()
    page.wait_kept()
    page.page.reload()
    page.wait_texts(shown)

    chats = page.page.locator(".chat-name")
    expect(chats).to_have_text(["Tell me about bridges.", "Tell me about whales."])
    page.page.get_by_placeholder("Search").fill("WHALES")
    expect(chats).to_have_count(1)
    chats.first.click()
    expect(page.page.locator(".bubble").first).to_have_text("Tell me about whales.")
    page.page.go_back()
    expect(page.page.locator(".bubble").first).to_have_text("Tell me about bridges.")


def test_a_chat_is_exported_deleted_and_imported(page: WebPage) -> None:
    page.answered("Tell me about whales.")
    page.press("Regenerate")
    page.wait_begun()
    page.wait_ended()
    shown = page.texts()
    page.page.get_by_role("button", name="More on").click()
    with page.page.expect_download() as download:
        page.page.get_by_role("menuitem", name="Export").click()
    path = download.value.path()
    file = json.loads(path.read_text("utf-8"))
    assert [one["role"] for one in file["messages"]] == ["user", "assistant"]
    assert file["messages"][0]["content"] == "Tell me about whales."

    page.page.get_by_role("button", name="More on").click()
    page.page.get_by_role("menuitem", name="Delete").click()
    page.page.get_by_role("button", name="Delete").click()
    expect(page.page.locator(".chat-name")).to_have_count(0)
    expect(page.messages).to_have_count(0)

    page.page.get_by_role("button", name="Import and export").click()
    with page.page.expect_file_chooser() as chooser:
        page.page.get_by_role("menuitem", name="Import").click()
    chooser.value.set_files(path)
    page.wait_texts(shown)
    expect(page.answer.get_by_label("Version 2 of 2")).to_be_visible()


def test_another_tab_shows_what_this_one_keeps(page: WebPage) -> None:
    page.answered("Name an animal.")
    page.wait_kept()
    other = WebPage(page.page.context.new_page(), page.url)
    other.page.goto(page.page.url)
    expect(other.messages).to_have_count(2)
    page.answered("And another.")
    expect(other.messages).to_have_count(4)
    other.page.get_by_role("button", name="New chat").click()
    other.answered("Say hello.")
    expect(page.page.locator(".chat-name")).to_have_count(2)
    expect(page.messages).to_have_count(4)
    other.check()


def test_the_system_prompt_is_sent(page: WebPage) -> None:
    page.page.get_by_text("System prompt").click()
    page.page.get_by_role("textbox", name="System prompt").fill("You are a pirate.")
    with page.page.expect_request("**/v1/chat/completions") as sent:
        page.send("Who are you?")
    body = sent.value.post_data_json
    assert body["messages"][0] == {"role": "system", "content": "You are a pirate."}
    assert body["stream"] is True
    page.wait_begun()
    page.page.keyboard.press("Escape")
    page.wait_ended()


def test_a_refusal_is_said_in_the_servers_words_and_can_be_tried_again(page: WebPage) -> None:
    page.send("word " * 5000)
    failed = page.answer.get_by_role("alert")
    expect(failed).to_contain_text("tokens")
    expect(failed.get_by_role("button", name="Try again")).to_be_visible()
    assert page.faults == []


def test_the_page_asks_for_a_key_once_and_says_when_it_is_wrong(browser: Browser) -> None:
    with (
        live_server("--ctx-size", "2048", "--n-predict", "40", "--api-key", "right") as server,
        web_page.opened(browser, server.url) as page,
    ):
        dialog = page.page.get_by_role("dialog", name="This server asks for a key")
        field = dialog.get_by_label("API key")
        expect(field).to_be_focused()
        field.press("Escape")
        page.page.wait_for_timeout(6000)
        expect(dialog).to_have_count(0)
        page.send("Say hello.")
        expect(field).to_be_focused()
        field.fill("wrong")
        field.press("Enter")
        expect(dialog.get_by_role("alert")).to_have_text("The server does not know that key.")
        field.fill("right")
        field.press("Enter")
        expect(dialog).to_have_count(0)
        page.wait_begun()
        page.wait_ended()
        expect(page.page.locator(".brand")).to_contain_text("SmolLM2")
        page.page.reload()
        assert page.answered("Say hello again.")
        assert "right" not in page.page.url
        assert page.page.evaluate("JSON.stringify(localStorage) + document.cookie").count("right") == 0
