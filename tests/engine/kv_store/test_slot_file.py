"""Slots in files: token-exact, of the right model, under plain names, and nothing else of the disk."""

from __future__ import annotations

import stat
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufd.engine.kv_store import slot_file
from ggufd.engine.kv_store.state_file import KeptState
from ggufd.engine.messages.requests import ActOnSlot, CacheScope, SlotAction
from ggufd.errors import InvalidRequest
from ggufd.keys.ring import Role
from tests.support.fakes.api_client import error_of, ring_of, running
from tests.support.fakes.fake_llama import make_engine, make_request, run_alone

MARK = "a model"
PROMPT = b"A chat that is to be kept over a restart, because it was long to compute. "


class TestEngine:
    def act(self, rig: Any, action: SlotAction, path: Path, slot: int = 0, mark: str = MARK) -> Any:
        done = rig.engine.act_on_slot(ActOnSlot(slot, action, str(path), mark))
        rig.engine.check_integrity()
        return done

    def saved(self, path: Path, n_slots: int = 1, **changes: Any) -> Any:
        rig = make_engine(n_slots=n_slots)
        rig.add(make_request(1, PROMPT, max_tokens=8, **changes))
        collected = rig.run()[1]
        done = self.act(rig, SlotAction.SAVE, path)
        assert not done.failure
        assert done.n_tokens >= len(PROMPT)
        return collected

    def test_a_chat_goes_on_in_another_engine_token_for_token(self, tmp_path: Path) -> None:
        first = self.saved(tmp_path / "chat", n_slots=2)
        rig = make_engine(n_slots=2)
        done = self.act(rig, SlotAction.RESTORE, tmp_path / "chat", slot=1)
        assert (done.failure, done.n_tokens) == ("", len(PROMPT) + 8 - 1)
        longer = PROMPT + first.texts[0].encode() + b"And then?"
        request = make_request(2, longer, max_tokens=10)
        rig.add(request)
        collected = rig.run()[2]
        assert collected.texts[0] == run_alone(request).texts[0]
        assert collected.finishes[0].usage.cached_tokens >= len(PROMPT) + 6

    def test_it_stays_whose_it_was(self, tmp_path: Path) -> None:
        self.saved(tmp_path / "chat", cache_namespace="alice", person="alice")
        rig = make_engine(n_slots=1)
        self.act(rig, SlotAction.RESTORE, tmp_path / "chat")
        for request_id, namespace, is_cached in ((1, "bob", False), (2, "alice", False)):
            rig.add(make_request(request_id, PROMPT, max_tokens=2, cache_namespace=namespace))
            assert (rig.run()[request_id].finishes[0].usage.cached_tokens > 0) == is_cached
        self.act(rig, SlotAction.RESTORE, tmp_path / "chat")
        rig.add(make_request(3, PROMPT, max_tokens=2, cache_namespace="alice"))
        assert rig.run()[3].finishes[0].usage.cached_tokens == len(PROMPT) - 1

    def test_a_running_slot_is_left_alone(self, tmp_path: Path) -> None:
        rig = make_engine(n_slots=1)
        rig.add(make_request(1, PROMPT, max_tokens=8))
        rig.step()
        for action in (SlotAction.SAVE, SlotAction.RESTORE):
            assert self.act(rig, action, tmp_path / "chat").n_tokens is None
        assert list(tmp_path.iterdir()) == []

    def test_what_does_not_fit_is_said_and_changes_nothing(self, tmp_path: Path) -> None:
        self.saved(tmp_path / "chat")
        rig = make_engine(n_slots=1, n_ctx=64)
        rig.add(make_request(1, b"short", max_tokens=2))
        rig.run()
        before = rig.engine.stats().slots
        assert "a slot holds 64 here" in self.act(rig, SlotAction.RESTORE, tmp_path / "chat").failure
        assert (
            "by another model or other weights"
            in self.act(rig, SlotAction.RESTORE, tmp_path / "chat", mark="x").failure
        )
        assert "no saved slot none" in self.act(rig, SlotAction.RESTORE, tmp_path / "none").failure
        assert "cannot be written" in self.act(rig, SlotAction.SAVE, tmp_path / "no" / "chat").failure
        assert rig.engine.stats().slots == before

    def test_an_empty_slot_is_not_saved(self, tmp_path: Path) -> None:
        assert "keeps nothing" in self.act(make_engine(), SlotAction.SAVE, tmp_path / "chat").failure


class TestFile:
    def kept(self) -> KeptState:
        return KeptState(array("i", [1, 2, 3]), np.arange(50, dtype=np.uint8), CacheScope("alice", (0.5,)), "alice")

    def test_it_comes_back_as_it_was(self, tmp_path: Path) -> None:
        n_bytes = slot_file.write(tmp_path / "x", self.kept(), MARK)
        assert n_bytes == (tmp_path / "x").stat().st_size
        again = slot_file.read(tmp_path / "x", MARK)
        assert (again.tokens, again.cache_scope, again.person) == (
            array("i", [1, 2, 3]),
            CacheScope("alice", (0.5,)),
            "alice",
        )
        assert again.state.tobytes() == bytes(range(50))
        assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600
        assert [path.name for path in tmp_path.iterdir()] == ["x"]

    def test_every_broken_byte_is_noticed(self, tmp_path: Path) -> None:
        slot_file.write(tmp_path / "x", self.kept(), MARK)
        whole = (tmp_path / "x").read_bytes()
        for place in range(0, len(whole), 7):
            broken = bytearray(whole)
            broken[place] ^= 0xFF
            (tmp_path / "y").write_bytes(broken)
            try:
                again = slot_file.read(tmp_path / "y", MARK)
            except InvalidRequest:
                continue
            # A byte that nobody reads, such as a date.
            assert (again.tokens, again.state.tobytes()) == (self.kept().tokens, bytes(range(50)))

    @pytest.mark.parametrize("raw", [b"", b"PK\x03\x04", b"\x93NUMPY", b"\x80\x04N."])
    def test_what_is_no_file_of_ours_is_refused(self, tmp_path: Path, raw: bytes) -> None:
        (tmp_path / "x").write_bytes(raw)
        with pytest.raises(InvalidRequest, match="is no saved slot"):
            slot_file.read(tmp_path / "x", MARK)


class TestRoute:
    async def test_slots_are_saved_and_restored_in_llama_servers_shape(self, tmp_path: Path) -> None:
        async with running(slot_save_path=tmp_path) as api:
            saved = await api.ok("/slots/0?action=save", filename="chat_1.bin")
            restored = await api.ok("/slots/0?action=restore", filename="chat_1.bin")
            assert [command.path for command in api.engine.slot_commands] == [str(tmp_path / "chat_1.bin")] * 2
            assert {command.mark for command in api.engine.slot_commands} == {"of the fake"}
        assert (saved["n_saved"], saved["n_written"], saved["filename"]) == (5, 100, "chat_1.bin")
        assert (restored["n_restored"], restored["n_read"], restored["id_slot"]) == (5, 100, 0)
        assert "save_ms" in saved["timings"]

    @pytest.mark.parametrize(
        "filename",
        [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/etc/passwd",
            "a\\b",
            "C:x",
            ".hidden",
            "-x",
            "a\x00",
            "a\n",
            "x" * 101,
            3,
            None,
        ],
    )
    @pytest.mark.parametrize("action", ["save", "restore"])
    async def test_only_plain_names_are_taken(self, tmp_path: Path, action: str, filename: Any) -> None:
        async with running(slot_save_path=tmp_path) as api:
            error = await api.refused(f"/slots/0?action={action}", {"filename": filename})
            assert error["param"] == "filename"
            assert api.engine.slot_commands == []

    async def test_without_a_folder_it_says_how(self) -> None:
        async with running() as api:
            error = await api.refused("/slots/0?action=save", {"filename": "x"})
            assert "--slot-save-path" in error["message"]

    async def test_it_is_an_admins(self, tmp_path: Path) -> None:
        async with running(slot_save_path=tmp_path, keys=ring_of("k", role=Role.USER)) as api:
            response = await api.post("/slots/0?action=save", {"filename": "x"}, headers={"x-api-key": "k"})
            assert error_of(response, 403)["code"] == "admin_key_required"
