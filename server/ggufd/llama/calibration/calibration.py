"""Choice of flash attention on this CPU, measured on a few layers with the same attention shape.

Attention is the only part that flash attention changes, and its cost is per layer; so a few are enough, and measuring
takes the same fraction of a second for a small model and a large one. What is measured is a turn of a chat: a short
message is read at the end of a long history, where flash attention is slow on a CPU, and a reply is written beside
other replies, where it is fast on some CPUs and slow on others. See `prefers_flash_attention`.

Other programs on the same cores make every number larger, and not both sides alike. So both are measured in turns
until the best times of each agree. Where they do not within a moment, nothing is concluded; the next starts try again,
and when the third has not found the machine quiet either, it never is, and no start waits for it any more.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import llama_cpp

from ggufd.llama.calibration.attention_model import AttentionShape, write_attention_model
from ggufd.llama.context.context import Context
from ggufd.llama.model import system
from ggufd.llama.model.model import Model
from ggufd.llama.params import ContextParams, ModelParams

_METHOD = 2
"""What was measured in another way is not comparable, and not read."""

_DEPTH = 1280
_REPLY_DEPTH = 512
_MAX_ROWS = 8
_MESSAGE_TOKENS = 32
_REPLY_TOKENS = 200
_STEPS_A_ROUND = 4
_CHUNK = 64
_MAX_N_CTX = 8192

_BUDGET_S = 3.0
"""Half a second is enough on a fast machine. Two slow cores need 1.3 s for one reply at a time, and 2.3 s for four."""

_AGREEING = 4
_SPREAD = 1.25
"""So many measurements of one thing must lie within a quarter above the best of them to be believed."""

_MAX_TRIES = 3
"""Starts that pay `_BUDGET_S` for nothing on a machine that has no quiet moment."""

_CLEARLY = 1.15
"""It is on unless a turn is so much slower with it: a few layers stay in the CPU's caches, a whole model does not,
which favours "off". Where this measured 1.09, the whole model wrote 1.13 times as fast with it."""

Side = Literal["off", "on"]
SIDES: tuple[Side, ...] = ("off", "on")


class Measurement(NamedTuple):
    """Seconds of a prefill of a short message at depth, and of one decode step of all replies."""

    message_s: float
    step_s: float

    @property
    def turn_s(self) -> float:
        """Seconds of a chat turn: a short message, then a reply."""
        return self.message_s + _REPLY_TOKENS * self.step_s


Finding = dict[Side, Measurement] | int
"""What is known of one shape: how long both ways take, or how often the machine was too busy to tell."""


class Times:
    """Repeated timings of one operation; other load on the machine only makes them longer."""

    def __init__(self) -> None:
        self._sorted: list[float] = []

    def add(self, seconds: float) -> None:
        bisect.insort(self._sorted, seconds)

    @property
    def best(self) -> float:
        return self._sorted[0]

    @property
    def agree(self) -> bool:
        """Whether the best timing is reliable: enough others are close to it."""
        return len(self._sorted) >= _AGREEING and self._sorted[_AGREEING - 1] <= _SPREAD * self.best


class Unsteady(Exception):
    """Failed measurement: the machine was too busy with other things."""


def prefers_flash_attention(model: Model, params: ContextParams, memory: Path | None) -> tuple[bool, str]:
    """Choice of flash attention, with its reason in a few words.

    `memory` is a file that remembers answers per machine, build, slots, cache types and shape; None remembers
    nothing. A file that cannot be read or written is measured around. On where the machine was too busy to tell, off
    where nothing can be measured.
    """
    shape = AttentionShape.of(model)
    cache_types = params.cache_type_k, params.cache_type_v
    key = "|".join(map(str, (_METHOD, system.cpu_name(), llama_cpp.__version__, _rows(params), *cache_types, *shape)))
    known = _remembered(memory)
    finding = known.get(key, 0)
    note = ""
    if isinstance(finding, int) and finding < _MAX_TRIES:
        n_busy = finding
        try:
            finding = _measure(shape, params)
        except OSError as error:
            return False, f"not measured, since no temporary file could be written: {error.strerror}"
        except Unsteady:
            finding = n_busy + 1
        note = _remember(memory, known | {key: finding})
    if isinstance(finding, int):
        again = "not again" if finding >= _MAX_TRIES else "measured again at the next start"
        return True, f"not measured, since this machine was busy {finding} of {_MAX_TRIES} times: {again}{note}"
    ratio = finding["on"].turn_s / finding["off"].turn_s
    why = f"a chat turn was measured {ratio:.2f} times as long with it on this CPU"
    if 1 < ratio < _CLEARLY:
        why += f", and a few layers favour off: below {_CLEARLY} it is on"
    return ratio < _CLEARLY, why + note


def _measure(shape: AttentionShape, params: ContextParams) -> dict[Side, Measurement]:
    """Measurements with and without flash attention, in turns.

    Raises `Unsteady`, after `_BUDGET_S`, and OSError where no file can be written.
    """
    deadline = time.perf_counter() + _BUDGET_S
    with tempfile.TemporaryDirectory(prefix="ggufd-") as folder:
        path = Path(folder) / "layers.gguf"
        write_attention_model(path, shape, shape.quick_layers)
        model = Model(ModelParams(str(path)))
        contexts: dict[Side, Context] = {}
        try:
            for side in SIDES:
                contexts[side] = Context(model, _calibration_context(params, side))
            return _time_turns(contexts, deadline)
        finally:
            for context in contexts.values():
                context.close()
            model.close()


def _calibration_context(params: ContextParams, side: Side) -> ContextParams:
    return dataclasses.replace(
        params,
        n_ctx=min(max(params.n_ctx, _DEPTH + 2 * _MESSAGE_TOKENS), _MAX_N_CTX),
        n_slots=_rows(params),
        n_batch=512,
        n_ubatch=512,
        flash_attn=side,
        rope_scaling="",
    )


def _rows(params: ContextParams) -> int:
    """Concurrent replies: one in four slots is busy, as users read and type most of the time."""
    return min(max(1, params.n_slots // 4), _MAX_ROWS)


def _time_turns(contexts: dict[Side, Context], deadline: float) -> dict[Side, Measurement]:
    """Timings of turns, repeated until they agree. Raises `Unsteady` at `deadline` (of `time.perf_counter`)."""
    for context in contexts.values():
        _read_histories(context, deadline)
    messages, steps = ({side: Times() for side in contexts} for _ in range(2))
    while not all(times.agree for times in (*messages.values(), *steps.values())):
        _check(deadline)
        for side, context in contexts.items():
            messages[side].add(_read_message(context))
            for _ in range(_STEPS_A_ROUND):
                steps[side].add(_step(context))
    return {side: Measurement(messages[side].best, steps[side].best) for side in contexts}


def _check(deadline: float) -> None:
    if time.perf_counter() > deadline:
        raise Unsteady


def _read_histories(context: Context, deadline: float) -> None:
    for slot in range(context.n_slots):
        for start in range(0, _depth(slot), _CHUNK):
            _check(deadline)
            _read(context, slot, _CHUNK, start, n_outputs=1)


def _depth(slot: int) -> int:
    return _DEPTH if slot == 0 else _REPLY_DEPTH


def _read_message(context: Context) -> float:
    seconds = _read(context, 0, _MESSAGE_TOKENS, _DEPTH, n_outputs=_MESSAGE_TOKENS)
    context.trim(0, _DEPTH)
    return seconds


def _step(context: Context) -> float:
    """Decode step with one token in every slot."""
    context.batch.clear()
    for slot in range(context.n_slots):
        context.batch.add(slot, [1], _depth(slot), 1)
    seconds = context.decode()
    for slot in range(context.n_slots):
        context.trim(slot, _depth(slot))
    return seconds


def _read(context: Context, slot: int, n_tokens: int, first_pos: int, *, n_outputs: int) -> float:
    context.batch.clear()
    context.batch.add(slot, [1] * n_tokens, first_pos, n_outputs)
    return context.decode()


def _remembered(memory: Path | None) -> dict[str, Finding]:
    if memory is None:
        return {}
    try:
        return {key: _finding(entry) for key, entry in json.loads(memory.read_text()).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _finding(entry: Any) -> Finding:
    """Raises what a wrong shape raises."""
    if isinstance(entry, int):
        return entry
    return {side: _measurement(entry[side]) for side in SIDES}


def _measurement(entry: list[object]) -> Measurement:
    """Raises `ValueError` or `TypeError` for anything but two times."""
    message_s, token_s = (float(str(value)) for value in entry)
    if not (0 < message_s < math.inf and 0 < token_s < math.inf):
        raise ValueError("not a time")
    return Measurement(message_s, token_s)


def _remember(memory: Path | None, known: dict[str, Finding]) -> str:
    """Write a measurement to the file; returns what went wrong."""
    if memory is not None:
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            memory.write_text(json.dumps(known, indent=1))
        except OSError as error:
            return f"; not remembered, {memory} cannot be written: {error.strerror}"
    return ""
