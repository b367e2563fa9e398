"""Two real servers that tell each other, through a directory, what keys use of their limits: one key has them once."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ggufd.api.peers.gate import TOKEN_HEADER
from ggufd.cluster.directory.directory import Directory
from ggufd.cluster.directory.limits import AccountUse, UsedElsewhere
from ggufd.cluster.replicas import ReplicaLoad
from ggufd.cluster.serving.launch import Launch
from ggufd.cluster.serving.replica import EngineReplica
from ggufd.keys import file

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.timeout(600)]

TOKEN = "a-token-of-a-cluster-of-two-servers-only"
WAIT_S = 120.0
LIMITS: dict[str, dict[str, Any]] = {
    "tokens": {"tokens_per_minute": 200},
    "running": {"max_running": 1},
    "waiting": {"max_running": 1, "max_waiting": 0},
}


class LocalDirectory:
    """The directory in this process; it may be away."""

    def __init__(self) -> None:
        self.directory = Directory()
        self.n_beats: Counter[str] = Counter()
        self.is_gone = False

    async def beat(
        self, replica_id: str, url: str, load: ReplicaLoad, served: Mapping[str, float], uses: Mapping[str, AccountUse]
    ) -> tuple[Mapping[str, float], Mapping[str, UsedElsewhere]]:
        if self.is_gone:
            raise ConnectionError("gone")
        self.n_beats[replica_id] += 1
        now_s = time.monotonic()
        others = self.directory.beat(replica_id, url, load, served, now_s)
        return others, self.directory.share_limits(replica_id, uses, now_s)

    async def leave(self, replica_id: str) -> None:
        self.directory.leave(replica_id)

    async def settled(self) -> None:
        """Both servers have told what they do now, and were told what the other does."""
        before = self.n_beats.copy()
        await until(lambda: all(self.n_beats[name] >= before[name] + 3 for name in "ab"))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.05)


class Pair:
    """Two servers, and who asks them with which key."""

    def __init__(self, servers: dict[str, EngineReplica], directory: LocalDirectory, keys: dict[str, str]) -> None:
        self.servers = servers
        self.directory = directory
        self._keys = keys
        self._http = httpx.AsyncClient(headers={TOKEN_HEADER: TOKEN}, timeout=WAIT_S, trust_env=False)

    async def close(self) -> None:
        await self._http.aclose()

    def _asked(self, key: str, n_tokens: int, **more: Any) -> dict[str, Any]:
        body = {"prompt": "One, two,", "max_tokens": n_tokens, "ignore_eos": True, "temperature": 0, **more}
        return {"json": body, "headers": {"x-api-key": self._keys[key]}}

    async def ask(self, name: str, key: str, n_tokens: int = 2) -> httpx.Response:
        url = f"{self.servers[name].url}/v1/completions"
        return await self._http.post(url, **self._asked(key, n_tokens))

    @asynccontextmanager
    async def long_answer(self, name: str, key: str) -> AsyncIterator[None]:
        """A stream that has begun, and goes on until this is left."""
        url = f"{self.servers[name].url}/v1/completions"
        async with self._http.stream("POST", url, **self._asked(key, 3000, stream=True)) as answer:
            assert answer.status_code == 200
            # An iterator that nobody holds would end the stream.
            lines = answer.aiter_lines()
            async for line in lines:
                if line.startswith("data: "):
                    break
            yield

    async def waiting(self, name: str, key: str) -> int:
        url = f"{self.servers[name].url}/v1/queue"
        answer = await self._http.get(url, headers={"x-api-key": self._keys[key]})
        waiting: int = answer.json()["waiting"]
        return waiting


@asynccontextmanager
async def pair_of(folder: Path) -> AsyncIterator[Pair]:
    path = folder / "keys.toml"
    keys = {name: file.add(path, name, limits) for name, limits in LIMITS.items()}
    context = {"parallel": 2, "ctx_size": 8192, "flash_attn": "on", "threads": 1}
    tables = {"context": context, "server": {"api_key_file": str(path)}}
    directory = LocalDirectory()
    async with AsyncExitStack() as stack:
        servers = {name: EngineReplica(name, Launch(tables, TOKEN), directory, drain_s=0) for name in "ab"}
        for one in servers.values():
            stack.push_async_callback(one.stop)
            await one.start()
        pair = Pair(servers, directory, keys)
        stack.push_async_callback(pair.close)
        yield pair


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with pair_of(tmp_path) as made:
        yield made


def refusal_of(answer: httpx.Response) -> str:
    """The words of a 429, whose Retry-After is in them."""
    assert answer.status_code == 429
    error = answer.json()["error"]
    assert error["type"] == "rate_limit_error"
    assert f"try again in {answer.headers['retry-after']} s" in error["message"]
    message: str = error["message"]
    return message


async def test_a_key_has_its_limits_once_over_both(pair: Pair) -> None:
    """One test: what takes long is the start of two servers."""
    await tokens_used_at_one_are_used_at_the_other(pair)
    await what_runs_at_one_keeps_the_other_waiting(pair)
    await a_request_beyond_those_that_may_wait_is_refused_until_the_directory_is_gone(pair)


async def tokens_used_at_one_are_used_at_the_other(pair: Pair) -> None:
    assert (await pair.ask("b", "tokens")).status_code == 200
    assert (await pair.ask("a", "tokens", 260)).status_code == 200
    here = refusal_of(await pair.ask("a", "tokens"))
    await pair.directory.settled()
    there = refusal_of(await pair.ask("b", "tokens"))
    assert there.startswith("this key has used its 200 tokens per minute; try again in ")
    assert there.partition("in ")[0] == here.partition("in ")[0]
    assert (await pair.ask("b", "running")).status_code == 200, "another key"


async def what_runs_at_one_keeps_the_other_waiting(pair: Pair) -> None:
    async with pair.long_answer("a", "running"):
        await pair.directory.settled()
        other = asyncio.create_task(pair.ask("b", "running"))
        await pair.directory.settled()
        assert not other.done()
        assert await pair.waiting("b", "running") == 1
        assert (await pair.ask("a", "waiting")).status_code == 200, "another key has a slot of its own"
    assert (await other).status_code == 200


async def a_request_beyond_those_that_may_wait_is_refused_until_the_directory_is_gone(pair: Pair) -> None:
    await pair.directory.settled()
    async with pair.long_answer("a", "waiting"):
        await pair.directory.settled()
        words = refusal_of(await pair.ask("b", "waiting"))
        assert words.startswith("you may have 0 requests waiting, and have 0; ")
        assert refusal_of(await pair.ask("a", "waiting")).startswith("you may have 0 requests waiting, and have 0; ")
        pair.directory.is_gone = True
        async with asyncio.timeout(WAIT_S):
            while (answer := await pair.ask("b", "waiting")).status_code == 429:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.2)
        assert answer.status_code == 200, "each counts alone then"
