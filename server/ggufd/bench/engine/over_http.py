"""Shapes over HTTP on a server, for the cost of HTTP beside the engine's loop."""

from __future__ import annotations

import asyncio
import random

from ggufd.bench.engine.loop import Rates
from ggufd.bench.engine.shapes import Workload
from ggufd.bench.measure.client import BenchError, Client
from ggufd.bench.measure.discovery import discover
from ggufd.bench.measure.figures import throughput
from ggufd.bench.measure.site import MeasuredServer, Site, Sizes
from ggufd.bench.measure.words import Words, calibrate


class OverHttp:
    """Server that decodes what the shapes decode. Raises BenchError when it has too few slots for `n_most`."""

    def __init__(self, url: str, api_key: str | None, source: random.Random, n_most: int) -> None:
        self._client = Client(url, api_key=api_key)
        self._random = source
        self._server, self._per_word = asyncio.run(self._meet())
        if self._server.n_slots is not None and self._server.n_slots < n_most:
            raise BenchError(f"{url} has {self._server.n_slots} slots, and {n_most} sequences are to be measured")

    async def _meet(self) -> tuple[MeasuredServer, float]:
        return await discover(self._client), await calibrate(self._client, self._random.randrange(2**32))

    def measure(self, shape: Workload) -> Rates:
        """Rate of all streams while all of them run; prompts are only about as long as wanted.

        They are read before, as by the engine's loop: else the first answers are nearly done when the last one begins.
        """
        words = Words(self._per_word, self._random.random())
        site = Site(self._server, words, Sizes())
        prompts = [words.text(shape.n_prompt) for _ in range(shape.n_sequences)]
        asyncio.run(site.together(prompts, 1))
        answers = asyncio.run(site.together(prompts, shape.n_write))
        return Rates(None, throughput([(answer.times, answer.per_piece) for answer in answers]))
