"""Chats on disk: found by their tokens, never waited for, never trusted, and back after a restart."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import time
from array import array
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from ggufd.engine.kv_store import state_head
from ggufd.engine.kv_store.disk_cache import MIN_TOKENS, DiskCache, Fetch, open_disk_cache
from ggufd.engine.kv_store.state_file import KeptState
from ggufd.engine.messages.config import DiskPlace, EngineRules
from ggufd.engine.messages.requests import EVERYBODYS, CacheScope
from tests.support.fakes.fake_llama import FakeDecoder, Rig, make_request, run_alone

BIG = 1 << 24
CHATS = [bytes([65 + at]) * 5 + b" is how a long chat begins, and it goes on and on for ever. " * 6 for at in range(6)]
ROOMY = {"n_ctx": 1024, "n_batch": 64, "n_outputs_max": 8}


def kept(first: int, n: int = 300, cache_scope: CacheScope = EVERYBODYS, n_bytes: int = 1000) -> KeptState:
    return KeptState(
        array("i", range(first, first + n)), np.full(n_bytes, first % 256, np.uint8), cache_scope, "somebody"
    )


def cache(folder: Path, max_bytes: int = BIG, fingerprint: str = "model") -> DiskCache:
    return DiskCache(folder, max_bytes, fingerprint)


def stored(folder: Path, *entries: KeptState, max_bytes: int = BIG) -> DiskCache:
    made = cache(folder, max_bytes)
    for entry in entries:
        assert made.store(entry)
        made.flush(5)
        time.sleep(0.01)
    return made


def read(fetch: Fetch | None) -> KeptState | None:
    assert fetch is not None
    deadline = time.monotonic() + 5
    while not fetch.is_ready:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return fetch.kept


def fetched(disk: DiskCache, like: KeptState, n_known: int = 0) -> Fetch | None:
    return disk.fetch(like.tokens, like.cache_scope, n_known)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_chat_has_the_file_name_that_earlier_versions_gave_it(tmp_path: Path) -> None:
    stored(tmp_path, kept(5, cache_scope=CacheScope("alice", (0.5,))))
    name = hashlib.blake2b(repr(("model", ("alice", (0.5,)))).encode(), digest_size=16)
    name.update(kept(5).tokens.tobytes())
    assert [path.name for path in tmp_path.iterdir()] == [f"{name.hexdigest()}.npz"]


def test_a_file_of_an_earlier_version_names_no_chat(tmp_path: Path) -> None:
    stored(tmp_path, kept(5))
    (path,) = tmp_path.glob("*.npz")
    with np.load(path) as data:
        parts = {name: data[name] for name in data.files if name != "chat"}
    np.savez(path, **parts)
    assert state_head.read_head(path).chat == ""
    assert read(fetched(cache(tmp_path), kept(5))) is not None


def test_what_was_stored_comes_back_to_the_next_engine(tmp_path: Path) -> None:
    entry = kept(5, cache_scope=CacheScope("alice", (0.5, 1.0)))
    stored(tmp_path, entry)
    back = read(fetched(cache(tmp_path), entry))
    assert back is not None
    assert (back.tokens, back.cache_scope, back.person) == (entry.tokens, entry.cache_scope, "somebody")
    assert np.array_equal(back.state, entry.state)


@pytest.mark.parametrize(
    ("like", "n_known"),
    [
        (kept(900), 0),
        (kept(5, cache_scope=CacheScope("bob")), 0),
        (kept(5), 300 - MIN_TOKENS + 1),
        (kept(5, n=MIN_TOKENS - 1), 0),
    ],
    ids=["other tokens", "another key's", "hardly more than is known", "too short a beginning"],
)
def test_what_is_not_worth_reading_is_not_read(tmp_path: Path, like: KeptState, n_known: int) -> None:
    assert fetched(stored(tmp_path, kept(5)), like, n_known) is None


def test_a_cache_that_cannot_drop_its_tail_wants_whole_files(tmp_path: Path) -> None:
    stored(tmp_path, kept(5))
    disk = DiskCache(tmp_path, BIG, "model", only_whole=True)
    assert fetched(disk, kept(5, n=299)) is None
    assert fetched(disk, kept(5, n=301)) is not None
    assert disk.store(kept(5, n=290))
    disk.flush(5)
    assert disk.store(kept(5, n=400))
    disk.flush(5)
    assert len(disk) == 3


def test_a_whole_file_that_leaves_nothing_to_compute_gives_way_to_a_shorter_one(tmp_path: Path) -> None:
    stored(tmp_path, kept(5, n=300))
    disk = DiskCache(tmp_path, BIG, "model", only_whole=True)
    assert disk.store(kept(5, n=400))
    disk.flush(5)
    found = read(fetched(disk, kept(5, n=400)))
    assert found is not None
    assert len(found.tokens) == 300
    assert fetched(disk, kept(5, n=300)) is None


def test_another_models_files_are_no_use_and_make_room_first(tmp_path: Path) -> None:
    size = stored(tmp_path, kept(5)).n_bytes
    other = cache(tmp_path, max_bytes=2 * size + 100, fingerprint="another model")
    assert len(other) == 1
    assert fetched(other, kept(5)) is None
    for first in (1000, 2000):
        assert other.store(kept(first))
        other.flush(5)
    assert len(other) == 2
    assert fetched(other, kept(1000)) is not None


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    entries = [kept(1000 * at) for at in range(3)]
    size = stored(tmp_path, entries[0]).n_bytes
    disk = stored(tmp_path, *entries[:2], max_bytes=2 * size + 100)
    time.sleep(0.01)
    assert read(fetched(disk, entries[0])) is not None
    disk.store(entries[2])
    disk.flush(5)
    assert fetched(disk, entries[1]) is None
    assert len(list(tmp_path.glob("*.npz"))) == 2


def test_a_longer_chat_takes_the_place_of_its_beginning(tmp_path: Path) -> None:
    disk = stored(tmp_path, kept(5), kept(5, n=400))
    assert len(disk) == 1
    assert disk.store(kept(5, n=350))
    assert len(list(tmp_path.glob("*.npz"))) == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "nonsense"])
def test_a_damaged_file_is_noticed_and_deleted(tmp_path: Path, damage: str) -> None:
    disk = stored(tmp_path, kept(5, n_bytes=100_000))
    (path,) = tmp_path.glob("*.npz")
    data = bytearray(path.read_bytes())
    data[50_000] ^= 1
    path.write_bytes({"cut": data[:60_000], "flipped": data, "empty": b"", "nonsense": b"PK" * 1000}[damage])
    assert read(fetched(disk, kept(5))) is None
    assert fetched(disk, kept(5)) is None
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_no_hindrance_at_the_start(tmp_path: Path) -> None:
    stored(tmp_path, kept(5))
    (tmp_path / "junk.npz").write_bytes(b"junk")
    (tmp_path / ".half.npz.x1").write_bytes(b"half")
    assert len(cache(tmp_path)) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_files_are_their_owners_alone_and_their_names_tell_nothing(tmp_path: Path) -> None:
    stored(tmp_path / "new", kept(5))
    (path,) = (tmp_path / "new").iterdir()
    assert len(path.stem) == 32
    if os.name == "posix":
        assert path.stat().st_mode & 0o077 == 0
        assert path.parent.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_made_is_said_and_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert open_disk_cache(DiskPlace(str(tmp_path / "file" / "folder"), BIG)) is None
    assert "not kept on disk" in caplog.text
    assert open_disk_cache(None) is None


def test_a_disk_that_fails_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "gone"
    disk = cache(folder)
    folder.rmdir()
    for first in (5, 1000):
        disk.store(kept(first))
        disk.flush(5)
    assert len(disk) == 0
    assert caplog.text.count("cannot be kept on disk") == 1


def freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every disk is read-only, as a file system becomes that has met an error."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for module, name in ((os, "unlink"), (os, "utime"), (os, "replace"), (tempfile, "mkstemp")):
        monkeypatch.setattr(module, name, refuse)


def test_a_folder_that_becomes_read_only_is_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = stored(tmp_path, kept(5), kept(1000))
    damaged = disk._entries[1].path
    damaged.write_bytes(b"PK")
    (tmp_path / ".half.npz.x1").write_bytes(b"half")
    freeze(monkeypatch)
    assert read(fetched(disk, kept(5))) is not None
    assert read(fetched(disk, kept(1000))) is None
    disk.store(kept(2000))
    disk.flush(5)
    disk.max_bytes = 10
    assert fetched(disk, kept(5)) is None
    again = cache(tmp_path)
    assert read(fetched(again, kept(5))) is not None


# --- in the engine ----------------------------------------------------------------------------------------------------


def rig_on(folder: Path, n_slots: int = 2, cache_ram_bytes: int = 1 << 20) -> Rig:
    rules = EngineRules(cache_ram_bytes=cache_ram_bytes, disk=DiskPlace(str(folder), BIG, "fake"))
    return Rig(FakeDecoder(n_slots=n_slots, **ROOMY), rules=rules)


def cached(rig: Rig, request_id: int, prompt: bytes) -> int:
    """Ask, and how many tokens of the prompt were at hand."""
    request = make_request(request_id, prompt, max_tokens=4)
    rig.add(request)
    while rig.engine.is_preparing:
        time.sleep(0.001)
    collected = rig.run()[request_id]
    assert collected.texts == run_alone(request, **ROOMY).texts
    return collected.finishes[0].usage.cached_tokens


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    before = rig_on(tmp_path)
    for at, prompt in enumerate(CHATS[:3]):
        assert cached(before, at, prompt) < 40
    before.engine.close(5)
    after = rig_on(tmp_path)
    for at, prompt in enumerate(CHATS[:3]):
        assert cached(after, at, prompt + b" And a new message.") >= len(prompt)


def test_what_leaves_host_ram_comes_back_from_disk(tmp_path: Path) -> None:
    rig = rig_on(tmp_path, n_slots=1, cache_ram_bytes=4000)
    disk = rig.engine._cache.host._disk
    assert disk is not None
    for at, prompt in enumerate(CHATS):
        cached(rig, at, prompt)
        disk.flush(5)
    assert cached(rig, 10, CHATS[0] + b" And more.") >= len(CHATS[0])


def test_nobody_waits_for_another_ones_disk(tmp_path: Path) -> None:
    before = rig_on(tmp_path)
    cached(before, 1, CHATS[0])
    before.engine.close(5)
    rig = rig_on(tmp_path)
    late = make_request(1, CHATS[0], max_tokens=4)
    rig.add(late, make_request(2, b"Somebody else", max_tokens=2))
    (sequence,) = rig.engine._queue.of_request(1)
    assert sequence.fetch is not None
    done = sequence.fetch.is_ready
    rig.step()
    assert done or rig.engine.stats().running >= 1
    while rig.engine.has_work:
        rig.step()
    assert rig.collected[1].finishes[0].usage.cached_tokens >= len(CHATS[0]) - 1


def test_what_runs_at_the_end_is_kept_too(tmp_path: Path) -> None:
    before = rig_on(tmp_path)
    before.add(make_request(1, CHATS[0], max_tokens=200))
    for _ in range(12):
        before.step()
    before.engine.close(5)
    assert cached(rig_on(tmp_path), 2, CHATS[0] + b" more") >= len(CHATS[0]) - 1
