"""Whether flash attention pays on this CPU: measured on a few layers with the same attention shape.

Attention is the only part that flash attention changes, and its cost is per layer; so a few are enough, and measuring
takes the same fraction of a second for a small model and a large one. What is measured is a turn of a chat: a short
message is read at the end of a long history, where flash attention is slow on a CPU, and a reply is written beside
other replies, where it is fast on some CPUs and slow on others. See `prefers_flash_attention`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import platform
import tempfile
from pathlib import Path
from typing import NamedTuple

import llama_cpp
import numpy as np
import psutil

from server.llama.context import Context
from server.llama.model import Model
from server.llama.params import ContextParams, FlashAttention, ModelParams

_DEPTH = 1280
_REPLY_DEPTH = 512
_MAX_ROWS = 8
_MESSAGE_TOKENS = 32
_REPLY_TOKENS = 200
_REPEATS = 4
_N_LAYERS = 4
_FFN_WIDTHS = 3
_MAX_N_CTX = 8192

_CLEARLY = 1.15
"""It is on unless a turn is so much slower with it: a few layers stay in the CPU's caches, a whole model does not,
which favours "off". Where this measured 1.09, the whole model wrote 1.13 times as fast with it."""
_N_VOCAB = 64


class AttentionShape(NamedTuple):
    """What the cost of attention depends on: heads of queries, heads of keys and values, width of a head."""

    n_head: int
    n_head_kv: int
    head_width: int

    @classmethod
    def of(cls, model: Model) -> AttentionShape:
        return cls(model.n_head, max(1, model.n_head_kv), model.head_width)


class Measurement(NamedTuple):
    """Seconds: to read a short message at depth, and for one step of all replies."""

    message_s: float
    step_s: float

    @property
    def turn_s(self) -> float:
        """A chat turn: a short message, then a reply."""
        return self.message_s + _REPLY_TOKENS * self.step_s


def prefers_flash_attention(model: Model, params: ContextParams, memory: Path | None) -> tuple[bool, str]:
    """Whether a chat turn is faster with it, and why, in a few words.

    `memory` is a file that remembers answers per machine, build, slots, cache types and shape; None remembers
    nothing. A file that cannot be read or written is measured around. Off where nothing can be measured.
    """
    shape = AttentionShape.of(model)
    cache_types = params.cache_type_k, params.cache_type_v
    n_rows = _rows(params)
    key = "|".join(map(str, (_cpu(), llama_cpp.__version__, n_rows, *cache_types, *shape)))
    known = _remembered(memory)
    note = ""
    if key not in known:
        try:
            known[key] = _measure(shape, params)
        except OSError as error:
            return False, f"not measured, since no temporary file could be written: {error.strerror}"
        note = _remember(memory, known)
    off, on = known[key]["off"], known[key]["on"]
    ratio = on.turn_s / off.turn_s
    return ratio < _CLEARLY, f"a chat turn was measured {ratio:.2f} times as long with it on this CPU{note}"


def _measure(shape: AttentionShape, params: ContextParams) -> dict[str, Measurement]:
    """Both ways in turns, and the best of each: whatever else the machine does only ever adds time."""
    with tempfile.TemporaryDirectory(prefix="ggufd-") as folder:
        path = Path(folder) / "layers.gguf"
        write_layers(path, shape, _N_LAYERS)
        model = Model(ModelParams(str(path)))
        sides: tuple[FlashAttention, ...] = ("off", "on")
        contexts = {side: Context(model, _calibration_context(params, side)) for side in sides}
        try:
            return _time_turns(contexts)
        finally:
            for context in contexts.values():
                context.close()
            model.close()


def _calibration_context(params: ContextParams, side: FlashAttention) -> ContextParams:
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
    """Replies at once: one in four slots is busy with one, as people read and type most of the time."""
    return min(max(1, params.n_slots // 4), _MAX_ROWS)


def _time_turns(contexts: dict[FlashAttention, Context]) -> dict[str, Measurement]:
    for context in contexts.values():
        for slot in range(context.n_slots):
            for start in range(0, _DEPTH if slot == 0 else _REPLY_DEPTH, 256):
                _read(context, slot, 256, start)
    best = {side: Measurement(math.inf, math.inf) for side in contexts}
    for _ in range(_REPEATS):
        for side, context in contexts.items():
            message_s, step_s = _read_message(context), _step(context)
            best[side] = Measurement(min(best[side].message_s, message_s), min(best[side].step_s, step_s))
    return {str(side): measurement for side, measurement in best.items()}


def _read_message(context: Context) -> float:
    seconds = _read(context, 0, _MESSAGE_TOKENS, _DEPTH)
    context.trim(0, _DEPTH)
    return seconds


def _step(context: Context) -> float:
    """One token in every slot."""
    context.batch.clear()
    for slot in range(context.n_slots):
        context.batch.add(slot, [1], _DEPTH if slot == 0 else _REPLY_DEPTH, 1)
    seconds = context.decode()
    for slot in range(context.n_slots):
        context.trim(slot, _DEPTH if slot == 0 else _REPLY_DEPTH)
    return seconds


def _read(context: Context, slot: int, n_tokens: int, first_pos: int) -> float:
    context.batch.clear()
    context.batch.add(slot, [1] * n_tokens, first_pos, 1)
    return context.decode()


def write_layers(path: Path, shape: AttentionShape, n_layers: int) -> None:
    """A model of `n_layers` layers, random weights and no tokenizer, with the given attention."""
    import gguf

    width = shape.n_head * shape.head_width
    width_kv = shape.n_head_kv * shape.head_width
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2 * _DEPTH)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(_FFN_WIDTHS * width)
    writer.add_block_count(n_layers)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(_N_VOCAB)
    writer.add_tokenizer_model("none")
    noise = np.random.default_rng(0).normal(0, 0.02, 65_537).astype(np.float16)
    shapes = {"token_embd": (_N_VOCAB, width)}
    for layer in range(n_layers):
        shapes |= {
            f"blk.{layer}.attn_q": (width, width),
            f"blk.{layer}.attn_k": (width_kv, width),
            f"blk.{layer}.attn_v": (width_kv, width),
            f"blk.{layer}.attn_output": (width, width),
            f"blk.{layer}.ffn_gate": (_FFN_WIDTHS * width, width),
            f"blk.{layer}.ffn_up": (_FFN_WIDTHS * width, width),
            f"blk.{layer}.ffn_down": (width, _FFN_WIDTHS * width),
        }
    for name, size in shapes.items():
        writer.add_tensor(f"{name}.weight", np.resize(noise, size))
    for layer in range(n_layers):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(width, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _remembered(memory: Path | None) -> dict[str, dict[str, Measurement]]:
    if memory is None:
        return {}
    try:
        known = json.loads(memory.read_text())
        return {key: {side: _measurement(entry[side]) for side in ("off", "on")} for key, entry in known.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _measurement(entry: list[object]) -> Measurement:
    """Raises `ValueError` or `TypeError` for anything but two times."""
    message_s, token_s = (float(str(value)) for value in entry)
    if not (0 < message_s < math.inf and 0 < token_s < math.inf):
        raise ValueError("not a time")
    return Measurement(message_s, token_s)


def _remember(memory: Path | None, known: dict[str, dict[str, Measurement]]) -> str:
    """Keep what was measured, unless the machine was busy: that would be believed for ever. Says what went wrong."""
    is_busy = psutil.getloadavg()[0] > 0.5 * (psutil.cpu_count() or 1)
    if memory is not None and not is_busy:
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            memory.write_text(json.dumps(known, indent=1))
        except OSError as error:
            return f"; not remembered, {memory} cannot be written: {error.strerror}"
    return ""
