"""Time limit of a call: counted in the processor's time, within four times that on the clock."""

from __future__ import annotations

import asyncio

import pytest

from ggufd.chat.process.deadline import CallDeadline

LIMIT_S = 0.02


class Clocked:
    """A deadline over a processor that works `share` of the time."""

    def __init__(self, share: float) -> None:
        self.overruns: list[float] = []
        self.loop = asyncio.get_running_loop()
        self.deadline = CallDeadline(lambda: self.overruns.append(self.loop.time()), lambda: share * self.loop.time())
        self.begun_s = self.loop.time()

    async def overrun_s(self) -> float:
        """How long it took until the overrun."""
        async with asyncio.timeout(10):
            while not self.overruns:  # noqa: ASYNC110 - nothing else tells
                await asyncio.sleep(0.001)
        return self.overruns[0] - self.begun_s


@pytest.mark.parametrize(("share", "factor"), [(1.0, 1), (0.5, 2), (0.0, 4)])
async def test_what_others_have_of_the_processor_does_not_count_up_to_four_times_the_limit(
    share: float, factor: int
) -> None:
    clocked = Clocked(share)
    clocked.deadline.begin(LIMIT_S)
    assert await clocked.overrun_s() >= factor * LIMIT_S - 0.001
    await asyncio.sleep(2 * LIMIT_S)
    assert len(clocked.overruns) == 1


async def test_a_call_that_ended_is_not_late_and_the_next_has_all_of_its_time() -> None:
    clocked = Clocked(1.0)
    clocked.deadline.begin(LIMIT_S)
    clocked.deadline.begin(10.0)
    await asyncio.sleep(2 * LIMIT_S)
    clocked.deadline.begin(LIMIT_S)
    clocked.deadline.stop()
    clocked.deadline.stop()
    await asyncio.sleep(2 * LIMIT_S)
    assert clocked.overruns == []
