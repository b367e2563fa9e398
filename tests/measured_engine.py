"""Loads a model in a real engine process, fills its slots, and reads how much memory that took."""

from __future__ import annotations

import queue
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from server.engine import process
from server.engine.child import Child
from server.engine.messages import (
    EngineConfig,
    EngineRequest,
    Failed,
    GetStats,
    LoadFailed,
    Output,
    Ready,
    SamplingParams,
    Shutdown,
    Stats,
)
from server.llama.params import ContextParams, ModelParams

_TIMEOUT_S = 120


class Measured(NamedTuple):
    """Bytes of the engine's process when its slots are full, and what llama.cpp said while loading."""

    own: int
    mapped: int
    ready: Ready


def measure(path: Path, context: ContextParams, *, mmap: bool = True) -> Measured:
    """One slot is filled to its end, so that the compute buffer is used whole; then every slot says a word."""
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    # A gap of any length: every chunk of the prompt is a whole ubatch, however busy the machine is.
    config = EngineConfig(ModelParams(str(path), mmap=mmap), context, max_gap_ms=1e6)
    child = Child("measured", process.main, (config,), inbox.put, lambda code, stderr: inbox.put((code, stderr)))
    try:
        ready = _await_ready(inbox)
        draw = random.Random(1)
        child.send(_request(1, [draw.randrange(100, 400) for _ in range(ready.n_ctx - 8)]))
        _await_finished(inbox, 1)
        for i in range(2, context.n_slots + 2):
            child.send(_request(i, [draw.randrange(100, 400) for _ in range(20)]))
        _await_finished(inbox, context.n_slots)
        _await_idle(child, inbox)
        status = Path(f"/proc/{child.pid}/status").read_text()
    finally:
        child.send(Shutdown())
        if not child.join(20):
            child.kill()
    own, mapped = (1024 * int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) for name in ("RssAnon", "RssFile"))
    return Measured(own, mapped, ready)


def _await_idle(child: Child, inbox: queue.SimpleQueue[Any]) -> None:
    """Once idle, the engine makes ready for grammars, and answers nothing until it is done."""
    time.sleep(0.2)
    child.send(GetStats())
    while not any(isinstance(event, Stats) for event in inbox.get(timeout=_TIMEOUT_S)):
        pass


def _request(number: int, prompt: list[int]) -> EngineRequest:
    return EngineRequest(
        request_id=number, prompt=tuple(prompt), max_tokens=4, sampling=SamplingParams(temperature=0.0, ignore_eos=True)
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
