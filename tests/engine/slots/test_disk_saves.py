"""What an engine keeps is on disk when it is asked to, and what another one kept there is its own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ggufd.engine.kv_store import state_head
from ggufd.engine.messages.config import DiskPlace, EngineRules
from ggufd.engine.messages.requests import AdoptChat, EngineRequest
from tests.support.fakes.fake_llama import Collected, FakeDecoder, Rig, make_request, run_alone

BIG = 1 << 24
CHATS = [bytes([65 + at]) * 5 + b" is how a long chat begins, and it goes on and on for ever. " * 6 for at in range(6)]
ROOMY = {"n_ctx": 1024, "n_batch": 64, "n_outputs_max": 8}


def engine(folder: Path, *, n_slots: int = 2, max_bytes: int = BIG, ram: int = BIG) -> Rig:
    rules = EngineRules(cache_ram_bytes=ram, disk=DiskPlace(str(folder), max_bytes, "fake"))
    return Rig(FakeDecoder(n_slots=n_slots, **ROOMY), rules=rules)


def ask(rig: Rig, request: EngineRequest) -> Collected:
    """What comes of one request."""
    rig.add(request)
    while rig.engine.is_preparing:
        time.sleep(0.001)
    return rig.run()[request.request_id]


def save_all(rig: Rig) -> int:
    """Ask until nothing is left; how often that took."""
    for n_asked in range(1, 200):
        if rig.engine.save_chats().n_left == 0:
            return n_asked
        time.sleep(0.005)
    raise AssertionError("states are left without end")


def kept_in(folder: Path) -> dict[str, bytes]:
    """The first bytes of every chat on disk, by the chat's name."""
    heads = [state_head.read_head(path) for path in folder.glob("*.npz")]
    return {head.chat: bytes(head.tokens[:5].tolist()) for head in heads}


def test_idle_slots_and_host_ram_are_written_with_the_names_of_their_chats(tmp_path: Path) -> None:
    rig = engine(tmp_path)
    for at, chat in enumerate(CHATS):
        ask(rig, make_request(at, chat, max_tokens=3, chat=f"chat {at}"))
    assert save_all(rig) > 1
    assert kept_in(tmp_path) == {f"chat {at}": chat[:5] for at, chat in enumerate(CHATS)}
    assert save_all(rig) == 1
    rig.engine.check_integrity()


def test_what_runs_is_not_waited_for(tmp_path: Path) -> None:
    rig = engine(tmp_path)
    ask(rig, make_request(1, CHATS[0], max_tokens=3, chat="done"))
    rig.add(make_request(2, CHATS[1], max_tokens=50, chat="running"))
    for _ in range(12):
        rig.step()
    save_all(rig)
    assert set(kept_in(tmp_path)) == {"done"}


def test_an_adopted_file_is_used_by_the_next_request(tmp_path: Path) -> None:
    giver, taker = engine(tmp_path / "a"), engine(tmp_path / "b")
    ask(giver, make_request(1, CHATS[0], max_tokens=3, chat="one"))
    save_all(giver)
    (path,) = (tmp_path / "a").glob("*.npz")
    target = tmp_path / "b" / path.name
    target.write_bytes(path.read_bytes())
    head = state_head.read_head(target)
    assert path.stem == head.digest
    taker.engine.adopt_chat(AdoptChat(str(target), target.stat().st_size, time.time(), head.tokens, head.cache_scope))
    request = make_request(1, CHATS[0] + b" And more.", max_tokens=4)
    collected = ask(taker, request)
    assert collected.finishes[0].usage.cached_tokens >= len(CHATS[0])
    assert collected.texts == run_alone(request, **ROOMY).texts


def test_a_full_disk_ends_the_writing(tmp_path: Path) -> None:
    rig = engine(tmp_path, max_bytes=20_000)
    for at, chat in enumerate(CHATS):
        ask(rig, make_request(at, chat, max_tokens=3, chat=f"chat {at}"))
    save_all(rig)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.npz")) <= 20_000


@pytest.mark.parametrize("ram", [0, BIG])
def test_an_engine_without_a_disk_has_nothing_to_write(ram: int) -> None:
    rig = Rig(FakeDecoder(n_slots=2, **ROOMY), rules=EngineRules(cache_ram_bytes=ram))
    ask(rig, make_request(1, CHATS[0], max_tokens=3))
    assert rig.engine.save_chats().n_left == 0
    assert rig.engine.disk is None
