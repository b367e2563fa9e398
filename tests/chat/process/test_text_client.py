"""The text process: answers in order, dies without harm to others, comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from ggufd.chat.process.calls import TextCalls
from ggufd.chat.process.client import TextClient
from ggufd.chat.process.text import TextModel
from ggufd.chat.process.worker import Call, Refusal, answer
from ggufd.chat.prompt import ChatPrompt, TextParams
from ggufd.engine.messages.sampling import Grammar, GrammarKind
from ggufd.errors import EngineDown, EngineFailure, InvalidRequest, ModelError, Unsupported
from ggufd.llama.params import ModelParams
from ggufd.processes.child import Child
from tests.support.models.tiny_bert import write_tiny_bert
from tests.support.models.tiny_model import write_tiny_model
from tests.support.models.vocabularies import demo_model, vocabulary

pytestmark = pytest.mark.e2e

HANGS = (
    "{% for m in messages %}{{ m.content }}{% endfor %}{% if messages[-1].content == 'hang' %}"
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
)
SLOW = (
    "{% for m in messages %}{{ m.content }}{% endfor %}{% if messages[-1].content == 'slow' %}"
    "{% for a in range(600) %}{% for b in range(9999) %}{% endfor %}{% endfor %}{% endif %}"
)
HOARDS = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if messages[-1].content == 'hoard' %}{% set x = ('x' * 10 ** 10)[:1] %}{% endif %}"
)
HUGE = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if messages[-1].content == 'huge' %}{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}{% endif %}"
)


def params(template: str | None = None, path: str | None = None) -> TextParams:
    return TextParams(ModelParams(path=path or demo_model()), template)


def said(text: str) -> ChatPrompt:
    return ChatPrompt(({"role": "user", "content": text},))


@contextlib.asynccontextmanager
async def running(client: TextCalls) -> AsyncIterator[TextCalls]:
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


async def killed(client: TextClient) -> None:
    """Kill the process from outside and wait until its death was seen."""
    pid = client.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while client.pid == pid:  # noqa: ASYNC110 - nothing tells a caller that the process died
        await asyncio.sleep(0.005)


async def stopped(pid: int) -> None:
    """Let the process stand still, and wait until it does."""
    os.kill(pid, signal.SIGSTOP)
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.005)


async def test_every_call() -> None:
    async with running(TextClient(params())) as client:
        tokens = await client.encode("Hello <|im_end|>")
        assert tokens[-1] == 2
        assert await client.decode(tokens) == "Hello <|im_end|>"
        assert b"".join(await client.pieces(tokens)) == b"Hello <|im_end|>"
        assert (await client.render(said("Hi"))).text.endswith("Hi<|im_end|>\n<|im_start|>assistant\n")
        assert client.info.n_vocab == 49152
        await client.check_grammar(Grammar(GrammarKind.GBNF, 'root ::= "a"'))
        with pytest.raises(InvalidRequest, match="root") as caught:
            await client.check_grammar(Grammar(GrammarKind.GBNF, 'x ::= "a"'))
        assert caught.value.param == "grammar"
        await client.check_json('{"type": "array"}', "[]")
        with pytest.raises(EngineFailure, match="#/type"):
            await client.check_json('{"type": "array"}', "{}")
        with pytest.raises(InvalidRequest, match="'#/required'"):
            await client.check_grammar(Grammar(GrammarKind.JSON_SCHEMA, '{"required": [1]}'))
        with pytest.raises(InvalidRequest, match="no token"):
            await client.decode([10**9])
        with pytest.raises(InvalidRequest, match="surrogate"):
            await client.encode("\ud800")


async def test_answers_find_their_callers() -> None:
    async with running(TextClient(params())) as client:
        texts = [f"text {i}" for i in range(200)]
        tokens = await asyncio.gather(*map(client.encode, texts))
        assert await asyncio.gather(*map(client.decode, tokens)) == texts


async def test_a_hanging_call_is_refused_and_those_behind_it_are_answered() -> None:
    async with running(TextClient(params(HANGS), call_timeout_s=0.5)) as client:
        hanging = asyncio.ensure_future(client.render(said("hang")))
        behind = [asyncio.ensure_future(client.render(said(f"fine {i}"))) for i in range(5)]
        with pytest.raises(InvalidRequest, match=r"could not be processed: it took longer than 0\.5 s"):
            await hanging
        assert [r.text for r in await asyncio.gather(*behind)] == [f"fine {i}" for i in range(5)]


async def test_a_grammar_that_takes_too_long_is_refused_as_one() -> None:
    costly = Grammar(GrammarKind.REGEX, "|".join(f"value {i * 7919}" for i in range(15_000)))
    async with running(TextClient(params(), call_timeout_s=0.01)) as client:
        with pytest.raises(InvalidRequest, match=r"schema could not be compiled: it took longer than 0\.01 s"):
            await client.check_grammar(costly)


async def test_the_time_limit_does_not_count_the_wait() -> None:
    async with running(TextClient(params(HANGS), call_timeout_s=0.4)) as client:
        calls = [client.render(said("hang")), client.render(said("hang")), client.encode("fine")]
        first, second, fine = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(first, InvalidRequest)
        assert isinstance(second, InvalidRequest)
        assert isinstance(fine, list)


async def test_a_call_that_others_keep_from_the_processor_has_more_time() -> None:
    async with running(client := TextClient(params(), call_timeout_s=1.0)):
        assert client.pid is not None
        await stopped(client.pid)
        call = asyncio.ensure_future(client.encode("late"))
        await asyncio.sleep(1.5)
        assert not call.done()
        os.kill(client.pid, signal.SIGCONT)
        assert await client.decode(await call) == "late"


async def test_one_that_never_gets_it_is_given_up() -> None:
    async with running(client := TextClient(params(), call_timeout_s=0.1)):
        assert client.pid is not None
        await stopped(client.pid)
        with pytest.raises(InvalidRequest, match="took longer"):
            await client.encode("never")


async def test_a_process_killed_from_outside_costs_nobody_anything() -> None:
    client = TextClient(params(HANGS), call_timeout_s=0.7)
    async with running(client):
        hanging = asyncio.ensure_future(client.render(said("hang")))
        behind = asyncio.ensure_future(client.encode("behind"))
        await asyncio.sleep(0.05)
        await killed(client)
        meanwhile = asyncio.ensure_future(client.encode("meanwhile"))
        # The call that was worked on is tried once more, and then hangs by its own doing.
        with pytest.raises(InvalidRequest, match="took longer"):
            await hanging
        assert await client.decode(await behind) == "behind"
        assert await client.decode(await meanwhile) == "meanwhile"


async def test_an_answer_that_comes_with_the_time_limit_costs_the_next_call_nothing() -> None:
    client = TextClient(params(SLOW), call_timeout_s=30)
    async with running(client):
        first = asyncio.ensure_future(client.encode("first"))
        second = asyncio.ensure_future(client.render(said("slow")))
        await asyncio.sleep(0)
        assert client._process.link is not None
        assert client._process.link._process.conn.poll(30)
        # The limit passes for the first call while its answer waits for the event loop.
        client._overrun()
        assert await client.decode(await first) == "first"
        assert (await second).text == "slow"


async def test_an_idle_process_that_dies_comes_back() -> None:
    client = TextClient(params())
    async with running(client):
        await client.encode("warm")
        await killed(client)
        assert await client.decode(await client.encode("back")) == "back"


async def test_a_model_that_is_gone_is_said_and_one_that_is_back_is_used(tmp_path: Path) -> None:
    link = tmp_path / "model.gguf"
    link.symlink_to(demo_model())
    client = TextClient(params(path=str(link)), backoff_s=0.001)
    async with running(client):
        link.unlink()
        await killed(client)
        with pytest.raises(EngineDown, match=r"does not start: .*could not load"):
            await client.encode("gone")
        with pytest.raises(EngineDown, match="not running"):
            await client.encode("still gone")
        link.symlink_to(demo_model())
        async with asyncio.timeout(30):
            while client.pid is None:  # noqa: ASYNC110 - nothing tells a caller that it is back
                await asyncio.sleep(0.01)
        assert await client.decode(await client.encode("back")) == "back"


async def test_a_restart_refuses_another_vocabulary_than_the_first_one(tmp_path: Path) -> None:
    """The engine goes on with the tokens of the file that was loaded first."""
    file = tmp_path / "model.gguf"
    file.symlink_to(demo_model())
    client = TextClient(params(path=str(file)), backoff_s=0.001)
    async with running(client):
        file.unlink()
        write_tiny_model(file)
        await killed(client)
        with pytest.raises(EngineDown, match=r"model\.gguf is another file than was loaded before: start the server"):
            await client.encode("other tokens")
        file.unlink()
        shutil.copyfile(demo_model(), file)
        async with asyncio.timeout(30):
            while client.pid is None:  # noqa: ASYNC110 - nothing tells a caller that it is back
                await asyncio.sleep(0.01)
        assert await client.decode(await client.encode("a copy is the same")) == "a copy is the same"


async def test_a_caller_who_left_disturbs_nobody() -> None:
    async with running(TextClient(params(HANGS), call_timeout_s=0.4)) as client:
        hanging = asyncio.ensure_future(client.render(said("hang")))
        await asyncio.sleep(0.05)
        hanging.cancel()
        assert await client.decode(await client.encode("next")) == "next"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded by the kernel where it can be")
async def test_a_template_cannot_take_the_machines_memory() -> None:
    async with running(TextClient(params(HOARDS))) as client:
        with pytest.raises(InvalidRequest, match="memory"):
            await client.render(said("hoard"))
        assert (await client.render(said("fine"))).text == "fine"


async def test_a_template_cannot_write_without_end() -> None:
    async with running(TextClient(params(HUGE))) as client:
        with pytest.raises(InvalidRequest, match="more than 16000000 characters"):
            await client.render(said("huge"))


async def test_deeply_nested_data_is_refused() -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    async with running(TextClient(params())) as client:
        chat = ChatPrompt(({"role": "user", "content": "x", "extra": nested},))
        with pytest.raises(InvalidRequest, match="nested too deeply"):
            await client.render(chat)
        assert await client.encode("fine")
        while nested:  # taken apart by hand: freeing it recursively is its own adventure
            nested = nested.pop()  # type: ignore[assignment]


@pytest.mark.parametrize(("path", "message"), [("/nonexistent.gguf", "could not load"), (__file__, "could not load")])
async def test_a_file_that_is_no_model_says_so(path: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        await TextClient(params(path=path)).start()


@pytest.mark.skipif(sys.platform == "win32", reason="tells how a process ended by its signal")
async def test_a_vocabulary_that_llama_cpp_aborts_over_is_refused_at_the_start_in_one_line(tmp_path: Path) -> None:
    path = write_tiny_bert(tmp_path / "m.gguf")
    # Without a name for its [CLS] llama.cpp takes the one of BERT itself, which lies beyond this vocabulary.
    path.write_bytes(path.read_bytes().replace(b"ggml.bos_token_id", b"ggml.bos_token_xx"))
    with pytest.raises(ModelError, match=r"cannot use its vocabulary .*; convert the model again$") as caught:
        await TextClient(params(path=str(path))).start()
    assert "\n" not in caught.value.message


async def test_a_broken_replacing_template_says_so() -> None:
    with pytest.raises(ModelError, match="no valid Jinja"):
        await TextClient(params("{% for %}")).start()


async def test_a_template_that_hangs_while_loading_is_a_startup_error() -> None:
    hangs = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ModelError, match="could not start: it took too long"):
        await TextClient(params(hangs), start_timeout_s=1.5).start()


async def test_a_process_that_cannot_be_started_says_so() -> None:
    def refuse(*_: object) -> Child:
        raise OSError(24, "Too many open files")

    client = TextClient(params())
    client._process.spawn = refuse
    with pytest.raises(ModelError, match=r"^The text process could not be started \(.*Too many open files\)$"):
        await client.start()
    await client.stop()


async def test_one_that_cannot_be_started_again_is_tried_again() -> None:
    client = TextClient(params(), backoff_s=0.001)
    async with running(client):
        spawn, n_refused = client._process.spawn, 0

        def refuse(*told: Any) -> Child:
            nonlocal n_refused
            n_refused += 1
            if n_refused > 2:
                return spawn(*told)
            raise OSError(24, "Too many open files")

        client._process.spawn = refuse
        await killed(client)
        assert await client.decode(await client.encode("back")) == "back"
        assert n_refused == 3


async def test_before_the_start_calls_are_refused() -> None:
    client = TextClient(params())
    with pytest.raises(EngineDown):
        await client.encode("early")
    await client.stop()


async def test_a_start_may_be_given_up() -> None:
    client = TextClient(params())
    starting = asyncio.ensure_future(client.start())
    await asyncio.sleep(0.05)
    await client.stop()
    with pytest.raises(asyncio.CancelledError):
        await starting


async def test_weights_are_never_loaded() -> None:
    whole = ModelParams(path=demo_model(), split_mode="none", main_gpu=7, tensor_split=(1.0,))
    async with running(TextClient(TextParams(whole))) as client:
        assert await client.encode("fine")


async def test_after_the_end_calls_are_refused() -> None:
    client = TextClient(params(HANGS))
    await client.start()
    hanging = asyncio.ensure_future(client.render(said("hang")))
    await asyncio.sleep(0.05)
    pid = client.pid
    await client.stop()
    with pytest.raises(EngineDown):
        await hanging
    with pytest.raises(EngineDown):
        await client.encode("late")
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.timed
async def test_a_round_trip_is_short() -> None:
    async with running(TextClient(params())) as client:
        times = []
        for _ in range(200):
            begin = time.perf_counter()
            await client.encode("Hello there, how are you?")
            times.append(time.perf_counter() - begin)
        # About 0.15 ms on an idle machine; the median of a busy one stays far below this.
        assert sorted(times)[100] < 0.005


@pytest.mark.parametrize("name", ["deepseek-llm", "deepseek-coder", "falcon", "llama-spm"])
async def test_unbroken_runs_harm_nobody(name: str) -> None:
    """50,000 identical characters overflow a normal stack in some of llama.cpp's tokenizers."""
    async with running(TextClient(params(path=vocabulary(name)))) as client:
        calls = [client.encode("a" * 50_000), client.encode("fine")]
        run, fine = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(run, (list, InvalidRequest))
        assert isinstance(fine, list)


class _Failing:
    """Stands for a `TextModel` whose method raises."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def encode(self, text: str) -> list[int]:
        raise self._error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Unsupported("no infill", param="suffix"), "unsupported", "no infill"),
        (MemoryError(), "invalid_value", "memory"),
        (RecursionError(), "invalid_value", "nested too deeply"),
        (KeyError("x"), "internal_error", "KeyError"),
    ],
)
def test_whatever_a_call_raises_becomes_a_refusal(error: Exception, code: str, said: str) -> None:
    refusal = answer(cast(TextModel, _Failing(error)), Call(7, "encode", ("x",), {}))
    assert isinstance(refusal, Refusal)
    assert (refusal.call_id, refusal.code) == (7, code)
    assert said in refusal.message
    assert refusal.param == getattr(error, "param", None)


def test_the_api_process_imports_neither_llama_cpp_nor_numpy() -> None:
    code = (
        "import sys, ggufd.chat.process.client; sys.exit(bool({'llama_cpp', 'numpy', 'llguidance'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_text_process_imports_no_web_framework() -> None:
    code = (
        "import sys, ggufd.chat.process.worker, ggufd.chat.process.text;"
        "sys.exit(bool({'fastapi', 'pydantic', 'uvicorn', 'llguidance'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
