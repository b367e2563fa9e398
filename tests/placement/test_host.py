"""What this process may use: as control groups of both versions say it, in containers and outside."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from ggufd.errors import ModelError
from ggufd.placement.host import bind_to, compute_threads, ram

GB = 1 << 30


class Root:
    """A root folder with control groups of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def own(self, *lines: str) -> None:
        self._write("proc/self/cgroup", "\n".join(lines) + "\n")

    def group(self, folder: str, **files: object) -> None:
        """Files of a control group; `__` in a name stands for a dot."""
        for name, content in files.items():
            self._write(f"sys/fs/cgroup/{folder}/{name.replace('__', '.')}", f"{content}\n")

    def _write(self, name: str, text: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


@pytest.fixture(autouse=True)
def _cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 64 if logical else 32)
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: list(range(64)), raising=False)


def test_a_container_of_version_2(root: Root) -> None:
    root.own("0::/")
    root.group("", memory__max=GB, memory__current=500_000_000, memory__stat="anon 1\ninactive_file 100000000")
    root.group("", cpu__max="250000 100000")
    assert ram(root.path) == (GB - 400_000_000, GB)
    assert compute_threads(root.path) == 2


def test_a_container_of_version_1_sees_its_own_limits_at_the_top(root: Root) -> None:
    root.own("4:memory:/docker/abc", "2:cpu,cpuacct:/docker/abc", "0::/")
    root.group("memory", memory__limit_in_bytes=GB, memory__usage_in_bytes=500_000_000)
    root.group("memory", memory__stat="inactive_file 7\ntotal_inactive_file 100000000")
    root.group("cpu", cpu__cfs_quota_us=300_000, cpu__cfs_period_us=100_000)
    assert ram(root.path) == (GB - 400_000_000, GB)
    assert compute_threads(root.path) == 3


def test_a_service_is_limited_by_every_group_around_it(root: Root) -> None:
    root.own("0::/system.slice/ggufd.service")
    root.group("", memory__max="max", cpu__max="max 100000")
    root.group("system.slice", memory__max=GB // 2, memory__current=GB // 4, cpu__max="max 100000")
    root.group("system.slice/ggufd.service", memory__max=GB, memory__current=0, cpu__max="400000 100000")
    assert ram(root.path) == (GB // 4, GB // 2)
    assert compute_threads(root.path) == 4


def test_a_group_over_its_limit_has_nothing_free(root: Root) -> None:
    root.own("0::/")
    root.group("", memory__max=GB, memory__current=2 * GB)
    assert ram(root.path) == (0, GB)


@pytest.mark.parametrize("quota", ["20000 100000", "100000 100000", "199999 100000"])
def test_a_part_of_a_core_is_one_thread(root: Root, quota: str) -> None:
    root.own("0::/")
    root.group("", cpu__max=quota)
    assert compute_threads(root.path) == 1


@pytest.mark.parametrize("files", [{}, {"memory__max": "max", "cpu__max": "max 100000"}, {"memory__max": 1 << 60}])
def test_without_a_limit_the_machine_counts(root: Root, files: dict[str, object]) -> None:
    root.own("0::/")
    root.group("", **files)
    assert ram(root.path).total == psutil.virtual_memory().total
    assert compute_threads(root.path) == 32


def test_version_1_without_a_limit(root: Root) -> None:
    root.own("4:memory:/", "2:cpu:/")
    root.group("memory", memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=GB)
    root.group("cpu", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100_000)
    assert ram(root.path).total == psutil.virtual_memory().total
    assert compute_threads(root.path) == 32


@pytest.mark.parametrize("line", ["", "nonsense", "0::", "x:memory"])
def test_what_cannot_be_read_limits_nothing(root: Root, line: str) -> None:
    root.own(line)
    root.group("", memory__max="a lot", cpu__max="some")
    assert ram(root.path).total == psutil.virtual_memory().total
    assert compute_threads(root.path) == 32


@pytest.mark.parametrize(("usable", "expected"), [([0, 1, 2], 3), (list(range(64)), 32), ([], 32)])
def test_processors_that_this_process_may_not_use_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usable: list[int], expected: int
) -> None:
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: usable, raising=False)
    assert compute_threads(tmp_path) == expected


def test_this_machine() -> None:
    memory = psutil.virtual_memory()
    assert 0 < ram().free <= ram().total <= memory.total
    assert 1 <= compute_threads() <= 32


def on_a_thread(cpus: set[int]) -> set[int]:
    """The CPUs of a thread of its own, after it was bound: this process keeps its own."""

    def bound() -> set[int]:
        bind_to(cpus)
        return os.sched_getaffinity(0)

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(bound).result()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not let a program choose its CPUs")
def test_threads_run_on_the_cpus_that_are_named() -> None:
    usable = os.sched_getaffinity(0)
    first = min(usable)
    assert on_a_thread(set()) == usable
    # Those that this machine has not do no harm: a range may have no end.
    assert on_a_thread({first, 99999}) == {first}
    with pytest.raises(ModelError, match=r"^--cpus: none of these CPUs may be used here"):
        on_a_thread({99999})
    assert os.sched_getaffinity(0) == usable


def test_a_system_without_affinity_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    bind_to(())
    with pytest.raises(ModelError, match=r"^--cpus: this system does not let a program choose its CPUs"):
        bind_to({0})
