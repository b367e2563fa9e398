"""The store of rows: bounded, apart by cache scope, and never a file that is not whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ggufd.images.encoder.row_store import RowStore

DIGESTS = [f"{i:064x}" for i in range(8)]
N_BYTES = 100


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> RowStore:
    return RowStore(tmp_path / "images", 3 * N_BYTES, clock)


def put(store: RowStore, digest: str, scope: str = "", n_bytes: int = N_BYTES) -> Path:
    store.path(scope, digest).write_bytes(b"r" * n_bytes)
    return store.add(scope, digest)


def found(store: RowStore) -> list[str]:
    """Digests whose files are there."""
    return [digest for digest in DIGESTS if store.path("", digest).exists()]


def test_what_was_put_is_found_in_its_own_scope_alone(store: RowStore) -> None:
    path = put(store, DIGESTS[0], scope="ada")
    assert store.find("ada", DIGESTS[0], N_BYTES) == path
    assert store.find("bob", DIGESTS[0], N_BYTES) is None
    assert store.find("ada", DIGESTS[1], N_BYTES) is None


def test_scopes_and_digests_are_not_mixed_up(store: RowStore) -> None:
    assert store.path("1", DIGESTS[0]) != store.path("", f"{DIGESTS[0]}")
    assert len({store.path(scope, digest) for scope in ("", "a", "b") for digest in DIGESTS}) == 3 * len(DIGESTS)


def test_the_least_recently_used_goes_when_there_is_no_room(store: RowStore, clock: Clock) -> None:
    for digest in DIGESTS[:3]:
        put(store, digest)
        clock.now_s += 1
    clock.now_s += 100
    store.find("", DIGESTS[0], N_BYTES)
    put(store, DIGESTS[3])
    assert found(store) == [DIGESTS[0], DIGESTS[2], DIGESTS[3]]
    assert (len(store), store.n_bytes) == (3, 3 * N_BYTES)


def test_what_was_asked_for_just_now_stays_until_the_engine_has_it(store: RowStore, clock: Clock) -> None:
    for digest in DIGESTS[:5]:
        put(store, digest)
    assert found(store) == DIGESTS[:5]
    clock.now_s += 61
    put(store, DIGESTS[5])
    assert found(store) == DIGESTS[3:6]


def test_a_file_of_another_size_is_deleted_and_not_found(store: RowStore) -> None:
    path = put(store, DIGESTS[0], n_bytes=N_BYTES - 4)
    assert store.find("", DIGESTS[0], N_BYTES) is None
    assert not path.exists()


def test_a_file_that_somebody_deleted_is_not_found(store: RowStore) -> None:
    put(store, DIGESTS[0]).unlink()
    assert store.find("", DIGESTS[0], N_BYTES) is None
    assert (len(store), store.n_bytes) == (0, 0)


def test_files_outlive_the_server_and_are_bounded_at_the_next_start(store: RowStore, tmp_path: Path) -> None:
    for age, digest in enumerate(DIGESTS[:3]):
        path = put(store, digest)
        os.utime(path, (1000 - age, 1000 - age))
    unfinished = store.path("", DIGESTS[4]).with_suffix(".rows.part")
    unfinished.write_bytes(b"half")
    (tmp_path / "images" / "notes.txt").write_text("not ours")
    store.close()
    again = RowStore(tmp_path / "images", 2 * N_BYTES)
    assert found(again) == DIGESTS[:2]
    assert not unfinished.exists()
    assert (tmp_path / "images" / "notes.txt").exists()
    assert again.find("", DIGESTS[0], N_BYTES)


def test_a_temporary_folder_is_private_and_goes_at_the_end() -> None:
    store = RowStore()
    path = put(store, DIGESTS[0])
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    store.close()
    assert not path.parent.exists()
