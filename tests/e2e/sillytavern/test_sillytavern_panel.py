"""What a person sets and asks for on SillyTavern's page, seen at the other end: sliders, and generations in between.

Its page composes every request here; what the server took from it is read from the settings that the answer repeats,
and from the server's log.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from tests.support.contract import bared
from tests.support.limits import ANSWER_S
from tests.support.programs import sillytavern_app, sillytavern_page
from tests.support.programs.live_server import LiveServer, live_server
from tests.support.programs.sillytavern_page import TavernPage

pytestmark = [pytest.mark.long, pytest.mark.sillytavern, pytest.mark.timeout(900)]

SETTINGS = sillytavern_page.SETTINGS | {
    "amount_gen": 24,
    "max_context": 1536,
    "oai_settings": sillytavern_page.SETTINGS["oai_settings"] | {"openai_max_tokens": 24},
    "extension_settings": {"memory": {"source": "main", "position": -1}},
}
"""Short answers; and a summary is made, but not put into the prompt, which would then be another one."""

Value = float | str | bool

SLIDERS: dict[str, tuple[Value, Any]] = {
    "temp": (0.85, 0.85),
    "top_k": (33, 33),
    "top_p": (0.81, 0.81),
    "typical_p": (0.92, 0.92),
    "min_p": (0.03, 0.03),
    "rep_pen": (1.15, 1.15),
    "rep_pen_range": (320, 320),
    "freq_pen": (0.12, 0.12),
    "presence_pen": (0.14, 0.14),
    "dry_multiplier": (0.8, 0.8),
    "dry_base": (1.6, 1.6),
    "dry_allowed_length": (4, 4),
    "dry_penalty_last_n": (256, 256),
    "dry_sequence_breakers": ('["\\n", "#"]', ["\n", "#"]),
    "xtc_probability": (0.05, 0.05),
    "xtc_threshold": (0.2, 0.2),
    "mirostat_tau": (4.5, 4.5),
    "mirostat_eta": (0.2, 0.2),
    "ban_eos_token": (True, True),
    "seed": (4711, 4711),
}
"""What is set in a field of the panel, and what the server must have taken; the fields' own names."""

NEWER: dict[str, tuple[Value, Any]] = {
    "nsigma": (1.7, 1.7),
    "min_keep": (3, 3),
    "adaptive_target": (0.4, 0.4),
    "adaptive_decay": (0.7, 0.7),
}
"""Those that came after 1.12.6."""

NAMES = {
    "temp": "temperature",
    "rep_pen": "repeat_penalty",
    "rep_pen_range": "repeat_last_n",
    "freq_pen": "frequency_penalty",
    "presence_pen": "presence_penalty",
    "nsigma": "top_n_sigma",
    "ban_eos_token": "ignore_eos",
}
"""Ours, where they differ."""


class Written(NamedTuple):
    """What the server's log says of a generation, in tokens."""

    prompt: int
    cached: int
    completion: int


_LINE = re.compile(r"([\d,]+) in +([\d,]+) cached +([\d,]+) out .*/(?:completion|chat/completions) ")


def written(server: LiveServer) -> list[Written]:
    """All generations so far."""
    found = [_LINE.search(line) for line in tuple(server.log)]
    return [Written(*(int(number.replace(",", "")) for number in one.groups())) for one in found if one]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    """One slot: whatever else is asked for takes it from the chat."""
    with live_server("--ctx-size", "2048", "--parallel", "1", "--threads", "1") as started:
        yield started


@pytest.fixture(scope="module")
def open_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], TavernPage]]:
    with contextlib.ExitStack() as stack:
        yield sillytavern_page.opener(stack, tmp_path_factory, SETTINGS)


@pytest.fixture
def page(request: pytest.FixtureRequest, open_page: Callable[[str], TavernPage]) -> TavernPage:
    return open_page(request.param)


def address(kind: str, server: LiveServer) -> str:
    return f"{server.url}/v1" if kind == "custom" else server.url


def written_by(server: LiveServer, act: Callable[[], None]) -> Written:
    """What the server says of the generation that this makes the page ask for."""
    n_before = len(written(server))
    act()
    deadline = time.monotonic() + sillytavern_page.PAGE_S
    while len(written(server)) == n_before:
        assert time.monotonic() < deadline, "nothing was generated"
        time.sleep(0.05)
    return written(server)[-1]


KINDS = ("llamacpp", "koboldcpp", "ooba", "tabby", "vllm", "aphrodite", "ollama")
PLAIN = [(version, kind) for version in sillytavern_app.VERSIONS for kind in KINDS]


# The page may take a second click, on the plane that sends, for one on the square that stops: no text at all then.
@pytest.mark.timed
@pytest.mark.parametrize(("page", "kind"), PLAIN, indirect=["page"])
def test_a_user_who_has_set_nothing_gets_free_text(page: TavernPage, kind: str, server: LiveServer) -> None:
    page.connect(kind, server.url)
    page.open_chat()
    page.set_sampler("temp", 0)
    erase(server)
    with page.page.expect_response(lambda reply: reply.url.endswith("/text-completions/generate")) as caught:
        page.say("Tell me a long story about the sea.")
    erase(server)
    sent = json.loads(caught.value.request.post_data or "")
    text = "".join(_text_of(event) for event in _events(caught.value.text()))
    native = kind in ("llamacpp", "ollama")
    path = "/completion" if native else "/v1/completions"
    bare = bared(sent) | {"stream": False}
    answer = httpx.post(server.url + path, json=bare, timeout=60, trust_env=False).json()
    assert text == (answer["content"] if native else answer["choices"][0]["text"])
    assert len(text.split()) > 3
    assert not text.lstrip().startswith(("{", "["))


def erase(server: LiveServer) -> None:
    """Have the next prompt read as a whole: in other pieces its logits would differ in their last digits."""
    httpx.post(f"{server.url}/slots/0?action=erase", trust_env=False, timeout=ANSWER_S).raise_for_status()


def _text_of(event: dict[str, Any]) -> str:
    return str(event["choices"][0]["text"] if "choices" in event else event["content"])


CHATS = [(version, kind) for version in sillytavern_app.VERSIONS for kind in ("llamacpp", "custom")]


@pytest.mark.parametrize(("page", "kind"), CHATS, indirect=["page"])
def test_quiet_generations_leave_the_chat_in_the_cache(page: TavernPage, kind: str, server: LiveServer) -> None:
    page.connect(kind, address(kind, server))
    page.open_chat()
    chat = written_by(server, lambda: page.say("Tell me about the sea."))
    for command, is_of_the_chat in (
        ("/genraw Describe a lighthouse in one sentence.", False),
        ("/gen Describe the scene in a few words.", True),
        ("/summarize", True),
    ):
        quiet = written_by(server, functools.partial(page.run, command))
        assert quiet.completion > 0
        assert (quiet.cached >= chat.prompt) == is_of_the_chat, command
        turn = written_by(server, lambda: page.say("And then?"))
        # The page may change the last answer, from its first blank on.
        assert turn.cached >= chat.prompt - 8, command
        chat = turn
    assert not page.complaints()


@pytest.mark.parametrize("page", sillytavern_app.VERSIONS, indirect=True)
def test_every_slider_reaches_the_server(page: TavernPage, server: LiveServer) -> None:
    page.connect("llamacpp", server.url)
    page.open_chat()
    wanted = SLIDERS | (NEWER if page.derives_context_size else {})
    for name, (value, _) in wanted.items():
        page.set_sampler(name, value)
    taken = _settings_of(page, "Good evening.")
    # It sends each number as it shows it, a few decimals after the point.
    assert {name: taken[NAMES.get(name, name)] for name in wanted} == {
        name: pytest.approx(expected) if isinstance(expected, float) else expected
        for name, (_, expected) in wanted.items()
    }


def _settings_of(page: TavernPage, said: str) -> dict[str, Any]:
    """What the last event of an answer says that it was made with."""
    with page.page.expect_response(lambda reply: reply.url.endswith("/text-completions/generate")) as caught:
        page.say(said)
    settings: dict[str, Any] = _events(caught.value.text())[-1]["generation_settings"]
    return settings


def _events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]
