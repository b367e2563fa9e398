"""Stored answers: bounded, each for its key alone, and never gone before those that go on from them."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufd.api.services.response_store import ResponseStore, StoredResponse
from ggufd.errors import ConfigError, NotFound, Unavailable
from tests.support.examples import examples


def kept(name: str, previous: str | None = None, text: str = "") -> StoredResponse:
    output = [{"id": f"msg_{name}", "type": "message", "text": text}]
    return StoredResponse({"id": name, "output": output}, [{"id": f"in_{name}", "type": "message"}], previous)


@pytest.fixture
def store() -> Iterator[ResponseStore]:
    store = ResponseStore(max_count=3)
    yield store
    store.check_integrity()
    store.close()


async def exists(store: ResponseStore, name: str, owner: str = "") -> bool:
    try:
        return (await store.get(owner, name)).response_id == name
    except NotFound:
        return False


async def test_what_is_kept_comes_back(store: ResponseStore) -> None:
    assert await store.keep("", kept("a"))
    assert await store.get("", "a") == kept("a")


async def test_another_key_does_not_see_it(store: ResponseStore) -> None:
    await store.keep("me", kept("a"))
    assert await store.item("me", "msg_a") is not None
    assert await store.item("you", "msg_a") is None
    for call in (store.get, store.chain, store.delete):
        with pytest.raises(NotFound):
            await call("you", "a")
    assert await exists(store, "a", "me")


async def test_nobody_goes_on_from_the_answer_of_another(store: ResponseStore) -> None:
    await store.keep("me", kept("a"))
    await store.keep("you", kept("b", "a"))
    with pytest.raises(NotFound, match="'a'"):
        await store.chain("you", "b")


async def test_nobody_takes_over_the_id_of_anothers_item(store: ResponseStore) -> None:
    await store.keep("me", kept("a", text="mine"))
    await store.keep("you", StoredResponse({"id": "b", "output": []}, [{"id": "msg_a", "text": "yours"}]))
    found = await store.item("me", "msg_a")
    assert found is not None
    assert found["text"] == "mine"


async def test_a_chain_is_told_from_its_beginning(store: ResponseStore) -> None:
    for name, previous in (("a", None), ("b", "a"), ("c", "b")):
        await store.keep("", kept(name, previous))
    assert [one.response_id for one in await store.chain("", "c")] == ["a", "b", "c"]


async def test_a_chain_with_a_hole_says_which_answer_is_gone(store: ResponseStore) -> None:
    await store.keep("", kept("a"))
    await store.keep("", kept("b", "a"))
    await store.delete("", "a")
    assert await exists(store, "b")
    with pytest.raises(NotFound, match="'a'"):
        await store.chain("", "b")
    assert await store.item("", "msg_a") is None


async def test_the_one_used_least_recently_goes(store: ResponseStore) -> None:
    for name in ("a", "b", "c"):
        await store.keep("", kept(name))
    await store.chain("", "a")
    await store.keep("", kept("d"))
    assert [await exists(store, name) for name in ("a", "b", "c", "d")] == [True, False, True, True]


async def test_going_on_keeps_all_that_was_before(store: ResponseStore) -> None:
    await store.keep("", kept("a"))
    await store.keep("", kept("x"))
    await store.keep("", kept("b", "a"))
    await store.keep("", kept("c", "b"))
    assert [one.response_id for one in await store.chain("", "c")] == ["a", "b", "c"]
    assert not await exists(store, "x")


async def test_a_conversation_that_takes_all_the_room_is_told_that_its_end_is_not_kept(store: ResponseStore) -> None:
    names = "abcd"
    told = [
        await store.keep("", kept(name, before.strip() or None)) for name, before in zip(names, " abc", strict=True)
    ]
    assert told == [await exists(store, name) for name in names]
    assert told == [True, True, True, False]


async def test_bytes_are_bounded_too() -> None:
    store = ResponseStore(max_bytes=1000)
    await store.keep("", kept("a", text="x" * 500))
    await store.keep("", kept("b", text="x" * 500))
    assert [await exists(store, name) for name in ("a", "b")] == [False, True]
    assert not await store.keep("", kept("c", text="x" * 5000))
    assert [await exists(store, name) for name in ("b", "c")] == [True, False]
    store.check_integrity()
    store.close()


async def test_a_file_outlives_the_process(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite"
    for name in ("a", "b"):
        store = ResponseStore(path, max_count=1)
        await store.keep("", kept(name))
        store.close()
    store = ResponseStore(path)
    assert [await exists(store, name) for name in ("a", "b")] == [False, True]
    store.close()


def test_a_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite"
    ResponseStore(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def make_nothing(path: Path) -> None:
    path.mkdir()


def make_text(path: Path) -> None:
    path.write_text("something else, long enough to be looked at " * 40)


def make_newer(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()


@pytest.mark.parametrize("make", [make_nothing, make_text, make_newer])
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "file")
    with pytest.raises(ConfigError, match="responses_path"):
        ResponseStore(tmp_path / "file")


async def test_a_database_that_fails_keeps_nothing_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    store = ResponseStore()
    store.close()
    assert not await store.keep("", kept("a"))
    assert "could not be stored" in caplog.text
    for call in (store.get, store.chain, store.delete, store.item):
        with pytest.raises(Unavailable, match="cannot be used now: Cannot operate on a closed database"):
            await call("", "a")


async def test_a_full_disk_still_tells_what_it_holds(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path / "responses.sqlite")
    await store.keep("", kept("a"))
    await store.keep("", kept("b", "a"))
    store._connection.execute("PRAGMA query_only = ON")
    assert not await store.keep("", kept("c"))
    assert [one.response_id for one in await store.chain("", "b")] == ["a", "b"]
    assert await exists(store, "a")
    with pytest.raises(Unavailable, match="attempt to write a readonly database"):
        await store.delete("", "a")
    store._connection.execute("PRAGMA query_only = OFF")
    assert await store.keep("", kept("c", "b"))
    assert [one.response_id for one in await store.chain("", "c")] == ["a", "b", "c"]
    store.check_integrity()
    store.close()


STEPS = st.lists(
    st.tuples(st.sampled_from(["keep", "chain", "delete"]), st.integers(0, 11), st.none() | st.integers(0, 11)),
    max_size=40,
)


@settings(max_examples=examples(60))
@given(STEPS)
def test_no_answer_goes_before_one_that_goes_on_from_it(steps: list[tuple[str, int, int | None]]) -> None:
    """A reference that only knows the rule: after every step the bounds hold, and chains break by deletion alone."""
    store = ResponseStore(max_count=5)
    previous: dict[int, int | None] = {}
    deleted: set[int] = set()
    for action, number, before in steps:
        if action == "keep" and number not in previous:
            before = before if before in previous and _is_there(store, before) else None
            store._keep("", kept(str(number), None if before is None else str(before)))
            previous[number] = before
        elif _is_there(store, number):
            if action == "delete":
                store._delete("", str(number))
                deleted.add(number)
            elif not _ancestors(number, previous) & deleted:
                assert len(store._chain("", str(number))) == len(_ancestors(number, previous)) + 1
        store.check_integrity()
    store.close()


def _is_there(store: ResponseStore, number: int | None) -> bool:
    try:
        return bool(store._get("", str(number)))
    except NotFound:
        return False


def _ancestors(number: int, previous: dict[int, int | None]) -> set[int]:
    found: set[int] = set()
    before = previous.get(number)
    while before is not None:
        found.add(before)
        before = previous[before]
    return found
