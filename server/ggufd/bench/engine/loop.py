"""Loop over an engine without a process or HTTP around it: greedy requests of random tokens, step after step.

Each phase of a shape is a set of requests whose prompts go on where the last ones ended: what a slot still holds is
the depth, so that reading and writing are timed apart, in the engine's own scheduling.
"""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import dataclass
from typing import Protocol

from ggufd.bench.engine.shapes import Workload
from ggufd.bench.measure.client import BenchError
from ggufd.engine.messages.events import Failed, Output
from ggufd.engine.messages.reports import Event
from ggufd.engine.messages.requests import EmbedRequest, EngineRequest
from ggufd.engine.messages.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0, ignore_eos=True)


class Stepper(Protocol):
    """Part of an engine that the loop drives."""

    @property
    def has_work(self) -> bool: ...
    def add(self, request: EngineRequest | EmbedRequest) -> None: ...
    def step(self) -> list[Event]: ...


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens a second of all sequences together; None for a phase that the shape has not."""

    read: float | None
    written: float | None


class Loop:
    """Measurement of shapes on one engine; token ids are drawn below `n_vocab`."""

    def __init__(self, engine: Stepper, n_vocab: int, source: random.Random) -> None:
        self._engine = engine
        self._n_vocab = n_vocab
        self._random = source
        self._ids = itertools.count(1)

    def measure(self, shape: Workload) -> Rates:
        """Measure a shape once, on unseen tokens. Raises BenchError when the engine refuses or computes less."""
        prompts = [self._tokens(shape.n_depth) for _ in range(shape.n_sequences)]
        if shape.n_depth:
            self._run(prompts, 1, n_cached=0)
        read = written = None
        if shape.n_prompt:
            prompts = [prompt + self._tokens(shape.n_prompt) for prompt in prompts]
            read = shape.n_sequences * shape.n_prompt / self._run(prompts, 1, n_cached=shape.n_depth)
        if shape.n_write:
            n_known = shape.n_depth + shape.n_prompt
            # One token to compute each: with it, every step has a row for every sequence.
            prompts = [prompt + self._tokens(1) for prompt in prompts]
            written = shape.n_sequences * shape.n_write / self._run(prompts, shape.n_write, n_cached=n_known)
        return Rates(read, written)

    def _tokens(self, n: int) -> tuple[int, ...]:
        return tuple(self._random.randrange(self._n_vocab) for _ in range(n))

    def _run(self, prompts: list[tuple[int, ...]], n_tokens: int, *, n_cached: int) -> float:
        """Seconds from handing the requests over until all are answered."""
        start_s = time.perf_counter()
        for prompt in prompts:
            self._engine.add(EngineRequest(next(self._ids), prompt, max_tokens=n_tokens, sampling=GREEDY))
        n_left = len(prompts)
        while n_left:
            for event in self._engine.step():
                n_left -= _ends(event, n_tokens, n_cached)
        return time.perf_counter() - start_s


def _ends(event: Event, n_tokens: int, n_cached: int) -> bool:
    """Whether the event is a request's end. Raises BenchError where something else was computed than is counted."""
    if isinstance(event, Failed):
        raise BenchError(f"the engine refused: {event.message}")
    if not isinstance(event, Output) or event.finish is None:
        return False
    usage = event.finish.usage
    if (usage.completion_tokens, usage.cached_tokens) != (n_tokens, n_cached):
        raise BenchError(
            f"the engine wrote {usage.completion_tokens} tokens with {usage.cached_tokens} of the prompt cached, where "
            f"{n_tokens} and {n_cached} were to be measured"
        )
    return True
