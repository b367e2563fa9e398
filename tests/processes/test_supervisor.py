"""Supervision of a child process: launches, exits that are expected or not, restarts with backoff, deadlines."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ggufd.processes.child import Child, ChildSpawner
from ggufd.processes.prestarted import PrestartedProcess
from ggufd.processes.supervisor import TOO_SLOW, ChildSupervisor, ProcessExit, ProcessState, RestartPolicy
from tests.processes.test_child import echo

WAIT_S = 60.0
AT_ONCE = RestartPolicy(first_s=0.0)


class FakeLink:
    """A process that does what the test says; `sent` ends with "kill" where it was killed."""

    def __init__(self, on_message: Callable[[Any], None], on_exit: Callable[[int, str], None]) -> None:
        self.say, self.exit = on_message, on_exit
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def kill(self) -> None:
        self.sent.append("kill")
        asyncio.get_running_loop().call_soon(self.exit, -9, "")


class Owner:
    """A supervisor of fake links, and all that it told."""

    def __init__(self, policy: RestartPolicy = AT_ONCE) -> None:
        self.links: list[FakeLink] = []
        self.messages: list[Any] = []
        self.exits: list[ProcessExit] = []
        self.failure: OSError | None = None
        self.process = ChildSupervisor(self._spawn, policy, self.messages.append, self.exits.append)

    def _spawn(self, on_message: Callable[[Any], None], on_exit: Callable[[int, str], None], /) -> FakeLink:
        if self.failure is not None:
            raise self.failure
        self.links.append(FakeLink(on_message, on_exit))
        return self.links[-1]

    async def launched(self, n: int) -> FakeLink:
        """The n-th process, as soon as it is there."""
        async with asyncio.timeout(WAIT_S):
            while len(self.links) < n:  # noqa: ASYNC110 - a launch has no event
                await asyncio.sleep(0)
        return self.links[-1]


async def test_a_launch_goes_once_round_and_tells_its_exit_once() -> None:
    owner = Owner()
    assert owner.process.state is ProcessState.STOPPED
    owner.process.launch()
    assert owner.process.state is ProcessState.STARTING
    owner.links[0].say("hello")
    assert owner.process.mark_ready() >= 0
    assert owner.process.is_ready
    owner.process.send("question")
    owner.links[0].exit(-11, "last words")
    assert owner.process.state is ProcessState.STOPPED
    assert owner.messages == ["hello"]
    assert owner.exits == [ProcessExit(-11, "last words", was_ready=True)]
    owner.process.send("to nobody")
    assert owner.links[0].sent == ["question"]


async def test_an_earlier_process_is_not_listened_to() -> None:
    owner = Owner()
    owner.process.launch()
    owner.links[0].exit(-9, "")
    owner.process.launch()
    owner.links[0].say("old")
    owner.links[0].exit(-9, "old")
    assert owner.messages == []
    assert len(owner.exits) == 1
    assert owner.process.state is ProcessState.STARTING


async def test_a_process_that_cannot_be_started_has_exited_at_once() -> None:
    owner = Owner()
    owner.failure = OSError("too many open files")
    owner.process.launch()
    (how,) = owner.exits
    assert (how.never_started, how.is_expected, how.reason) == (
        True,
        False,
        "could not be started (too many open files)",
    )
    owner.failure = None
    assert owner.process.restart()
    assert await owner.launched(1)


def test_the_backoff_doubles_up_to_its_longest_and_begins_at_once() -> None:
    policy = RestartPolicy(first_s=0.5, longest_s=5.0)
    assert [policy.delay_s(n) for n in range(6)] == [0.0, 0.5, 1.5, 3.5, 5.0, 5.0]
    assert policy.delay_s(100_000) == 5.0


async def test_restarts_wait_for_their_backoff_and_end_at_the_most() -> None:
    owner = Owner(RestartPolicy(first_s=1000.0, most=2))
    owner.process.launch()
    owner.links[0].exit(-9, "")
    assert owner.process.restart()
    (await owner.launched(2)).exit(-9, "")
    assert owner.process.restart()
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(owner.links) == 2, "the second restart waits 1000 s"
    assert not owner.process.restart()
    assert owner.process.n_restarts == 2
    owner.process.end()


async def test_a_healthy_time_ends_the_row_of_restarts() -> None:
    for healthy_s, n_restarts in ((0.0, 1), (1000.0, 2)):
        owner = Owner(replace(AT_ONCE, healthy_s=healthy_s))
        owner.process.launch()
        for n in (2, 3):
            owner.process.mark_ready()
            owner.links[-1].exit(-9, "")
            assert owner.process.restart()
            await owner.launched(n)
        assert owner.process.n_restarts == n_restarts


async def test_a_process_that_never_was_ready_was_never_healthy() -> None:
    owner = Owner(replace(AT_ONCE, most=3))
    owner.process.launch()
    for n in (2, 3, 4):
        owner.links[-1].exit(1, "")
        assert owner.process.restart()
        await owner.launched(n)
    owner.links[-1].exit(1, "")
    assert not owner.process.restart()


async def test_a_relaunch_waits_until_the_process_before_is_gone() -> None:
    owner = Owner()
    owner.process.launch()
    owner.process.mark_ready()
    owner.process.end("goodbye")
    owner.process.relaunch()
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(owner.links) == 1
    assert owner.process.state is ProcessState.ENDING
    owner.links[0].exit(0, "")
    await owner.launched(2)
    assert owner.exits == [ProcessExit(0, was_ready=False, is_expected=True)]


async def test_a_check_that_does_not_agree_prevents_a_relaunch() -> None:
    asked: list[bool] = []

    async def agree(answer: bool) -> bool:
        asked.append(answer)
        return answer

    owner = Owner()
    for answer in (False, True):
        owner.process.relaunch(functools.partial(agree, answer))
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(owner.links) == answer
    assert asked == [False, True]


async def test_one_that_is_ready_is_told_to_end_and_one_that_starts_is_killed() -> None:
    owner = Owner()
    owner.process.launch()
    owner.process.end("goodbye")
    assert owner.links[0].sent == ["kill"]
    assert await owner.process.wait_gone(WAIT_S)
    owner.process.launch()
    owner.process.mark_ready()
    owner.process.end("goodbye")
    assert owner.links[1].sent == ["goodbye"]
    owner.links[1].exit(0, "")
    assert await owner.process.wait_gone(WAIT_S)
    assert [how.is_expected for how in owner.exits] == [True, True]


async def test_one_that_does_not_end_by_the_deadline_is_killed() -> None:
    owner = Owner()
    owner.process.launch()
    owner.process.mark_ready()
    owner.process.end("goodbye", deadline_s=0.01)
    assert await owner.process.wait_gone(WAIT_S)
    assert owner.links[0].sent == ["goodbye", "kill"]
    (how,) = owner.exits
    assert (how.is_expected, how.is_killed) == (True, False)


async def test_one_that_no_kill_ends_is_told(caplog: pytest.LogCaptureFixture) -> None:
    owner = Owner()
    owner.process.launch()
    assert not await owner.process.wait_gone(0.01)
    assert "does not end" in caplog.text


async def test_an_end_takes_back_a_restart() -> None:
    owner = Owner()
    owner.process.launch()
    owner.links[0].exit(-9, "")
    owner.process.restart()
    owner.process.end()
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(owner.links) == 1
    assert owner.process.n_restarts == 0


async def test_the_exit_of_one_that_was_killed_for_a_reason_names_it() -> None:
    owner = Owner()
    owner.process.launch()
    owner.process.mark_ready()
    owner.process.kill("it hangs")
    await owner.process.wait_gone(WAIT_S)
    assert owner.exits == [ProcessExit(-9, "", "it hangs", was_ready=True, is_killed=True)]
    owner.process.launch()
    owner.process.set_reason("no such file")
    owner.links[1].exit(0, "")
    assert (owner.exits[1].reason, owner.exits[1].is_killed) == ("no such file", False)


async def test_one_that_is_not_ready_in_time_is_killed_and_one_that_is_is_not() -> None:
    owner = Owner(replace(AT_ONCE, start_s=0.01))
    owner.process.launch()
    await owner.process.wait_gone(WAIT_S)
    assert (owner.exits[0].reason, owner.exits[0].is_killed) == (TOO_SLOW, True)
    owner.process.launch()
    owner.process.mark_ready()
    await asyncio.sleep(0.03)
    assert owner.links[1].sent == []


async def test_the_prestarted_process_is_the_first_and_a_new_one_the_second() -> None:
    prestarted = PrestartedProcess("test-prestarted", echo)
    pid = prestarted.process.pid
    said: asyncio.Queue[Any] = asyncio.Queue()
    exits: list[ProcessExit] = []
    words = iter(("first", "second"))
    spawn = ChildSpawner("test-child", echo, lambda: (next(words),), prestarted)
    process: ChildSupervisor[Child] = ChildSupervisor(spawn, AT_ONCE, said.put_nowait, exits.append)
    for word in ("first", "second"):
        process.launch()
        assert process.link is not None
        assert (process.link.pid == pid) is (word == "first")
        process.send("hello")
        assert await asyncio.wait_for(said.get(), WAIT_S) == (word, "hello")
        process.mark_ready()
        process.send(None)
        assert await process.wait_gone(WAIT_S)
    assert exits == [ProcessExit(0, was_ready=True)] * 2
