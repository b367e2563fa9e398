"""A person at the page's panels, with the real server: settings, presets, formats, tools, programs, tokens."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.models.lora_files import write_loras
from tests.support.programs.axe import violations
from tests.support.programs.live_server import LiveServer, live_server
from tests.support.programs.sillytavern_app import or_skip
from tests.support.programs.web_page import WebPage, watched

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

KEY = "sk-of-the-test"
SHOWN = "#fault-{}"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Oslo"]}}, "required": ["city"]},
    },
}


class Panels(WebPage):
    """The chat page with its panels as a person uses them. `bodies` are the requests that it sent."""

    def __init__(self, page: Page, url: str) -> None:
        super().__init__(page, url)
        self.bodies: list[dict[str, Any]] = []
        page.on("request", lambda request: self._sent(request.url, request.post_data))

    def _sent(self, url: str, body: str | None) -> None:
        if url.endswith("/v1/chat/completions") and body:
            self.bodies.append(json.loads(body))

    def give_key(self, key: str) -> None:
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Use this key").click()
        expect(self.page.get_by_label("API key")).to_have_count(0)

    def open_settings(self) -> None:
        self.page.get_by_role("button", name="Settings", exact=True).click()
        self.page.locator(".settings-panel").wait_for()

    def open_group(self, title: str) -> None:
        self.page.locator("summary", has_text=title).click()

    def fill(self, label: str, text: str) -> None:
        self.page.get_by_label(label, exact=True).fill(text)

    def choose(self, label: str, option: str) -> None:
        self.page.get_by_label(label, exact=True).select_option(option)

    def ask(self, text: str) -> str:
        """Say something, and wait for the answer's end."""
        self.say(text)
        return self.whole_answer()

    def say(self, text: str) -> None:
        self.page.locator(".composer-field").fill(text)
        self.page.get_by_role("button", name="Send", exact=True).click()

    def whole_answer(self) -> str:
        """The last answer, once it has ended and is shown."""
        expect(self.answer).to_be_visible()
        self.wait_ended()
        return self.answer.locator(".markdown").inner_text()

    def again(self) -> str:
        self.page.get_by_role("button", name="Regenerate").last.click()
        return self.whole_answer()

    def program(self, language: str) -> str:
        """The last request as a program."""
        more = self.answer.locator(".facts-line")
        if more.get_attribute("aria-expanded") == "false":
            more.click()
        self.answer.get_by_role("button", name=f"as {language}").click()
        text = self.page.locator(".program code").inner_text()
        self.page.keyboard.press("Escape")
        expect(self.page.locator(".program")).to_have_count(0)
        return text


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    # A prompt that another slot has already computed rounds otherwise, and a text may fork.
    with live_server("--api-key", KEY, "--parallel", "1", "--ctx-size", "2048") as started:
        yield started


@contextlib.contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Panels]:
    with watched(Panels, browser, url, url, **options) as panels:
        yield panels


@pytest.fixture
def panels(browser: Browser, server: LiveServer) -> Iterator[Panels]:
    with opened(browser, server.url, viewport={"width": 1280, "height": 900}) as shown:
        shown.give_key(KEY)
        shown.open_settings()
        shown.fill("Longest answer", "24")
        yield shown


def test_the_servers_defaults_are_shown_and_not_sent(panels: Panels) -> None:
    expect(panels.page.get_by_label("Temperature", exact=True)).to_have_attribute("placeholder", "1")
    expect(panels.page.get_by_label("Seed", exact=True)).to_have_attribute("placeholder", "random")
    panels.fill("Top-k", "0")
    panels.ask("Hello.")
    assert panels.bodies[-1]["max_tokens"] == 24
    assert not {"temperature", "top_k", "seed", "samplers"} & panels.bodies[-1].keys()


def test_a_sampler_changes_the_request_and_the_answer(panels: Panels) -> None:
    panels.fill("Temperature", "0")
    panels.ask("Tell me about the moon.")
    greedy = [panels.again(), panels.again()]
    assert [body["temperature"] for body in panels.bodies] == [0, 0, 0]
    assert greedy[0] == greedy[1] != ""
    panels.fill("Temperature", "1.5")
    panels.fill("Seed", "1")
    drawn = panels.again()
    panels.fill("Seed", "2")
    assert len({greedy[0], drawn, panels.again()}) == 3
    assert [body.get("seed") for body in panels.bodies[-2:]] == [1, 2]


def test_the_order_of_samplers_is_changed_with_the_keyboard(panels: Panels) -> None:
    panels.open_group("More samplers")
    panels.page.get_by_role("button", name="top_k: earlier").focus()
    panels.page.keyboard.press("Enter")
    panels.page.get_by_label("xtc", exact=True).focus()
    panels.page.keyboard.press("Space")
    panels.ask("Hello.")
    order = panels.bodies[-1]["samplers"]
    assert order.index("top_k") < order.index("top_n_sigma")
    assert "xtc" not in order


def test_an_answer_under_a_schema_is_valid(panels: Panels) -> None:
    panels.fill("Longest answer", "80")
    panels.open_group("Format of the answer")
    panels.choose("The answer is", "schema")
    panels.page.get_by_role("button", name="Insert an example").click()
    found = json.loads(panels.ask("Describe a cat called Tom."))
    assert found.keys() == {"name", "age"}
    assert isinstance(found["age"], int)
    expect(panels.page.get_by_role("button", name="Regenerate")).to_be_visible()
    expect(panels.page.get_by_role("button", name="Continue")).to_have_count(0)


def test_refused_grammars_and_schemas_are_told_in_the_servers_words(panels: Panels) -> None:
    panels.open_group("Format of the answer")
    panels.choose("The answer is", "grammar")
    panels.fill("Grammar (GBNF)", "root ::= foo")
    words = "The GBNF grammar is wrong in line 1: the rule 'foo' is used but not defined"
    expect(panels.page.locator(SHOWN.format("grammar"))).to_have_text(words)
    panels.say("Hello.")
    expect(panels.page.locator("article.assistant [role=alert]")).to_contain_text(words)

    panels.choose("The answer is", "schema")
    panels.fill("JSON schema", '{"type": "array", "uniqueItems": true}')
    expect(panels.page.locator(SHOWN.format("schema"))).to_contain_text(
        "'#/uniqueItems': this keyword is not supported"
    )
    panels.fill("JSON schema", '{"type": ')
    expect(panels.page.locator(SHOWN.format("schema"))).to_contain_text("This is not JSON")
    panels.fill("JSON schema", '{"type": "array"}')
    expect(panels.page.locator(SHOWN.format("schema"))).to_have_text("")


def test_a_value_out_of_range_is_told_in_the_servers_words(panels: Panels) -> None:
    panels.fill("Temperature", "-1")
    panels.fill("Top-p", "2")
    expect(panels.page.locator(SHOWN.format("top_p"))).to_have_text("'top_p': expected at most 1, got 2.")
    expect(panels.page.locator(SHOWN.format("temperature"))).to_have_text("'temperature': expected at least 0, got -1.")
    expect(panels.page.get_by_label("Temperature", exact=True)).to_have_attribute("aria-invalid", "true")


def test_a_call_of_a_tool_is_shown(panels: Panels) -> None:
    panels.open_group("Tools")
    panels.fill("Tools, as JSON", json.dumps([TOOL]))
    panels.choose("Which is called", "name:get_weather")
    panels.fill("Longest answer", "80")
    panels.ask("Is it warm in Paris?")
    call = panels.page.locator("article.assistant .call")
    expect(call).to_contain_text("get_weather")
    assert json.loads(call.locator("code").inner_text())["city"] in ("Paris", "Oslo")


def test_what_came_of_a_call_is_said_and_answered(panels: Panels) -> None:
    panels.open_group("Tools")
    panels.fill("Tools, as JSON", json.dumps([TOOL]))
    panels.choose("Which is called", "name:get_weather")
    panels.fill("Longest answer", "80")
    panels.ask("Is it warm in Paris?")
    panels.choose("Which is called", "none")
    panels.fill("Result of get_weather", '{"degrees": 31}')
    panels.page.get_by_role("button", name="Send the result").click()
    panels.wait_begun()
    assert panels.whole_answer() != ""
    asked, called, result = panels.bodies[-1]["messages"]
    assert asked["role"] == "user"
    assert called["tool_calls"][0]["id"] == result["tool_call_id"]
    assert (result["role"], result["content"]) == ("tool", '{"degrees": 31}')


def test_banned_strings_and_other_fields_are_sent(panels: Panels) -> None:
    panels.fill("Temperature", "0")
    said = panels.ask("Tell me about the moon.")
    word = re.findall(r"\w{4,}", said)[0]
    panels.page.locator("summary", has_text="Banned strings").click()
    panels.fill("Banned strings", word)
    panels.open_group("Other fields")
    panels.fill("Other fields of a request, as JSON", '{"top_a": 0.2, "priority": 1}')
    assert word.lower() not in panels.again().lower()
    assert panels.bodies[-1]["banned_strings"] == [word]
    assert panels.bodies[-1]["priority"] == 1
    panels.page.locator("article.assistant .facts-line").last.click()
    expect(panels.page.locator("article.assistant .facts").last).to_contain_text("Not done heretop_a")


def test_a_preset_survives_a_reload(panels: Panels) -> None:
    panels.fill("Temperature", "0.3")
    panels.page.get_by_role("button", name="Save", exact=True).click()
    panels.fill("Name of the preset", "calm")
    panels.page.keyboard.press("Enter")
    panels.page.reload()
    panels.open_settings()
    chosen = panels.page.get_by_label("Preset", exact=True)
    expect(chosen).to_have_value("=calm")
    panels.choose("Preset", "default")
    expect(panels.page.get_by_label("Temperature", exact=True)).to_have_value("")
    panels.fill("Top-k", "7")
    panels.choose("Preset", "=calm")
    panels.choose("Preset", "own")
    expect(panels.page.get_by_label("Top-k", exact=True)).to_have_value("7")
    panels.choose("Preset", "=calm")
    expect(panels.page.get_by_label("Temperature", exact=True)).to_have_value("0.3")
    panels.ask("Hello.")
    assert panels.bodies[-1]["temperature"] == 0.3
    panels.page.get_by_role("button", name="Delete the preset calm").click()
    expect(chosen).to_have_value("own")


def test_what_an_answer_took_and_what_the_cache_did_is_told(panels: Panels) -> None:
    panels.fill("Temperature", "0")
    panels.ask("Tell me about the moon.")
    panels.again()
    facts = panels.page.locator("article.assistant .facts").last
    expect(facts).to_contain_text(re.compile(r"24 tokens\s*[\d.]+ tokens/s\s*first token after [\d.]+ m?s"))
    expect(facts).to_contain_text(re.compile(r"\d+ of \d+ prompt tokens cached"))
    facts.locator(".facts-line").click()
    expect(facts).to_contain_text("came from the cache (still in their slot); the last one is always computed")
    expect(facts).to_contain_text("Endedat the limit")


def test_the_request_as_curl_and_as_python_gives_the_same_text(panels: Panels) -> None:
    panels.fill("Temperature", "0")
    panels.fill("Longest answer", "12")
    panels.open_group("Other fields")
    panels.fill("Other fields of a request, as JSON", '{"min_keep": 1}')
    panels.ask("Say 'it's $HOME' and `id`, \\n \"now\". 😀")
    said = panels.again()
    environment = {**os.environ, "GGUFD_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}
    curl, python = panels.program("curl"), panels.program("Python")
    assert KEY not in curl + python
    done = subprocess.run(["sh", "-c", curl], env=environment, capture_output=True, text=True, check=True)
    assert _plain(json.loads(done.stdout)["choices"][0]["message"]["content"]) == _plain(said)
    done = subprocess.run(
        [sys.executable, "-"], input=python, env=environment, capture_output=True, text=True, check=True
    )
    assert _plain(done.stdout) == _plain(said)


def _plain(text: str) -> str:
    """Text without what Markdown and its rendering change."""
    return re.sub(r"\W+", " ", text).strip()


def test_the_tokens_of_an_answer_without_probabilities_are_asked_for_from_then_on(panels: Panels) -> None:
    panels.ask("Tell me about the moon.")
    assert "logprobs" not in panels.bodies[-1]
    panels.page.get_by_role("button", name="Tokens", exact=True).click()
    panels.page.get_by_role("button", name="Ask for them from now on").click()
    panels.page.get_by_role("button", name="Regenerate").click()
    expect(panels.page.locator(".token").first).to_be_visible()
    assert panels.bodies[-1]["top_logprobs"] == 5


def test_a_part_of_the_page_that_cannot_be_loaded_says_so(browser: Browser, server: LiveServer) -> None:
    with opened(browser, server.url) as panels:
        panels.give_key(KEY)
        panels.page.route("**/settings/panel.js", lambda route: route.abort())
        panels.page.get_by_role("button", name="Settings", exact=True).click()
        expect(panels.page.get_by_role("alert")).to_have_text(
            "This part of the page could not be loaded. Reload the page."
        )


def test_an_answer_goes_on_from_an_alternative(panels: Panels) -> None:
    panels.fill("Temperature", "0")
    panels.open_group("Token probabilities")
    panels.choose("With every answer", "true")
    panels.fill("Alternatives", "3")
    panels.ask("Tell me about the moon.")
    assert panels.bodies[-1]["top_logprobs"] == 3
    panels.page.get_by_role("button", name="Tokens", exact=True).click()
    tokens = panels.page.locator(".token")
    expect(tokens).to_have_count(24)

    tokens.first.focus()
    panels.page.keyboard.press("ArrowRight")
    panels.page.keyboard.press("ArrowRight")
    expect(panels.page.locator(".alternatives button")).to_have_count(3)
    panels.page.keyboard.press("ArrowDown")
    panels.page.keyboard.press("ArrowDown")
    expect(panels.page.locator(".alternatives button").nth(1)).to_be_focused()
    chosen = panels.page.locator(".alternatives button:focus .alternative").inner_text()
    panels.page.keyboard.press("Escape")
    expect(tokens.nth(2)).to_be_focused()
    panels.page.keyboard.press("ArrowDown")
    panels.page.keyboard.press("ArrowDown")
    panels.page.keyboard.press("Enter")
    expect(panels.page.get_by_label("Version 2 of 2")).to_be_visible()
    panels.wait_ended()
    kept, last = panels.bodies[-1]["messages"], panels.bodies[-2]["messages"]
    assert kept[:-1] == last
    assert kept[-1]["role"] == "assistant"
    assert kept[-1]["content"].endswith(chosen.replace("␣", " "))
    expect(tokens.nth(2)).to_have_text(chosen.replace("␣", " "))
    assert 24 < tokens.count() <= 27
    panels.page.get_by_role("button", name="Tokens", exact=True).click()
    said = panels.answer.locator(".markdown").inner_text()
    assert _plain(said).startswith(_plain(kept[-1]["content"]))
    assert len(said) > len(kept[-1]["content"])


def test_a_character_of_several_tokens_is_shown_whole(panels: Panels) -> None:
    panels.open_group("Token probabilities")
    panels.choose("With every answer", "true")
    panels.open_group("Format of the answer")
    panels.choose("The answer is", "options")
    panels.fill("One of these texts", "🌊🌪")
    assert panels.ask("A wave, and a storm.") == "🌊🌪"
    panels.page.get_by_role("button", name="Tokens", exact=True).click()
    expect(panels.page.locator(".tokens-text")).to_have_text(re.compile("^·*🌊·*🌪$"))
    panels.page.locator(".token").nth(1).hover()
    expect(panels.page.locator(".alternatives")).to_contain_text("held to a format")


def test_the_adapters_of_the_server_have_scales(browser: Browser, tiny_model: Path) -> None:
    style, topic = write_loras(tiny_model)
    flags = (
        "-m",
        str(tiny_model),
        "-c",
        "512",
        "-t",
        "1",
        "-fa",
        "off",
        "--lora",
        style,
        "--lora-scaled",
        f"{topic}:0.5",
    )
    with live_server(*flags) as server, opened(browser, server.url) as panels:
        panels.open_settings()
        panels.fill("Longest answer", "4")
        panels.open_group("Adapters")
        fields = panels.page.locator("details", has_text="Adapters").locator("input")
        expect(fields).to_have_count(2)
        for place, scale in enumerate(["1", "0.5"]):
            expect(fields.nth(place)).to_have_attribute("placeholder", scale)
        fields.nth(1).fill("0")
        panels.ask("Hello.")
        assert panels.bodies[-1]["lora"] == [{"id": 0, "scale": 1}, {"id": 1, "scale": 0}]
        with panels.page.expect_response("**/lora-adapters"):
            panels.page.reload()
        panels.again()
        assert panels.bodies[-1]["lora"] == [{"id": 0, "scale": 1}, {"id": 1, "scale": 0}]
        panels.open_settings()
        panels.open_group("Adapters")
        fields.nth(1).fill("1000")
        expect(panels.page.locator(SHOWN.format("lora"))).to_contain_text("expected at most")


def test_the_panels_fit_a_phone(browser: Browser, server: LiveServer) -> None:
    with opened(browser, server.url, viewport={"width": 390, "height": 844}, has_touch=True) as panels:
        panels.give_key(KEY)
        panels.open_settings()
        panels.fill("Longest answer", "24")
        panels.fill("Temperature", "0")
        panels.open_group("Token probabilities")
        panels.choose("With every answer", "true")
        for group in panels.page.locator(".settings-panel details").all():
            if group.get_attribute("open") is None:
                group.locator("summary").click()
        wide = "() => [...document.querySelectorAll('.settings-panel *')].filter((one) => one.scrollWidth > 390).length"
        panels.wait_still()
        assert panels.page.evaluate(wide) == 0
        panels.page.get_by_role("button", name="Close settings").click()
        panels.ask("Tell me about the moon.")
        panels.page.get_by_role("button", name="Tokens", exact=True).tap()
        panels.page.locator(".token").nth(3).tap()
        panels.page.locator(".alternatives").wait_for()
        panels.wait_still()
        box = panels.page.locator(".alternatives").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert panels.page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_the_panels(browser: Browser, server: LiveServer, scheme: str) -> None:
    with opened(browser, server.url, viewport={"width": 1280, "height": 900}, color_scheme=scheme) as panels:
        panels.give_key(KEY)
        panels.open_settings()
        for group in panels.page.locator(".settings-panel details").all():
            group.locator("summary").click()
        panels.fill("Temperature", "-1")
        panels.choose("The answer is", "grammar")
        panels.fill("Grammar (GBNF)", "root ::= foo")
        expect(panels.page.locator(SHOWN.format("grammar"))).to_contain_text("not defined")
        with or_skip():
            assert violations(panels.page) == {}
        panels.choose("The answer is", "")
        panels.fill("Temperature", "0")
        panels.fill("Longest answer", "24")
        panels.choose("With every answer", "true")
        panels.ask("Tell me about the moon.")
        panels.page.locator(".facts-line").click()
        panels.page.get_by_role("button", name="Tokens", exact=True).click()
        panels.page.locator(".token").nth(2).hover()
        panels.page.locator(".alternatives").wait_for()
        assert violations(panels.page) == {}
        panels.page.keyboard.press("Escape")
        expect(panels.page.locator(".alternatives")).to_have_count(0)
        panels.page.get_by_role("button", name="as curl").click()
        panels.page.locator(".program").wait_for()
        assert violations(panels.page) == {}
