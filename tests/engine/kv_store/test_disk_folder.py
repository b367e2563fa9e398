"""Engines that share a folder have a part each, and what a dead one left is the next one's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ggufd.engine.kv_store.disk_cache import open_disk_cache
from ggufd.engine.kv_store.disk_folder import DiskFolder
from ggufd.engine.messages.config import DiskPlace
from tests.engine.kv_store.test_disk_cache import fetched, kept

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no locks of this kind")


def test_a_lone_engine_has_the_folder_itself(tmp_path: Path) -> None:
    assert DiskFolder(tmp_path / "new" / "one").path == tmp_path / "new" / "one"


def test_engines_that_live_together_have_a_part_each(tmp_path: Path) -> None:
    first, second, third = DiskFolder(tmp_path), DiskFolder(tmp_path), DiskFolder(tmp_path)
    assert [one.path for one in (first, second, third)] == [tmp_path, tmp_path / "2", tmp_path / "3"]
    second.release()
    assert DiskFolder(tmp_path).path == tmp_path / "2"


def test_what_a_killed_engine_held_is_free(tmp_path: Path) -> None:
    claim = "import sys, time\nfrom pathlib import Path\nfrom ggufd.engine.kv_store.disk_folder import DiskFolder\n"
    claim += "one = DiskFolder(Path(sys.argv[1]))\nprint(one.path, flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", claim, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == str(tmp_path)
        assert DiskFolder(tmp_path).path == tmp_path / "2"
        other.kill()
        other.wait()
    assert DiskFolder(tmp_path).path == tmp_path


def test_no_engine_deletes_what_another_one_keeps(tmp_path: Path) -> None:
    """Each has its own limit, and counts and evicts its own files only."""
    entry = kept(5)
    first = open_disk_cache(DiskPlace(str(tmp_path), 10_000, "model"))
    assert first is not None
    assert first.store(entry)
    first.flush(5)
    second = open_disk_cache(DiskPlace(str(tmp_path), 10_000, "model"))
    assert second is not None
    assert (second.folder, len(second)) == (tmp_path / "2", 0)
    for at in range(1, 4):
        assert second.store(kept(1000 * at))
        second.flush(5)
    assert len(second) < 3
    assert fetched(first, entry) is not None
    assert len(list(tmp_path.glob("*.npz"))) == 1
    second.close()
    third = open_disk_cache(DiskPlace(str(tmp_path), 10_000, "model"))
    assert third is not None
    assert fetched(third, kept(3000)) is not None


def test_a_file_system_without_locks_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggufd.engine.kv_store.disk_folder.fcntl", None)
    assert [DiskFolder(tmp_path).path, DiskFolder(tmp_path).path] == [tmp_path, tmp_path]
