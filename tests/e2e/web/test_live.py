"""A person in front of the live view, with the real server behind it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from playwright.sync_api import Browser, expect

from ggufd.keys import file
from tests.support.fakes.api_server import wait_until
from tests.support.models.lora_files import write_loras
from tests.support.programs.live_server import LiveServer, live_server
from tests.support.programs.long_requests import long_requests, placed
from tests.support.programs.web_page import looking

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

PHONE = {"width": 390, "height": 844}
LONG_NAME = "a-service.with-a-very-long-name@research-department.example"
SECRET = "Xylophonists"


class Keys(NamedTuple):
    alice: str
    bob: str
    long: str
    root: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("live")


@pytest.fixture(scope="module")
def keys(folder: Path) -> Keys:
    path = folder / "keys.toml"
    return Keys(
        file.add(path, "alice", {"weight": 2.0}),
        file.add(path, "bob", {"max_waiting": 2}),
        file.add(path, LONG_NAME, {}),
        file.add(path, "root", {"role": "admin"}),
    )


@pytest.fixture(scope="module")
def server(folder: Path, keys: Keys) -> Iterator[LiveServer]:
    """One slot, so that the second request waits."""
    flags = ("--api-key-file", str(folder / "keys.toml"), "--slot-save-path", str(folder / "slots"))
    with live_server(*flags, "--ctx-size", "8192", "--parallel", "1") as started:
        yield started


def test_an_idle_server_says_so(browser: Browser, server: LiveServer, keys: Keys) -> None:
    with looking(browser, server.url, keys.root) as live:
        expect(live.tile("Server")).to_have_text("Idle")
        expect(live.part("Queue")).to_contain_text("Nobody is waiting.")
        expect(live.part("Slots")).to_contain_text("The slot is empty.")
        expect(live.page.locator("canvas")).to_have_count(4)
        live.part("The last ten minutes").get_by_text("As a table").first.click()
        expect(live.page.get_by_role("columnheader", name="written")).to_be_visible()


def test_a_key_is_asked_for_once_and_a_wrong_one_is_said(browser: Browser, server: LiveServer, keys: Keys) -> None:
    with looking(browser, server.url) as live:
        field = live.page.get_by_label("API key")
        field.fill("sk-wrong")
        live.press("Use this key")
        expect(live.dialog).to_contain_text("does not know that key")
        field.fill(keys.alice)
        live.press("Use this key")
        expect(live.tile("Server")).to_be_visible()
        expect(live.dialog).to_have_count(0)
        assert keys.alice not in live.page.url
        live.page.reload()
        expect(live.tile("Server")).to_be_visible()


def test_who_gives_no_key_is_told_and_may_try_again(browser: Browser, server: LiveServer) -> None:
    with looking(browser, server.url) as live:
        live.press("Close")
        expect(live.page.get_by_text("No API key was sent.")).to_be_visible()
        live.press("Try again")
        expect(live.page.get_by_label("API key")).to_be_visible()


def test_two_users_do_not_see_each_other(browser: Browser, server: LiveServer, keys: Keys) -> None:
    with (
        long_requests(server.url, keys.alice, keys.bob, prompt=SECRET),
        looking(browser, server.url, keys.alice) as alice,
        looking(browser, server.url, keys.bob) as bob,
        looking(browser, server.url, keys.root) as root,
    ):
        expect(alice.rows("Slots")).to_contain_text("writing")
        expect(bob.rows("Queue")).to_contain_text("bob")
        expect(root.rows("Slots")).to_contain_text("alice")
        expect(root.rows("Queue")).to_contain_text("bob")
        expect(alice.part("Queue")).to_contain_text("None of your requests is waiting.")
        expect(bob.part("Slots")).to_contain_text("Others: 1 slot busy")
        for page in (alice, bob, root):
            expect(page.tile("Waiting")).to_have_text("1")
        assert not re.search("bob|root", alice.text)
        assert not re.search("alice|root", bob.text)
        assert not any(SECRET in page.text for page in (alice, bob, root))
        expect(alice.part("Server")).to_have_count(0)
        expect(root.part("Server")).to_be_visible()


def test_a_waiting_request_is_seen_and_ended(browser: Browser, server: LiveServer, keys: Keys) -> None:
    with (
        long_requests(server.url, keys.alice, keys.bob) as (running, waiting),
        looking(browser, server.url, keys.bob) as bob,
        looking(browser, server.url, keys.root) as root,
    ):
        expect(bob.rows("Queue")).to_have_count(1)
        # What the page shows is up to a second old: a row of the test before may be there.
        name = f"End request {placed(server.url, keys.bob)[0]['id']}"
        end = bob.rows("Queue").get_by_role("button", name=name, exact=True)
        end.click()
        expect(bob.dialog).to_contain_text("End your request?")
        bob.dialog.get_by_role("button", name="Cancel").click()
        expect(bob.rows("Queue")).to_have_count(1)
        end.click()
        bob.press("End it")
        expect(bob.dialog).to_have_count(0)
        expect(bob.part("Queue")).to_contain_text("Nobody is waiting.")
        assert "ended with the key that sent it" in waiting.wait_ended()

        root.press("End the request in slot 0")
        expect(root.dialog).to_contain_text("End alice's request?")
        root.press("End it")
        assert "by who runs the server" in running.wait_ended()
        expect(root.rows("Last requests").first).to_contain_text("ended by hand")


def test_what_is_gone_already_is_said_where_it_was_asked(browser: Browser, server: LiveServer, keys: Keys) -> None:
    with looking(browser, server.url, keys.alice) as live:
        with long_requests(server.url, keys.alice):
            live.press("End the request in slot 0")
        expect(live.rows("Slots")).to_contain_text("keeps")
        live.press("End it")
        expect(live.part("Slots").get_by_role("alert")).to_contain_text("waits or runs")


def test_an_engine_that_is_lost_is_said_and_goes_by_itself(browser: Browser, server: LiveServer, keys: Keys) -> None:
    with looking(browser, server.url, keys.root) as live:
        expect(live.tile("Server")).to_have_text("Idle")
        # It may be back within the second that lies between two messages: then only the list has it.
        server.engine.kill()
        happened = live.page.get_by_role("list", name="What happened")
        expect(happened).to_contain_text("the engine ended unexpectedly and is started again")
        expect(happened).to_contain_text("the model is loaded")
        expect(live.tile("Server")).to_have_text("Idle")
        expect(live.page.get_by_text("The engine has stopped and is starting again.")).to_have_count(0)


def test_an_idle_slot_is_saved_and_erased(browser: Browser, server: LiveServer, keys: Keys, folder: Path) -> None:
    body = {"prompt": "A chat that is kept for later, and then forgotten.", "max_tokens": 8}
    httpx.post(
        f"{server.url}/v1/completions", json=body, headers={"x-api-key": keys.alice}, trust_env=False, timeout=60
    )
    with looking(browser, server.url, keys.root) as live:
        live.press("Actions on slot 0")
        live.page.get_by_role("menuitem", name="Save to a file…").click()
        live.dialog.get_by_label("Name of the file").fill("../elsewhere")
        live.press("Save")
        expect(live.dialog.get_by_role("alert")).to_contain_text("plain name")
        live.dialog.get_by_label("Name of the file").fill("kept.bin")
        live.press("Save")
        expect(live.dialog).to_contain_text("saved as kept.bin")
        assert (folder / "slots" / "kept.bin").stat().st_size > 0
        live.press("Close")

        live.press("Actions on slot 0")
        live.page.get_by_role("menuitem", name="Erase…").click()
        live.press("Erase")
        expect(live.part("Slots")).to_contain_text("The slot is empty.")


def test_drain_and_sleep_and_back(browser: Browser, server: LiveServer, keys: Keys) -> None:
    with looking(browser, server.url, keys.root) as live:
        live.press("Drain…")
        live.press("Drain")
        expect(live.tile("Server")).to_have_text("Draining")
        assert httpx.get(f"{server.url}/health", trust_env=False, timeout=60).json()["status"] == "draining"
        live.press("Take requests again")
        expect(live.tile("Server")).to_have_text("Idle")
        live.press("Sleep…")
        live.press("Sleep")
        expect(live.tile("Server")).to_have_text("Asleep")
        expect(live.part("Slots")).to_contain_text("The next request loads it again.")
        with long_requests(server.url, keys.alice):
            expect(live.tile("Server")).to_have_text("Serving")


def test_advice_on_ones_own_chats_is_shown(browser: Browser, server: LiveServer, keys: Keys) -> None:
    finding = {
        "class": "date",
        "position": 12,
        "turns": 3,
        "tokens_per_turn": 800,
        "seconds_per_turn": 2.5,
        "advice": "Put the date at the end of the system prompt.",
        "key": "alice",
        "own": True,
        "quote": {"before": "Monday", "now": "Tuesday<img src=x>"},
    }
    others = finding | {"own": False, "advice": "Not for alice.", "quote": None}
    with looking(browser, server.url, keys.alice, at=f"{server.url}/health") as live:
        said = json.dumps({"object": "list", "data": [finding, others]})
        live.page.route("**/v1/cache/advice", lambda route: route.fulfill(body=said, content_type="application/json"))
        live.page.goto(f"{server.url}/live")
        expect(live.part("Advice")).to_contain_text("Put the date at the end of the system prompt.")
        expect(live.part("Advice")).to_contain_text("Was Monday, became Tuesday<img src=x>.")
        expect(live.part("Advice")).not_to_contain_text("Not for alice")


def test_the_server_says_itself_what_spoils_a_cache(browser: Browser, server: LiveServer, keys: Keys) -> None:
    """The route's real answer is what the page reads."""
    rules = "Answer in one short sentence, and stay polite whatever is said. " * 12
    headers = {"authorization": f"Bearer {keys.alice}"}
    with httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=60) as client:
        history: list[dict[str, str]] = []
        for minute in range(4):
            history.append({"role": "user", "content": f"Question {minute}?"})
            system = {"role": "system", "content": f"It is 2026-11-29 10:0{minute}:00. {rules}"}
            body = {"messages": [system, *history], "max_tokens": 4}
            answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
            history.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"] or "."})
        # Prompts are compared after their answers; the page asks once and then not for a while.
        wait_until(lambda: _advice_on(client, "10:03") != [], timeout_s=60)
        advice = _advice_on(client, "10:03")
    with looking(browser, server.url, keys.alice) as live:
        expect(live.part("Advice")).to_contain_text(advice[0])
        expect(live.part("Advice")).to_contain_text("10:03")
    with looking(browser, server.url, keys.root) as live:
        expect(live.part("Slots")).to_be_visible()
        expect(live.page.locator("body")).not_to_contain_text("10:03")


def _advice_on(client: httpx.Client, now: str) -> list[str]:
    """Advice on a time of one's own chats that has become this."""
    found = client.get("/v1/cache/advice").raise_for_status().json()["data"]
    return [
        one["advice"] for one in found if one["own"] and one["class"] == "date_or_time" and now in one["quote"]["now"]
    ]


def test_a_batch_is_shown_until_it_has_ended(browser: Browser, tiny_model: Path, tmp_path: Path) -> None:
    with live_server("--model", str(tiny_model), "--batch-dir", str(tmp_path)) as started:
        body = {"prompt": "Once", "max_tokens": 200_000, "ignore_eos": True}
        line = {"method": "POST", "url": "/v1/completions", "body": body}
        lines = "\n".join(json.dumps({**line, "custom_id": str(number)}) for number in range(400))
        with httpx.Client(base_url=started.url, timeout=60, trust_env=False) as client:
            sent = client.post("/v1/files", files={"file": ("x.jsonl", lines)}, data={"purpose": "batch"}).json()
            order = {"input_file_id": sent["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
            batch_id = client.post("/v1/batches", json=order).json()["id"]
            with looking(browser, started.url) as live:
                expect(live.part("Batches")).to_contain_text(batch_id)
                expect(live.part("Batches")).to_contain_text("of 400")
                client.post(f"/v1/batches/{batch_id}/cancel")
                expect(live.part("Batches")).to_have_count(0)


def test_the_scales_of_adapters_are_set(browser: Browser, tiny_model: Path) -> None:
    style, topic = write_loras(tiny_model)
    flags = ("-m", str(tiny_model), "-c", "512", "-t", "1", "-fa", "off", "--lora", style, "--lora", topic)
    with live_server(*flags) as started, looking(browser, started.url) as live:
        live.press("Adapter scales…")
        dialog = live.page.get_by_role("dialog", name="Adapter scales")
        fields = dialog.locator("input")
        expect(fields).to_have_count(2)
        fields.nth(1).fill("1000000")
        dialog.get_by_role("button", name="Set").click()
        expect(dialog.get_by_role("alert")).to_contain_text("expected")
        fields.nth(1).fill("0.25")
        dialog.get_by_role("button", name="Set").click()
        expect(dialog).to_have_count(0)
        scales = httpx.get(f"{started.url}/lora-adapters", trust_env=False, timeout=60).json()
        assert [one["scale"] for one in scales] == [1.0, 0.25]


def test_another_model_is_loaded_after_its_plan(browser: Browser, server: LiveServer, keys: Keys) -> None:
    with looking(browser, server.url, keys.root) as live:
        live.press("Load another model…")
        field = live.dialog.get_by_label("Model", exact=True)
        field.fill("nowhere.gguf")
        live.press("What does it need?")
        expect(live.dialog.get_by_role("alert")).to_contain_text("no such file")
        path = httpx.get(f"{server.url}/props", headers={"x-api-key": keys.root}, trust_env=False, timeout=60).json()[
            "model_path"
        ]
        field.fill(path)
        live.press("What does it need?")
        expect(live.dialog.locator(".plan")).to_contain_text("Fits")
        expect(live.dialog.locator(".plan")).to_contain_text("134.5M")
        live.press("Load it")
        expect(live.dialog).to_contain_text("It is loaded and served.", timeout=60_000)
        live.dialog.get_by_role("button", name="Close").last.click()
        expect(live.page.get_by_role("list", name="What happened")).to_contain_text("the model is changed")
        expect(live.tile("Server")).to_have_text("Idle")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, {"width": 1280, "height": 800}], ids=["phone", "desk"])
def test_nothing_is_wider_than_the_page(
    browser: Browser, server: LiveServer, keys: Keys, scheme: str, viewport: dict[str, int]
) -> None:
    with (
        long_requests(server.url, keys.long, keys.long, keys.bob),
        looking(browser, server.url, keys.root, viewport=viewport, color_scheme=scheme) as live,
    ):
        expect(live.rows("Queue")).to_have_count(2)
        expect(live.rows("Slots")).to_contain_text(LONG_NAME)
        wide = live.page.evaluate(
            "() => Array.from(document.querySelectorAll('.live, .card, .tile'))"
            ".filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => one.className)"
        )
        assert wide == []


def test_it_is_used_by_keyboard_alone(browser: Browser, server: LiveServer, keys: Keys) -> None:
    with looking(browser, server.url, keys.root) as live:
        drain = live.page.get_by_role("button", name="Drain…")
        drain.focus()
        live.page.keyboard.press("Enter")
        expect(live.dialog).to_be_visible()
        live.page.keyboard.press("Escape")
        expect(live.dialog).to_have_count(0)
        expect(drain).to_be_focused()
        expect(live.tile("Server")).to_have_text("Idle")


def test_a_server_that_goes_is_missed_and_a_picture_for_the_documentation(
    browser: Browser, folder: Path, keys: Keys, tmp_path: Path
) -> None:
    """The picture goes into docs/images where TESTS_PICTURES is set."""
    target = Path(os.environ.get("TESTS_PICTURES") or tmp_path) / "live-view.png"
    flags = ("--api-key-file", str(folder / "keys.toml"), "--ctx-size", "8192", "--parallel", "4")
    with live_server(*flags) as server:
        for key in (keys.alice, keys.bob, keys.alice):
            body = {"prompt": "Tell me about the sea, and about the ships on it.", "max_tokens": 24}
            httpx.post(
                f"{server.url}/v1/completions", json=body, headers={"x-api-key": key}, trust_env=False, timeout=60
            )
        story = "It was a dark and stormy night, and the rain fell in torrents. " * 6
        with (
            long_requests(server.url, *[keys.alice, keys.bob] * 3, prompt=story),
            looking(browser, server.url, keys.root, color_scheme="light") as live,
        ):
            expect(live.rows("Queue")).to_have_count(2)
            expect(live.rows("Last requests")).to_have_count(3)
            # Figures of some seconds make curves.
            live.page.wait_for_timeout(4000)
            live.page.screenshot(path=target)
            server.stop()
            expect(live.page.get_by_text("The server does not answer.")).to_be_visible()
            expect(live.tile("Server")).to_have_text("No answer")
    assert target.read_bytes().startswith(b"\x89PNG")
