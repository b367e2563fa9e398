"""Sixteen clients on four slots, leaving at random, each with a word of its own that nobody else may ever read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import pytest

from tests.live_server import LiveServer, live_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

N_CLIENTS = 16
SOAK_S = 20.0


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    # One thread: two that wait for each other stand still on a machine that has other work, and this is no race.
    with live_server("--ctx-size", "4096", "--parallel", "4", "--threads", "1") as running:
        yield running


@dataclass
class Client:
    """One who repeats a word and expects a model that loves to copy to go on with it."""

    word: str
    others: list[str]
    chance: random.Random
    n_whole: int = 0
    n_left: int = 0
    n_own: int = 0
    texts: list[str] = field(default_factory=list)

    async def run(self, http: httpx.AsyncClient, deadline: float) -> None:
        while time.monotonic() < deadline:
            body = {
                "prompt": " ".join([self.word] * self.chance.randint(8, 40)),
                "max_tokens": self.chance.randint(6, 16),
                "temperature": self.chance.choice([0, 0.5]),
                "n": self.chance.choice([1, 1, 1, 2]),
            }
            how = self.chance.choice([self._whole, self._streamed, self._streamed, self._leave_soon])
            await how(http, body)

    async def _whole(self, http: httpx.AsyncClient, body: dict[str, object]) -> None:
        response = await http.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        for choice in response.json()["choices"]:
            self._finish(choice["text"])

    async def _streamed(self, http: httpx.AsyncClient, body: dict[str, object]) -> None:
        """Read on, or leave after some chunks."""
        leaves_after = self.chance.choice([None, 0, 1, 5])
        texts: dict[int, str] = {}
        async with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            assert response.status_code == 200
            n_chunks = 0
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                for choice in event["choices"]:
                    texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
                n_chunks += 1
                if n_chunks == leaves_after:
                    break
            else:
                for text in texts.values():
                    self._finish(text)
                return
        self.n_left += 1
        self.texts += texts.values()

    async def _leave_soon(self, http: httpx.AsyncClient, body: dict[str, object]) -> None:
        """Leave while waiting, while the prompt is read, or while the answer is made."""
        with contextlib.suppress(httpx.TimeoutException):
            await http.post("/v1/completions", json=body, timeout=self.chance.uniform(0.01, 0.6))
        self.n_left += 1

    def _finish(self, text: str) -> None:
        self.n_whole += 1
        self.n_own += self.word in text
        self.texts.append(text)

    def foreign(self) -> list[str]:
        """Texts with somebody else's word in them."""
        return [text for text in self.texts if any(word in text for word in self.others)]


def make_clients() -> list[Client]:
    chance = random.Random(5)
    words = ["".join(chance.choices("bcdfgklmnprtvz", k=3)) + str(chance.randint(100, 999)) for _ in range(N_CLIENTS)]
    return [
        Client(word, [other for other in words if other != word], random.Random(number))
        for number, word in enumerate(words)
    ]


async def test_nobody_reads_anothers_text_and_every_slot_is_free_at_the_end(server: LiveServer) -> None:
    clients = make_clients()
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits, trust_env=False) as http:
        deadline = time.monotonic() + SOAK_S
        await asyncio.gather(*(client.run(http, deadline) for client in clients))
        assert [client.foreign() for client in clients] == [[]] * N_CLIENTS
        n_whole = sum(client.n_whole for client in clients)
        # If answers did not carry the clients' words, finding no foreign one would prove nothing.
        assert sum(client.n_own for client in clients) > n_whole / 2 > 0
        assert sum(client.n_left for client in clients) > N_CLIENTS // 2
        assert server.wait_running(0, timeout_s=5)
        assert (await http.get("/health")).status_code == 200
        body = {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 2}
        answer = await http.post("/v1/completions", json=body)
        assert answer.json()["choices"][0]["text"].startswith(" Paris")
