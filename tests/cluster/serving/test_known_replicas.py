"""The replicas as an ingress knows them, over a directory that the test has."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from ggufd.cluster.replicas import Replica
from ggufd.cluster.serving.known_replicas import KnownReplicas

ONE, TWO = Replica("r1", "http://a:1"), Replica("r2", "http://a:2")


class Told:
    """A directory that answers when it may, with what it has; and a clock."""

    def __init__(self) -> None:
        self.has: list[Replica] | Exception = [ONE]
        self.n_asked = 0
        self.now_s = 100.0
        self.may = asyncio.Event()
        self.may.set()

    async def __call__(self) -> Sequence[Replica]:
        self.n_asked += 1
        await self.may.wait()
        if isinstance(self.has, Exception):
            raise self.has
        return self.has

    def clock(self) -> float:
        return self.now_s


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_first_request_waits_for_the_list_and_all_of_a_second_share_it() -> None:
    told = Told()
    known = KnownReplicas(told, told.clock)
    assert [list(found) for found in await asyncio.gather(*(known.all() for _ in range(5)))] == [[ONE]] * 5
    told.now_s += 0.9
    await known.all()
    assert told.n_asked == 1


async def test_no_later_request_waits() -> None:
    told = Told()
    known = KnownReplicas(told, told.clock)
    await known.all()
    told.may.clear()
    told.has = [ONE, TWO]
    told.now_s += 2
    assert list(await known.all()) == [ONE]
    await settled()
    told.may.set()
    await settled()
    assert list(await known.all()) == [ONE, TWO]
    assert told.n_asked == 2


@pytest.mark.parametrize("has", [OSError("gone"), []])
async def test_what_was_known_stays_while_the_directory_is_gone_or_new(has: list[Replica] | Exception) -> None:
    told = Told()
    known = KnownReplicas(told, told.clock)
    await known.all()
    told.has = has
    told.now_s += 2
    await known.all()
    await settled()
    assert list(await known.all()) == [ONE]


async def test_a_directory_that_is_gone_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    told = Told()
    told.has = OSError("gone")
    known = KnownReplicas(told, told.clock)
    for _ in range(3):
        assert list(await known.all()) == []
        told.now_s += 2
    assert [record.getMessage() for record in caplog.records] == ["the directory does not answer: gone"]
