"""A chat goes on at another server as if it had always been there; and where it cannot move, it is computed anew."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from ggufd.cluster.moving.mover import ChatMover, Moved
from ggufd.cluster.replicas import Replica
from tests.support.limits import ANSWER_S
from tests.support.programs.live_server import LiveServer, live_server

pytestmark = [pytest.mark.timeout(600), pytest.mark.long]

TOKEN = "0123456789abcdef" * 4
SYSTEM = "You are the keeper of a lighthouse on a small island, and you answer in short sentences. " * 14
TURNS = ("Who are you?", "What do you see from the tower?", "Does a ship come by?", "What is its name?", "And then?")
N_NEW = 60
"""A turn's new message and the answer before it are no more tokens than that."""


class Turn(NamedTuple):
    """An answer, the tokens of its prompt, and how many of them were at hand."""

    text: str
    n_prompt: int
    n_cached: int


class Chat:
    """A conversation, each of whose turns may be sent to any server."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.id = name.encode().hex().ljust(32, "0")
        self.messages: list[dict[str, str]] = [{"role": "system", "content": f"{name}. {SYSTEM}"}]

    def ask(self, server: LiveServer, question: str) -> Turn:
        """The answer to one more question, which stays no part of the chat until `keep`."""
        messages = [*self.messages, {"role": "user", "content": question}]
        body = {"messages": messages, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
        headers = {"x-ggufd-peer": TOKEN, "x-ggufd-chat": self.id}
        response = httpx.post(
            f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=120, trust_env=False
        )
        assert response.status_code == 200, response.text
        answer = response.json()
        usage = answer["usage"]
        return Turn(
            answer["choices"][0]["message"]["content"],
            usage["prompt_tokens"],
            usage["prompt_tokens_details"]["cached_tokens"],
        )

    def keep(self, question: str, turn: Turn) -> None:
        self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": turn.text}]

    def talk(self, server: LiveServer) -> None:
        """All turns but the last."""
        for question in TURNS[:-1]:
            self.keep(question, self.ask(server, question))


class Fixed:
    """Replicas that are always there."""

    def __init__(self, *servers: LiveServer) -> None:
        self._replicas = [Replica(server.url, server.url) for server in servers]

    async def all(self) -> Sequence[Replica]:
        return self._replicas


def first(chat: bytes, replicas: Sequence[Replica]) -> Replica | None:
    """Where every chat is routed in these tests."""
    return replicas[0] if replicas else None


def parted(server: LiveServer, *others: LiveServer, token: str = TOKEN) -> Moved:
    """What comes of handing over a server's chats."""
    return asyncio.run(ChatMover(Fixed(server, *others), first, token).part(server.url, server.url))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cluster")
    (made / "token").write_text(TOKEN)
    return made


def flags(folder: Path, n_slots: int = 2) -> list[str]:
    given = ["--peer-token-file", str(folder / "token"), "--cache-disk", "512", "--cache-ram", "256"]
    return [*given, "--cache-disk-path", str(folder / "chats"), "-np", str(n_slots), "-c", str(2048 * n_slots)]


@pytest.fixture(scope="module")
def b(folder: Path) -> Iterator[LiveServer]:
    with live_server(*flags(folder)) as server:
        yield server


@pytest.fixture
def a(folder: Path, b: LiveServer) -> Iterator[LiveServer]:
    """Another one, which shares the folder of the first."""
    with live_server(*flags(folder)) as server:
        yield server


def kept_by(server: LiveServer) -> list[dict[str, Any]]:
    answer = httpx.get(f"{server.url}/peers/chats", headers={"x-ggufd-peer": TOKEN}, timeout=ANSWER_S, trust_env=False)
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


def test_a_drained_server_hands_its_chats_over_and_the_next_turn_computes_its_message_only(
    a: LiveServer, b: LiveServer, folder: Path
) -> None:
    chats = [Chat(f"Chat {at}") for at in range(2)]
    for chat in chats:
        chat.talk(a)
    moved = parted(a, b)
    assert (moved.n_chats, moved.failures) == (2, {})
    assert {one["chat"] for one in kept_by(b)} == {chat.id for chat in chats}
    for chat in chats:
        there, here = chat.ask(b, TURNS[-1]), chat.ask(a, TURNS[-1])
        assert there.text == here.text
        assert there.n_cached >= there.n_prompt - N_NEW > 250
    # The chat went on there; a second hand-over moves nothing that is there already.
    assert parted(a, b).n_chats <= len(chats)
    assert sorted(path.name for path in (folder / "chats").iterdir() if path.is_dir()) == ["2"]


def test_a_new_server_is_given_the_chats_that_will_be_routed_to_it(a: LiveServer, b: LiveServer) -> None:
    chat = Chat("For the new one")
    chat.talk(b)
    new_first = ChatMover(Fixed(b), lambda _, replicas: replicas[-1], TOKEN)
    moved = asyncio.run(new_first.welcome("new", a.url))
    assert moved.n_chats >= 1
    there = chat.ask(a, TURNS[-1])
    assert there.n_cached >= there.n_prompt - N_NEW > 250


def test_a_server_that_comes_back_has_the_chats_of_the_one_before_it(folder: Path, b: LiveServer) -> None:
    chat = Chat("Comes back")
    with live_server(*flags(folder)) as server:
        chat.talk(server)
    with live_server(*flags(folder)) as server:
        turn = chat.ask(server, TURNS[-1])
        assert turn.n_cached >= turn.n_prompt - N_NEW > 250


def test_what_cannot_move_is_computed_anew_and_nobody_notices(a: LiveServer, b: LiveServer, folder: Path) -> None:
    chat = Chat("Stays where it is")
    chat.talk(a)
    with live_server(*flags(folder, n_slots=3)) as other:
        assert parted(a, other).n_chats == 0
        turn = chat.ask(other, TURNS[-1])
        assert (turn.n_cached, bool(turn.text)) == (0, True)
    assert parted(a, b, token="wrong" * 10).n_chats == 0
    turn = chat.ask(b, TURNS[-1])
    assert (turn.text, turn.n_cached < 250) == (chat.ask(a, TURNS[-1]).text, True)


def test_a_file_that_breaks_on_the_disk_costs_its_chat_only(a: LiveServer, b: LiveServer, folder: Path) -> None:
    broken, whole = Chat("Broken"), Chat("Whole")
    broken.talk(a)
    whole.talk(a)
    assert parted(a, b).n_chats >= 2
    (digest,) = {one["digest"] for one in kept_by(b) if one["chat"] == broken.id}
    path = folder / "chats" / f"{digest}.npz"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 255
    path.write_bytes(raw)
    turn = broken.ask(b, TURNS[-1])
    assert (turn.text, turn.n_cached < 250) == (broken.ask(a, TURNS[-1]).text, True)
    assert not path.exists() or path.read_bytes() != bytes(raw)
    assert whole.ask(b, TURNS[-1]).n_cached > 250


def test_a_server_that_hangs_or_dies_while_it_hands_over_keeps_nobody(a: LiveServer, b: LiveServer) -> None:
    chat = Chat("Dies")
    chat.talk(a)
    text = chat.ask(a, TURNS[-1]).text
    assert parted(a, b).n_chats >= 1
    (digest,) = {one["digest"] for one in kept_by(a) if one["chat"] == chat.id} - {"none"}
    os.kill(a.pid, signal.SIGSTOP)
    try:
        body = {"from": a.url, "digest": "0" * 31 + "1", "timeout_s": 20}
        headers = {"x-ggufd-peer": TOKEN}
        answer = httpx.post(
            f"{b.url}/peers/chats/fetch", json=body, headers=headers, timeout=60, trust_env=False
        ).json()
        assert (answer["status"], "timed out" in answer["reason"]) == ("failed", True)
    finally:
        children = a.children()
        os.kill(a.pid, signal.SIGKILL)
        for child in children:
            child.kill()
    assert parted(a, b).n_chats == 0
    turn = chat.ask(b, TURNS[-1])
    assert (turn.text, turn.n_cached > 250) == (text, True)
    assert digest in {one["digest"] for one in kept_by(b)}
