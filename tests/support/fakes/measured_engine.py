"""Loads a model in a real engine process, fills its slots and its context for embeddings, and reads what that took."""

from __future__ import annotations

import queue
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ggufd.engine import process
from ggufd.engine.messages.config import EngineConfig
from ggufd.engine.messages.events import Embedding, Failed, Output
from ggufd.engine.messages.reports import LoadFailed, Ready, Stats
from ggufd.engine.messages.requests import EmbedRequest, EngineRequest, GetStats, Shutdown
from ggufd.engine.messages.sampling import SamplingParams
from ggufd.llama.params import ContextParams, ModelParams
from ggufd.processes.child import Child

_TIMEOUT_S = 120


class Measured(NamedTuple):
    """Bytes of the engine's process when its slots are full, and what llama.cpp said while loading."""

    own: int
    mapped: int
    ready: Ready


def measure(path: Path, context: ContextParams, *, embeds: bool = False, **model: Any) -> Measured:
    """One slot is filled to its end, so that the compute buffer is used whole; then every slot says a word.

    With `embeds` a text of full length becomes a vector before. `model` are further ModelParams; adapters are used.
    Also what takes a share of a step takes all of it, since a gap may be of any length: how busy the machine is makes
    no difference.
    """
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    config = EngineConfig(ModelParams(str(path), **model), context, max_gap_ms=1e6, embeddings=embeds)
    child = Child("measured", process.main, (config,), inbox.put, lambda code, stderr: inbox.put((code, stderr)))
    try:
        ready = _await_ready(inbox)
        scales = (1.0,) * len(config.model.loras)
        if embeds or not ready.writes:
            _embed(child, inbox, ready, scales)
        if ready.writes:
            _fill_slots(child, inbox, ready, scales)
        _await_idle(child, inbox)
        status = Path(f"/proc/{child.pid}/status").read_text()
    finally:
        child.send(Shutdown())
        if not child.join(20):
            child.kill()
    own, mapped = (1024 * int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) for name in ("RssAnon", "RssFile"))
    return Measured(own, mapped, ready)


def _embed(child: Child, inbox: queue.SimpleQueue[Any], ready: Ready, scales: tuple[float, ...]) -> None:
    """Beside somebody who writes, where the model can: then a piece is as long as the gap allows."""
    wanted = {Embedding}
    if ready.writes:
        child.send(_request(1, _tokens(ready, 20), scales, max_tokens=24))
        wanted.add(Output)
    child.send(EmbedRequest(2, (_tokens(ready, ready.embedding.n_ctx),)))
    events = _events(inbox)
    while wanted:
        event = next(events)
        if isinstance(event, Embedding) or (isinstance(event, Output) and event.finish):
            wanted.remove(type(event))


def _fill_slots(child: Child, inbox: queue.SimpleQueue[Any], ready: Ready, scales: tuple[float, ...]) -> None:
    child.send(_request(1, _tokens(ready, ready.n_ctx - 8), scales))
    _await_finished(inbox, 1)
    for i in range(2, ready.n_slots + 2):
        child.send(_request(i, _tokens(ready, 20), scales))
    _await_finished(inbox, ready.n_slots)


def _tokens(ready: Ready, count: int) -> tuple[int, ...]:
    draw = random.Random(count)
    first = min(100, ready.model.n_vocab // 2)
    return tuple(draw.randrange(first, min(400, ready.model.n_vocab)) for _ in range(count))


def _await_idle(child: Child, inbox: queue.SimpleQueue[Any]) -> None:
    """Once idle, the engine makes ready for grammars, and answers nothing until it is done."""
    time.sleep(0.2)
    child.send(GetStats())
    while not any(isinstance(event, Stats) for event in inbox.get(timeout=_TIMEOUT_S)):
        pass


def _request(number: int, prompt: tuple[int, ...], scales: tuple[float, ...], max_tokens: int = 4) -> EngineRequest:
    return EngineRequest(
        request_id=number,
        prompt=prompt,
        max_tokens=max_tokens,
        sampling=SamplingParams(temperature=0.0, ignore_eos=True),
        adapters=scales,
    )


def _await_ready(inbox: queue.SimpleQueue[Any]) -> Ready:
    return next(event for event in _events(inbox) if isinstance(event, Ready))


def _await_finished(inbox: queue.SimpleQueue[Any], count: int) -> None:
    finished = (event for event in _events(inbox) if isinstance(event, Output) and event.finish)
    for _ in range(count):
        next(finished)


def _events(inbox: queue.SimpleQueue[Any]) -> Iterator[Any]:
    """What the engine says; fails on anything that ends the hope."""
    while True:
        message = inbox.get(timeout=_TIMEOUT_S)
        assert isinstance(message, list), f"the engine ended: {message}"
        for event in message:
            assert not isinstance(event, LoadFailed | Failed), event
            yield event
