"""The load of the soak test: clients of every kind at once, each with a word of its own, and a hand that kills engines.

Knows only HTTP and process ids. Every request must end, in an answer or in an error that is allowed: `Tally` counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from ggufd.chat.process import worker
from tests.support.programs.live_server import LiveServer

MAY_FAIL = {"engine_down", "queue_full", "queue_timeout"}
"""Errors that are due: the engine was killed, or the house is full. Nothing else may happen to a good request."""

_N_GOOD = 30

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"

BAD: tuple[tuple[str, Any, int], ...] = (
    (COMPLETIONS, {"prompt": "x", "temperature": "hot"}, 400),
    (COMPLETIONS, {"prompt": "word " * 20_000}, 400),
    (COMPLETIONS, {"prompt": [1, 10**9]}, 400),
    (CHAT, {"messages": [{"role": "nobody"}]}, 400),
    (CHAT, {"messages": []}, 400),
    (COMPLETIONS, {"prompt": "x", "grammar": "root ::= ("}, 400),
    (COMPLETIONS, {"prompt": "x", "banned_regex": ["("]}, 400),
    ("/v1/nothing", {}, 404),
)


@dataclass
class Tally:
    """How many requests ended in what way, all clients together."""

    ends: Counter[str] = field(default_factory=Counter)
    n_started: int = 0
    latest_s: float = 0.0

    @property
    def n_good(self) -> int:
        return self.ends["answered"] + self.ends["streamed"] + self.ends["swiped"]

    @property
    def n_ended(self) -> int:
        return self.ends.total()

    def end(self, how: str, started_s: float) -> None:
        self.ends[how] += 1
        self.latest_s = max(self.latest_s, time.monotonic() - started_s)


@dataclass
class Client:
    """One who repeats a word and expects a model that loves to copy to go on with it."""

    word: str
    others: list[str]
    chance: random.Random
    tally: Tally
    is_refused: bool = False
    n_own: int = 0
    n_whole: int = 0
    foreign: list[str] = field(default_factory=list)

    async def run(self, http: httpx.AsyncClient, deadline_s: float) -> None:
        while time.monotonic() < deadline_s:
            how = self.chance.choices(
                [self._whole, self._streamed, self._swiped, self._leave_soon, self._bad], weights=[3, 6, 2, 3, 1]
            )[0]
            await self._count(how, http)
            if self.is_refused:
                await asyncio.sleep(1)

    async def _count(self, how: Callable[[httpx.AsyncClient], Awaitable[str]], http: httpx.AsyncClient) -> None:
        self.tally.n_started += 1
        started_s = time.monotonic()
        end = await how(http)
        self.is_refused = end in MAY_FAIL
        self.tally.end(end, started_s)

    def _body(self) -> dict[str, Any]:
        return {
            "prompt": " ".join([self.word] * self.chance.randint(3, 9)),
            "max_tokens": self.chance.randint(6, 10),
            "temperature": self.chance.choice([0, 0.5]),
            "n": self.chance.choice([1, 1, 1, 2]),
        }

    async def _whole(self, http: httpx.AsyncClient) -> str:
        return self._judge(await http.post(COMPLETIONS, json=self._body()))

    async def _swiped(self, http: httpx.AsyncClient) -> str:
        """The same prompt again and again, as one does who likes no answer."""
        body = {**self._body(), "n": 1, "temperature": 0.8}
        for seed in range(self.chance.randint(1, 3)):
            how = self._judge(await http.post(COMPLETIONS, json={**body, "seed": seed}))
            if how != "answered":
                return how
        return "swiped"

    async def _streamed(self, http: httpx.AsyncClient) -> str:
        """Read on, slowly at times, or leave after some chunks."""
        leaves_after = self.chance.choice([None, None, 0, 1, 5])
        pause_s = self.chance.choice([0, 0, 0, 0.05])
        texts: dict[int, str] = {}
        async with http.stream("POST", COMPLETIONS, json={**self._body(), "stream": True}) as response:
            if response.status_code != 200:
                await response.aread()
                return self._judge(response)
            n_chunks = 0
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    self._take(*texts.values())
                    return "streamed"
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        return _due(event["error"])
                    for choice in event["choices"]:
                        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
                    n_chunks += 1
                    await asyncio.sleep(pause_s)
                    if n_chunks == leaves_after:
                        break
        if leaves_after is None:
            raise AssertionError("a stream ended without [DONE] and without an error")
        self._look(*texts.values())
        return "left while streaming"

    async def _leave_soon(self, http: httpx.AsyncClient) -> str:
        """Leave while waiting, while the prompt is read, or while the answer is made."""
        with contextlib.suppress(httpx.TimeoutException):
            return self._judge(await http.post(COMPLETIONS, json=self._body(), timeout=self.chance.uniform(0.01, 0.6)))
        return "left"

    async def _bad(self, http: httpx.AsyncClient) -> str:
        path, body, expected = self.chance.choice(BAD)
        response = await http.post(path, json=body)
        if response.status_code == 503:
            return _due(response.json()["error"])
        assert response.status_code == expected, f"{path} {body} -> {response.status_code} {response.text}"
        return "refused rightly"

    def _judge(self, response: httpx.Response) -> str:
        if response.status_code == 200:
            self._take(*(choice["text"] for choice in response.json()["choices"]))
            return "answered"
        assert response.status_code == 503, f"{response.status_code} {response.text}"
        return _due(response.json()["error"])

    def _take(self, *texts: str) -> None:
        self.n_whole += len(texts)
        self.n_own += sum(self.word in text for text in texts)
        self._look(*texts)

    def _look(self, *texts: str) -> None:
        """Keep texts with somebody else's word in them."""
        self.foreign += [text for text in texts if any(word in text for word in self.others)]


def _due(error: dict[str, Any]) -> str:
    assert error["code"] in MAY_FAIL, error
    return str(error["code"])


def make_clients(n: int, tally: Tally) -> list[Client]:
    """Clients whose words share no beginning that a tokenizer could take for another."""
    chance = random.Random(5)
    words = ["".join(chance.choices("bcdfgklmnprtvz", k=3)) + str(chance.randint(100, 999)) for _ in range(n)]
    assert len(set(words)) == n
    return [
        Client(word, [other for other in words if other != word], random.Random(number), tally)
        for number, word in enumerate(words)
    ]


async def kill_engines(server: LiveServer, tally: Tally, lifetime_s: float, deadline_s: float) -> int:
    """Kill every engine so long after it is ready, and each third time the text process too; how many that were.

    An engine first gets to answer some: on a busy machine most of a short life goes by with reading prompts. But one
    of them dies in any case.
    """
    n_killed = 0
    half_s = (time.monotonic() + deadline_s) / 2
    while await _lives_on(server, tally, lifetime_s, deadline_s, half_s if n_killed == 0 else math.inf):
        engine = server.engine
        if n_killed % 3 == 2:
            for child in server.children():
                if child.name() == worker.NAME:
                    child.kill()
        engine.kill()
        n_killed += 1
        await asyncio.sleep(1)
    return n_killed


async def _lives_on(server: LiveServer, tally: Tally, lifetime_s: float, deadline_s: float, latest_s: float) -> bool:
    """Wait for the end of an engine's life, at `latest_s` by the clock; False when the test ends before."""
    ready_s: float | None = None
    n_good = 0
    while time.monotonic() < deadline_s:
        await asyncio.sleep(0.2)
        if ready_s is None and await _is_ready(server):
            ready_s, n_good = time.monotonic(), tally.n_good
        elif ready_s is not None:
            has_lived = time.monotonic() - ready_s > lifetime_s and tally.n_good - n_good > _N_GOOD
            if has_lived or time.monotonic() > latest_s:
                return True
    return False


async def _is_ready(server: LiveServer) -> bool:
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=10) as http:
        return (await http.get("/health")).status_code == 200


@dataclass
class Footprint:
    """Resident MiB and open files of the API process, sampled; compared by medians of parts of the time."""

    mib: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    async def watch(self, pid: int, deadline_s: float) -> None:
        process = psutil.Process(pid)
        while time.monotonic() < deadline_s:
            self.mib.append(process.memory_info().rss / 2**20)
            self.files.append(process.num_fds())
            await asyncio.sleep(0.5)

    @property
    def growth_mib(self) -> float:
        """From the middle third of the time to the last: what is filled once is full by then."""
        third = len(self.mib) // 3
        return statistics.median(self.mib[2 * third :]) - statistics.median(self.mib[third : 2 * third])
