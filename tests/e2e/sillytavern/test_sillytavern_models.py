"""A person who switches the model in SillyTavern's panel: the next answer is the other model's."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from ggufd.models import hub
from tests.support.fakes.api_server import wait_until
from tests.support.programs import sillytavern_app, sillytavern_page
from tests.support.programs.live_server import LiveServer, live_server
from tests.support.programs.sillytavern_page import API_PANEL, PAGE_S, TavernPage

pytestmark = [pytest.mark.long, pytest.mark.sillytavern, pytest.mark.timeout(900)]

FIELDS = {"ollama": "#ollama_model", "custom": "#model_custom_select", "llamacpp": "#llamacpp_model"}
SINCE = {"llamacpp": "1.18.0"}
CASES = [
    (version, kind)
    for version in reversed(sillytavern_app.VERSIONS)
    for kind in FIELDS
    if SINCE.get(kind, "") <= version
]
SETTINGS = sillytavern_page.SETTINGS | {
    "amount_gen": 12,
    "max_context": 1536,
    "oai_settings": sillytavern_page.SETTINGS["oai_settings"] | {"openai_max_tokens": 12},
}
_GENERATED = re.compile(r" out .*/(?:completions|completion|chat|generate) +(\S+) ")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Two models: the demo model twice, under two names."""
    folder: Path = tmp_path_factory.mktemp("models")
    for name in ("first", "second"):
        shutil.copy(hub.find("").path, folder / f"{name}.gguf")
    flags = ("--ctx-size", "2048", "--parallel", "1", "--threads", "1")
    with live_server("--models-dir", str(folder), "--swap-after-s", "1", *flags) as started:
        yield started


@pytest.fixture(scope="module")
def open_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], TavernPage]]:
    with contextlib.ExitStack() as stack:
        yield sillytavern_page.opener(stack, tmp_path_factory, SETTINGS)


@pytest.fixture
def page(request: pytest.FixtureRequest, open_page: Callable[[str], TavernPage]) -> TavernPage:
    return open_page(request.param)


def answered_by(server: LiveServer) -> list[str]:
    """The models of all answers so far, as the log names them."""
    return [found[1] for line in tuple(server.log) if (found := _GENERATED.search(line))]


def answered_since(server: LiveServer, n_before: int) -> list[str]:
    """Those of the answers after the first; a line of the log is read a moment after the page has its answer."""
    wait_until(lambda: len(answered_by(server)) > n_before)
    return answered_by(server)[n_before:]


def choose(page: TavernPage, kind: str, name: str) -> None:
    """Choose a model in the panel, which connects again."""
    page.open_panel(*API_PANEL)
    field = page.page.locator(FIELDS[kind])
    expect(field.locator(f"option[value='{name}']").first).to_be_attached(timeout=PAGE_S * 1000)
    with page.page.expect_response(lambda reply: reply.url.endswith("/status")):
        # The list lies under one of its own making, which a person sees.
        field.evaluate(
            "(field, value) => { field.value = value; window.jQuery(field).trigger('change'); }",
            name,
        )
        if kind == "custom":
            page.page.click("#api_button_openai")
    block = "#openai_api" if kind == "custom" else "#textgenerationwebui_api"
    page.page.locator(f"{block} .online_status_indicator.success").wait_for()


@pytest.mark.parametrize(("page", "kind"), CASES, indirect=["page"])
def test_the_model_that_is_chosen_in_the_panel_answers(page: TavernPage, kind: str, server: LiveServer) -> None:
    page.connect(kind, f"{server.url}/v1" if kind == "custom" else server.url)
    for name in ("second", "first"):
        choose(page, kind, name)
        page.open_chat()
        n_before = len(answered_by(server))
        page.say(f"Good evening from the {name} one.")
        assert set(answered_since(server, n_before)) == {name}
    assert not page.complaints()
