"""Text processes: a slow call makes nobody wait who came after it, and whoever leaves or dies harms nobody."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ggufd.chat.process.client import TextClient, pickled
from ggufd.chat.process.pool import TextPool, _may_be_slow
from ggufd.chat.prompt import ChatPrompt
from ggufd.engine.messages.sampling import Grammar, GrammarKind
from ggufd.errors import EngineDown, InvalidRequest
from tests.chat.process.test_text_client import HANGS, SLOW, params, said
from tests.support.fakes.api_server import wait_until
from tests.support.models.tiny_model import write_tiny_model
from tests.support.models.vocabularies import demo_model

pytestmark = pytest.mark.e2e

CALL_TIMEOUT_S = 1.5
"""Of the processor's time; to start a process takes half a second of it."""


@pytest.fixture
async def pool() -> AsyncIterator[TextPool]:
    pool = TextPool(lambda: TextClient(params(HANGS), call_timeout_s=CALL_TIMEOUT_S), grow_after_s=0.05)
    await pool.start()
    yield pool
    pids = pool.pids
    await pool.stop()
    assert not any(psutil.pid_exists(pid) for pid in pids)


async def test_one_process_is_enough_where_nobody_waits_long(pool: TextPool) -> None:
    tokens = await asyncio.gather(*(pool.encode(str(number)) for number in range(50)))
    assert [await pool.decode(one) for one in tokens] == [str(number) for number in range(50)]
    assert len(pool.pids) == 1


@pytest.mark.timed
async def test_a_slow_call_makes_the_others_wait_only_until_there_is_a_second_process(pool: TextPool) -> None:
    slow = asyncio.create_task(pool.render(said("hang")))
    await asyncio.sleep(0)
    assert await pool.encode("x")
    assert not slow.done()
    started_s = time.monotonic()
    for number in range(10):
        assert await pool.encode(str(number))
    assert time.monotonic() - started_s < 1
    assert len(pool.pids) == 2
    with pytest.raises(InvalidRequest, match="took longer"):
        await slow


async def test_however_many_come_while_the_second_process_starts_there_is_no_third(pool: TextPool) -> None:
    slow = asyncio.create_task(pool.render(said("hang")))
    await asyncio.sleep(0)
    waiting = []
    while len(pool.pids) < 2:
        # One in every turn of the loop.
        waiting.append(asyncio.create_task(pool.encode(str(len(waiting)))))
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    slow.cancel()
    assert len(pool._clients) == 2


LONG = "x" * 100_000


def hangs_long() -> ChatPrompt:
    """Much text that keeps a process busy."""
    return ChatPrompt(({"role": "user", "content": LONG}, {"role": "user", "content": "hang"}))


@pytest.mark.timed
async def test_however_many_slow_texts_come_short_ones_do_not_wait_for_them(pool: TextPool) -> None:
    slow = [asyncio.create_task(pool.render(hangs_long())) for _ in range(6)]
    await asyncio.sleep(0)
    await pool.encode("until there is a second process")
    for number in itertools.count(10):
        if len(pool.pids) == 3:
            break
        assert await pool.encode(str(number))
        await asyncio.sleep(0.01)
    started_s = time.monotonic()
    for number in range(10):
        assert await pool.encode(str(number))
    assert time.monotonic() - started_s < 1
    await asyncio.gather(*slow, return_exceptions=True)
    assert [type(one.exception()) for one in slow] == [InvalidRequest] * 6
    assert len(pool._clients) == 3


async def test_long_texts_wait_for_each_other_and_are_all_answered(pool: TextPool) -> None:
    hanging = asyncio.create_task(pool.render(hangs_long()))
    await asyncio.sleep(0)
    assert await pool.encode("until there is a second process")
    rendered = await asyncio.gather(*(pool.render(said(LONG + str(number))) for number in range(4)))
    assert [one.text[-1] for one in rendered] == ["0", "1", "2", "3"]
    hanging.cancel()


@pytest.mark.parametrize(
    ("method", "args", "may_be_slow"),
    [
        ("encode", ("x",), False),
        ("encode", (LONG,), True),
        ("render", (said("x"),), False),
        ("render", (said(LONG),), True),
        ("render", (dataclasses.replace(said("x"), tools=({},)),), True),
        ("check_grammar", ("regex", "a", ""), True),
        ("check_json", ("{}", "[]"), False),
    ],
)
def test_what_may_be_slow(method: str, args: tuple[Any, ...], may_be_slow: bool) -> None:
    assert _may_be_slow(method, args, len(pickled(args))) is may_be_slow


async def test_what_comes_again_waits_for_no_process(pool: TextPool) -> None:
    tokens = await pool.encode("Hello there")
    rendered = await pool.render(said("Hello"))
    slow = asyncio.create_task(pool.render(said("hang")))
    await asyncio.sleep(0)
    again = await pool.encode("Hello there")
    assert again == tokens
    again.append(0)
    assert await pool.encode("Hello there") == tokens
    assert await pool.render(said("Hello")) == rendered
    assert not slow.done()
    assert len(pool.pids) == 1
    assert await pool.encode("Hello there", add_special=False) == tokens
    assert len(pool.pids) == 2
    slow.cancel()


async def test_a_grammar_that_was_taken_need_not_wait_behind_those_that_take_long(pool: TextPool) -> None:
    known = Grammar(GrammarKind.REGEX, "a+")
    await pool.check_grammar(known)
    slow = [asyncio.create_task(pool.render(hangs_long())) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.wait_for(pool.check_grammar(known), CALL_TIMEOUT_S / 2)
    assert not any(one.done() for one in slow)
    for one in slow:
        one.cancel()


async def test_nobody_learns_what_another_sent_where_that_is_not_shared() -> None:
    is_shared = True
    pool = TextPool(lambda: TextClient(params(HANGS)), grow_after_s=0.05, is_shared=lambda: is_shared)
    await pool.start()
    await pool.encode("Hello there")
    slow = asyncio.create_task(pool.render(said("hang")))
    await asyncio.sleep(0)
    await pool.encode("Hello there")
    assert len(pool.pids) == 1
    is_shared = False
    await pool.encode("Hello there")
    assert len(pool.pids) == 2
    slow.cancel()
    await pool.stop()


async def test_what_a_template_says_of_the_time_is_not_remembered() -> None:
    pool = TextPool(lambda: TextClient(params("{{ strftime_now('%H:%M:%S.%f') }}{{ messages[0].content }}")))
    await pool.start()
    texts = [(await pool.render(said("Hello"))).text for _ in range(2)]
    await pool.stop()
    assert texts[0] != texts[1]


async def test_one_who_leaves_a_slow_call_does_not_let_others_in_behind_it(pool: TextPool) -> None:
    slow = asyncio.create_task(pool.render(said("hang")))
    await asyncio.sleep(0.01)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow
    assert await pool.encode("x")
    assert len(pool.pids) == 2


async def test_one_who_leaves_while_waiting_is_passed_over(pool: TextPool) -> None:
    slow = asyncio.create_task(pool.render(said("hang")))
    await asyncio.sleep(0)
    leaving = [asyncio.create_task(pool.encode("left")) for _ in range(3)]
    staying = asyncio.create_task(pool.encode("stayed"))
    await asyncio.sleep(0)
    for one in leaving:
        one.cancel()
    assert await pool.decode(await staying) == "stayed"
    slow.cancel()


async def test_the_end_is_told_to_those_who_wait(pool: TextPool) -> None:
    waiting = [asyncio.create_task(pool.render(said("hang"))) for _ in range(3)]
    await asyncio.sleep(0.01)
    await pool.stop()
    for one in waiting:
        with pytest.raises(EngineDown):
            await one
    with pytest.raises(EngineDown):
        await pool.encode("late")


async def test_a_second_process_that_cannot_start_is_done_without() -> None:
    made: list[TextClient] = []

    def new_client() -> TextClient:
        made.append(TextClient(params(HANGS if not made else "{% for %}"), call_timeout_s=0.5))
        return made[-1]

    pool = TextPool(new_client, grow_after_s=0.01)
    await pool.start()
    slow = asyncio.create_task(pool.render(said("hang")))
    await asyncio.sleep(0)
    assert await pool.encode("x")
    with pytest.raises(InvalidRequest):
        await slow
    await pool.stop()
    assert len(made) == 2


async def test_a_second_process_with_another_vocabulary_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "model.gguf"
    file.symlink_to(demo_model())
    pool = TextPool(lambda: TextClient(params(SLOW, str(file)), call_timeout_s=60), grow_after_s=0.05)
    await pool.start()
    tokens = await pool.encode("Hello there")
    file.unlink()
    write_tiny_model(file)
    slow = [asyncio.create_task(pool.render(said("slow"))) for _ in range(4)]
    await asyncio.sleep(0)
    assert await pool.decode(tokens) == "Hello there"
    assert [(await one).text for one in slow] == ["slow"] * 4
    # The second process may start later than all that has an answer.
    await asyncio.to_thread(wait_until, lambda: "model.gguf is another file than was loaded before" in caplog.text)
    assert len(pool.pids) == 1
    await pool.stop()
