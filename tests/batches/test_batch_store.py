"""The store of batches: what is told stays told, what is not waits, and nothing is left over or seen by others."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ggufd.batches.files import StorageLimits
from ggufd.batches.records import BatchLine, BatchOrder, BatchRecord, BatchStatus, LineFault, LineResult, StorageFull
from ggufd.batches.store import BatchStore
from ggufd.errors import ConfigError, InvalidRequest, NotFound, PayloadTooLarge

DAY_S = 24 * 3600


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> BatchStore:
    return open_store(tmp_path, clock)


def open_store(folder: Path, clock: Callable[[], int], **limits: int) -> BatchStore:
    return BatchStore(folder / "kept", StorageLimits(**limits), keep_s=30 * DAY_S, now=clock)


def upload(store: BatchStore, content: bytes = b"one\ntwo\nthree\n", owner: str = "k") -> str:
    writer = store.new_upload(owner)
    try:
        writer.write(content)
        return store.keep_upload(writer, owner, "in.jsonl", store.keep_s).file_id
    except Exception:
        writer.drop()
        raise


def order(file_id: str, **changes: Any) -> BatchOrder:
    asked = {"endpoint": "/v1/embeddings", "window": "24h", "window_s": DAY_S, "keep_output_s": DAY_S}
    return BatchOrder(**({"input_file": file_id} | asked | changes))


LINES = [BatchLine(1, 0, 4, "a"), BatchLine(2, 4, 4, "b"), BatchLine(3, 8, 6, "c")]


def begun(store: BatchStore, owner: str = "k") -> BatchRecord:
    record = store.create(owner, order(upload(store, owner=owner)))
    store.begin(record, LINES)
    store.check_integrity()
    return store.batches.get(owner, record.batch_id)


def tell_lost(line: BatchLine) -> str:
    return f"lost {line.custom_id}"


def content_of(store: BatchStore, file_id: str | None, owner: str = "k") -> list[str]:
    assert file_id is not None
    file, path = store.content(owner, file_id)
    text = path.read_text()
    assert file.n_bytes == len(text.encode())
    return text.splitlines()


def finished(store: BatchStore, record: BatchRecord, ends_as: BatchStatus = BatchStatus.COMPLETED) -> BatchRecord:
    moved = store.move(store.batches.get(record.owner, record.batch_id), BatchStatus.FINALIZING, ends_as=ends_as)
    store.finalize(moved, tell_lost)
    store.check_integrity()
    return store.batches.get(record.owner, record.batch_id)


def test_lines_are_told_once_and_become_two_files_in_the_order_of_the_input(store: BatchStore) -> None:
    record = begun(store)
    for line, is_ok in ((LINES[2], True), (LINES[1], False), (LINES[0], True), (LINES[0], False)):
        store.tell(record, line, LineResult(is_ok, f"{line.custom_id} {is_ok}"))
        store.check_integrity()
    done = finished(store, record)
    assert (done.status, done.total, done.completed, done.failed) == (BatchStatus.COMPLETED, 3, 2, 1)
    assert content_of(store, done.output_file) == ["a True", "c True"]
    assert content_of(store, done.error_file) == ["b False"]
    assert set(done.times) == {"in_progress", "finalizing", "completed"}


def test_a_batch_whose_time_is_over_tells_what_was_not_computed(store: BatchStore) -> None:
    record = begun(store)
    store.tell(record, LINES[1], LineResult(True, "b"))
    done = finished(store, record, BatchStatus.EXPIRED)
    assert (done.status, done.completed, done.failed) == (BatchStatus.EXPIRED, 1, 2)
    assert content_of(store, done.error_file) == ["lost a", "lost c"]


def test_without_errors_there_is_no_error_file(store: BatchStore) -> None:
    record = begun(store)
    for line in LINES:
        store.tell(record, line, LineResult(True, line.custom_id))
    done = finished(store, record)
    assert done.error_file is None
    assert content_of(store, done.output_file) == ["a", "b", "c"]


def test_what_was_told_is_there_after_a_restart_and_the_rest_waits(tmp_path: Path, clock: Clock) -> None:
    first = open_store(tmp_path, clock)
    record = begun(first)
    first.tell(record, LINES[0], LineResult(True, "a"))
    assert first.note_attempt(record, LINES[1]) == 1
    first.close()
    again = open_store(tmp_path, clock)
    (found,) = again.batches.all_open()
    assert found == again.batches.get("k", record.batch_id)
    assert (found.completed, found.n_left) == (1, 2)
    assert again.lines.waiting(found.batch_id, 0, 9) == [BatchLine(2, 4, 4, "b", 1), LINES[2]]
    assert again.read_line(found, LINES[2]) == b"three\n"
    again.check_integrity()


def test_uploads_that_were_cut_off_are_gone_after_a_restart(tmp_path: Path, clock: Clock) -> None:
    first = open_store(tmp_path, clock)
    kept = upload(first)
    writer = first.new_upload("k")
    writer.write(b"half")
    first.close()
    assert len(list((tmp_path / "kept" / "files").iterdir())) == 2
    open_store(tmp_path, clock)
    writer.drop()
    assert [path.name for path in (tmp_path / "kept" / "files").iterdir()] == [kept]


def test_another_key_finds_nothing(store: BatchStore) -> None:
    record = begun(store)
    asks: list[Callable[[], Any]] = [
        lambda: store.batches.get("other", record.batch_id),
        lambda: store.cancel("other", record.batch_id),
        lambda: store.delete("other", record.batch_id),
        lambda: store.files.get("other", record.order.input_file),
        lambda: store.content("other", record.order.input_file),
        lambda: store.delete_file("other", record.order.input_file),
        lambda: store.create("other", order(record.order.input_file)),
    ]
    for ask in asks:
        with pytest.raises(NotFound):
            ask()
    assert store.files.all_of("other") == store.batches.all_of("other") == []


def test_only_the_servers_user_may_read_what_lies_there(tmp_path: Path, store: BatchStore) -> None:
    begun(store)
    writer = store.new_upload("k")
    writer.write(b"half")
    paths = [tmp_path / "kept", *(tmp_path / "kept").rglob("*")]
    assert len(paths) >= 4
    for path in paths:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
    writer.drop()


def test_a_folder_that_another_server_uses_is_refused(tmp_path: Path, clock: Clock, store: BatchStore) -> None:
    upload(store)
    with pytest.raises(ConfigError, match="another server uses it"):
        open_store(tmp_path, clock)


def test_a_folder_that_cannot_be_one_is_refused(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(ConfigError, match="batch_dir"):
        open_store(tmp_path, clock)


def test_a_database_of_another_version_is_refused(tmp_path: Path, clock: Clock) -> None:
    open_store(tmp_path, clock).close()
    with sqlite3.connect(tmp_path / "kept" / "batches.sqlite") as database:
        database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(ConfigError, match="version 9"):
        open_store(tmp_path, clock)


def test_files_are_bounded_in_size_and_number_and_leave_nothing_when_refused(tmp_path: Path, clock: Clock) -> None:
    store = open_store(tmp_path, clock, max_file_bytes=1 << 20, max_bytes=2 << 20, max_files=3)
    with pytest.raises(PayloadTooLarge, match="1 MiB"):
        upload(store, b"x" * ((1 << 20) + 1))
    assert list((tmp_path / "kept" / "files").iterdir()) == []
    for _ in range(2):
        upload(store, b"x" * (1 << 20))
    with pytest.raises(StorageFull, match="2 MiB"):
        upload(store, b"x")
    upload(store, b"")
    with pytest.raises(InvalidRequest, match="You have 3 files"):
        upload(store, b"")
    upload(store, b"", owner="other")
    store.check_integrity()


def test_results_count_as_files_do(tmp_path: Path, clock: Clock) -> None:
    store = open_store(tmp_path, clock, max_bytes=100)
    record = begun(store)
    store.tell(record, LINES[0], LineResult(True, "x" * 80))
    with pytest.raises(StorageFull):
        store.tell(record, LINES[1], LineResult(True, "x" * 80))
    assert store.batches.get("k", record.batch_id).n_left == 2
    store.tell(record, LINES[1], LineResult(True, ""))
    assert store.used_bytes == 14 + 81 + 1


def test_a_disk_that_takes_no_more_leaves_the_line_waiting(store: BatchStore) -> None:
    record = begun(store)
    store._database.execute("PRAGMA max_page_count = 1")
    with pytest.raises(sqlite3.Error, match="full"):
        store.tell(record, LINES[0], LineResult(True, "x" * 100_000))
    assert [line.number for line in store.lines.waiting(record.batch_id, 0, 9)] == [1, 2, 3]
    store._database.execute("PRAGMA max_page_count = 1000000")
    store.tell(record, LINES[0], LineResult(True, "x" * 100_000))
    store.check_integrity()


def test_results_that_cannot_become_files_stay_results(store: BatchStore, monkeypatch: pytest.MonkeyPatch) -> None:
    record = begun(store)
    store.tell(record, LINES[0], LineResult(True, "a"))
    moved = store.move(record, BatchStatus.FINALIZING)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            store.finalize(moved, tell_lost)
    store.check_integrity()
    assert [file.purpose for file in store.files.all_of("k")] == ["batch"]
    store.finalize(moved, tell_lost)
    assert content_of(store, store.batches.get("k", record.batch_id).output_file) == ["a"]


def test_a_file_is_not_deleted_while_it_is_computed(store: BatchStore) -> None:
    record = begun(store)
    with pytest.raises(InvalidRequest, match="Cancel that first"):
        store.delete_file("k", record.order.input_file)
    with pytest.raises(InvalidRequest, match="Cancel it first"):
        store.delete("k", record.batch_id)
    cancelled = store.cancel("k", record.batch_id)
    assert cancelled.status is BatchStatus.CANCELLING
    assert store.cancel("k", record.batch_id) == cancelled, "twice is once"
    store.finalize(cancelled, tell_lost)
    store.delete_file("k", record.order.input_file)
    store.delete("k", record.batch_id)
    assert store.batches.all_of("k") == []
    with pytest.raises(NotFound):
        store.batches.get("k", record.batch_id)


def test_what_has_ended_is_not_cancelled(store: BatchStore) -> None:
    record = begun(store)
    done = finished(store, record, BatchStatus.EXPIRED)
    with pytest.raises(InvalidRequest, match="it is expired"):
        store.cancel("k", done.batch_id)


def test_a_batch_that_was_cancelled_meanwhile_stays_so(store: BatchStore) -> None:
    record = store.create("k", order(upload(store)))
    store.cancel("k", record.batch_id)
    store.begin(record, LINES)
    assert store.batches.get("k", record.batch_id).status is BatchStatus.CANCELLING
    store.refuse(record, [LineFault("x", "y", 1)])
    assert store.batches.get("k", record.batch_id).status is BatchStatus.CANCELLING
    assert store.lines.waiting(record.batch_id, 0, 9) == []


def test_faults_are_told(store: BatchStore) -> None:
    record = store.create("k", order(upload(store)))
    store.refuse(record, [LineFault("x", "y", 1), LineFault("z", "w")])
    found = store.batches.get("k", record.batch_id)
    assert (found.status, found.faults) == (BatchStatus.FAILED, (LineFault("x", "y", 1), LineFault("z", "w")))


def test_what_has_expired_is_deleted_but_for_what_is_being_computed(
    tmp_path: Path, clock: Clock, store: BatchStore
) -> None:
    record, done = begun(store), begun(store)
    done = finished(store, done)
    clock.now += 31 * DAY_S
    store.clean()
    assert [file.file_id for file in store.files.all_of("k")] == [record.order.input_file]
    assert [path.name for path in (tmp_path / "kept" / "files").iterdir()] == [record.order.input_file]
    clock.now += DAY_S
    store.clean()
    assert [one.batch_id for one in store.batches.all_of("k")] == [record.batch_id]
    store.check_integrity()
