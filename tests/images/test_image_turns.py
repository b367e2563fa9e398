"""Turns of images: so many at once, fair by account, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from ggufd.errors import EngineFailure, QueueFull
from ggufd.images.turns import ImageTurns
from ggufd.keys.principal import BACKGROUND, Limits, Principal


def of(account: str, weight: float = 1.0) -> Principal:
    return Principal(account=account, limits=Limits(weight=weight))


class Rig:
    """Encodings that end when they are told to, and the order in which they began."""

    def __init__(self, turns: ImageTurns) -> None:
        self.turns = turns
        self.began: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}

    def begin(self, name: str, principal: Principal, n_rows: int = 10) -> asyncio.Task[None]:
        return asyncio.create_task(self._run(name, principal, n_rows))

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settled()

    async def drain(self) -> list[str]:
        """Let each one end when it has begun; the order of all."""
        done = 0
        while done < len(self.began):
            await self.end(self.began[done])
            done += 1
        return self.began

    async def _run(self, name: str, principal: Principal, n_rows: int) -> None:
        async with self.turns.turn(principal, n_rows):
            self.began.append(name)
            self._ends[name] = asyncio.Event()
            await self._ends[name].wait()


async def settled() -> None:
    """Everything that can run now has run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def order_of(asked: Sequence[tuple[str, Principal]]) -> list[str]:
    rig = Rig(ImageTurns("encoded"))
    tasks = [rig.begin(name, principal) for name, principal in asked]
    await settled()
    assert rig.began == [asked[0][0]]
    order = await rig.drain()
    await asyncio.gather(*tasks)
    return order


async def test_one_account_is_served_in_order() -> None:
    assert await order_of([(name, of("a")) for name in "123"]) == ["1", "2", "3"]


async def test_another_account_does_not_wait_behind_many_images_of_one() -> None:
    many = [(f"a{i}", of("a")) for i in range(4)]
    assert await order_of([*many, ("b0", of("b")), ("b1", of("b"))]) == ["a0", "a1", "b0", "a2", "b1", "a3"]


async def test_an_account_of_twice_the_weight_gets_twice_as_many() -> None:
    asked = [*((f"a{i}", of("a")) for i in range(4)), *((f"b{i}", of("b", 2)) for i in range(4))]
    order = await order_of(asked)
    assert order[:6].count("b0") + order[:6].count("b1") + order[:6].count("b2") + order[:6].count("b3") >= 3


async def test_background_work_comes_after_all_others() -> None:
    asked = [("a0", of("a")), ("line", of(BACKGROUND)), ("a1", of("a")), ("b0", of("b"))]
    assert (await order_of(asked))[-1] == "line"


async def test_more_than_may_wait_are_refused() -> None:
    turns = ImageTurns("encoded", most=1)
    turns.seconds_each = 7
    rig = Rig(turns)
    tasks = [rig.begin(name, of("a")) for name in "12"]
    await settled()
    assert turns.n_waiting == 1
    with pytest.raises(QueueFull, match="1 images wait to be encoded") as caught:
        await rig.begin("3", of("b"))
    assert caught.value.retry_after_s == 7
    await rig.drain()
    await asyncio.gather(*tasks)
    assert turns.n_waiting == 0


async def test_several_are_worked_on_at_once_where_that_is_wanted() -> None:
    rig = Rig(ImageTurns("fetched", at_once=2))
    tasks = [rig.begin(name, of("a")) for name in "1234"]
    tasks.append(rig.begin("b", of("b")))
    await settled()
    assert rig.began == ["1", "2"]
    await rig.end("2")
    assert rig.began == ["1", "2", "3"]
    await rig.end("1")
    assert rig.began == ["1", "2", "3", "b"]
    await rig.drain()
    await asyncio.gather(*tasks)
    again = [rig.begin(name, of("a")) for name in "567"]
    await settled()
    assert rig.began[-2:] == ["5", "6"]
    await rig.drain()
    await asyncio.gather(*again)


async def test_one_that_leaves_the_queue_takes_no_turn() -> None:
    rig = Rig(ImageTurns("encoded"))
    first, second, third = (rig.begin(name, of("a")) for name in "123")
    await settled()
    second.cancel()
    await settled()
    assert await rig.drain() == ["1", "3"]
    await asyncio.gather(first, third)


async def test_one_that_leaves_when_its_turn_has_come_passes_it_on() -> None:
    rig = Rig(ImageTurns("encoded"))
    first, second, third = (rig.begin(name, of("a")) for name in "123")
    await settled()
    rig._ends["1"].set()
    await first
    second.cancel()
    await settled()
    assert rig.began[-1] == "3"
    await rig.drain()
    await third


async def test_an_encoding_that_fails_passes_its_turn_on() -> None:
    turns = ImageTurns("encoded")
    rig = Rig(turns)

    async def fail() -> None:
        async with turns.turn(of("a"), 1):
            raise EngineFailure("it broke")

    failing, after = asyncio.create_task(fail()), rig.begin("after", of("a"))
    with pytest.raises(EngineFailure):
        await failing
    await settled()
    assert await rig.drain() == ["after"]
    await after
