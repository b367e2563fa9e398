"""Writes LoRA adapters and control vectors for a model: random, but the same for the same seed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from tests.support.models.tiny_model import N_EMBD, N_VOCAB

Pairs = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""The model's tensor to the shapes of `a` and `b` as numpy has them: `(rank, columns)` and `(rows, rank)`."""


def pairs_of(model: Path, *, rank: int = 2, names: tuple[str, ...] = ("attn_q", "ffn_down", "ffn_down_exps")) -> Pairs:
    """The shapes for every tensor of `model` that ends in one of `names`."""
    found: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for tensor in gguf.GGUFReader(model).tensors:
        if tensor.name.removesuffix(".weight").split(".")[-1] in names:
            columns, rows, *experts = (int(length) for length in tensor.shape)
            found[tensor.name] = (*experts, rank, columns), (*experts, rows, rank)
    assert found
    return found


def write_lora(
    path: Path,
    pairs: Pairs,
    *,
    seed: int = 1,
    architecture: str = "llama",
    invocation: tuple[int, ...] = (),
    **metadata: str,
) -> Path:
    """An adapter, an activated one with `invocation` tokens; `metadata` replaces `general_type` or `adapter_type`."""
    draw = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("general.type", metadata.get("general_type", "adapter"))
    writer.add_string("adapter.type", metadata.get("adapter_type", "lora"))
    writer.add_float32("adapter.lora.alpha", 4.0)
    if invocation:
        writer.add_array("adapter.alora.invocation_tokens", list(invocation))
    for name, (a, b) in pairs.items():
        writer.add_tensor(f"{name}.lora_a", draw.normal(0, 0.5, a).astype(np.float32))
        writer.add_tensor(f"{name}.lora_b", draw.normal(0, 0.5, b).astype(np.float32))
    _finish(writer)
    return path


def write_loras(tiny_model: Path) -> tuple[str, str]:
    """Two adapters beside the tiny model, one of them with a part of the embedding."""
    pairs = dict(pairs_of(tiny_model))
    embedding = {"token_embd.weight": ((N_VOCAB, 2), (N_EMBD, 2))}
    folder = tiny_model.parent
    return (
        str(write_lora(folder / "style.gguf", pairs)),
        str(write_lora(folder / "topic.gguf", pairs | embedding, seed=2)),
    )


def write_control_vector(path: Path, layers: tuple[int, ...], n_embd: int, *, seed: int = 1) -> Path:
    """A direction for each of `layers`, which count from 1."""
    draw = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "controlvector")
    for layer in layers:
        writer.add_tensor(f"direction.{layer}", draw.normal(0, 1, n_embd).astype(np.float32))
    _finish(writer)
    return path


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
