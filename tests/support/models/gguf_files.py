"""Writes GGUF headers byte by byte: sparse files with the right tensors and no weights, and broken ones."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ggufd.llama.gguf.tensor_types import BY_NAME

Tensors = Sequence[tuple[str, tuple[int, ...], str]]
"""Name, shape with the row's length first, type."""


def header(
    metadata: Mapping[str, Any], tensors: Tensors, *, version: int = 3, alignment: int = 32
) -> tuple[bytes, int]:
    """The bytes up to the data, and how many bytes of data follow."""
    out = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(metadata))]
    for key, value in metadata.items():
        out += [text(key), _value(value)]
    end = offset = 0
    for name, shape, kind in tensors:
        number, _, block, block_bytes = BY_NAME[kind.lower()]
        out.append(text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, offset))
        size = block_bytes
        for i, length in enumerate(shape):
            size *= length if i else length // block
        end = offset + size
        offset = -(-end // alignment) * alignment
    head = b"".join(out)
    return head.ljust(-(-len(head) // alignment) * alignment, b"\0"), end


def write(path: Path, metadata: Mapping[str, Any], tensors: Tensors, **options: int) -> Path:
    """A file of the right size; its data is a hole that takes no room on most disks."""
    head, size = header(metadata, tensors, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
    return path


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """int is u32, float f32; a list becomes an array of what its first element is."""
    if isinstance(value, list):
        kind = _kind(value[0])
        return struct.pack("<IIQ", 9, kind, len(value)) + b"".join(_scalar(one) for one in value)
    return struct.pack("<I", _kind(value)) + _scalar(value)


def _kind(value: Any) -> int:
    return {bool: 7, int: 4, float: 6, str: 8}[type(value)]


def _scalar(value: Any) -> bytes:
    if isinstance(value, str):
        return text(value)
    return struct.pack({bool: "<?", int: "<I", float: "<f"}[type(value)], value)


def llama(
    *,
    n_layers: int = 2,
    width: int = 64,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    n_ff: int = 128,
    n_vocab: int = 100,
    n_ctx: int = 1024,
    n_experts: int = 0,
    kind: str = "f16",
    kinds: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], str]]]:
    """Metadata and tensors of a model of the architecture `llama`. `kinds` gives single tensors other types."""
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": n_layers,
        "llama.context_length": n_ctx,
        "llama.embedding_length": width,
        "llama.feed_forward_length": n_ff,
        "llama.attention.head_count": n_heads,
        "llama.attention.head_count_kv": n_kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(min(n_vocab, 100))],
        **({"llama.expert_count": n_experts, "llama.expert_used_count": 2} if n_experts else {}),
        **(extra or {}),
    }
    head = width // n_heads
    tensors: list[tuple[str, tuple[int, ...], str]] = [("token_embd.weight", (width, n_vocab), kind)]
    experts, name = ((n_experts,), "_exps") if n_experts else ((), "")
    for i in range(n_layers):
        b = f"blk.{i}."
        tensors += [
            (b + "attn_norm.weight", (width,), "f32"),
            (b + "attn_q.weight", (width, width), kind),
            (b + "attn_k.weight", (width, n_kv_heads * head), kind),
            (b + "attn_v.weight", (width, n_kv_heads * head), kind),
            (b + "attn_output.weight", (width, width), kind),
            (b + "ffn_norm.weight", (width,), "f32"),
            *([(b + "ffn_gate_inp.weight", (width, n_experts), "f32")] if n_experts else []),
            (f"{b}ffn_gate{name}.weight", (width, n_ff, *experts), kind),
            (f"{b}ffn_up{name}.weight", (width, n_ff, *experts), kind),
            (f"{b}ffn_down{name}.weight", (n_ff, width, *experts), kind),
        ]
    tensors += [("output_norm.weight", (width,), "f32"), ("output.weight", (width, n_vocab), kind)]
    return metadata, [(name, shape, (kinds or {}).get(name, own)) for name, shape, own in tensors]
