"""Synthetic model of a few layers for timing attention: attention of a given shape, little else.

Random weights, no tokenizer. The feed-forward parts of all its layers stand
in the last one, where llama.cpp computes them for those rows alone whose output is wanted: so a long history is read
in a moment, and rows with an output cost what they would in as many plain layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ggufd.llama.model.model import Model

_MOST_LAYERS = 4
_QUERIES = 4 * 576
"""So wide are the queries of all layers together, at most: one layer of a 7B model, four of one of 135M."""

_MAX_WIDTH = 576
_FFN_WIDTHS = 3
_ARCHITECTURE = "deci"
"""A llama whose layers may have feed-forward parts of different widths."""
_LEAST_FFN = 32
_N_VOCAB = 64
_N_CTX = 8192


class AttentionShape(NamedTuple):
    """Sizes that the cost of attention depends on: query heads, key and value heads, width of a head."""

    n_head: int
    n_head_kv: int
    head_width: int

    @classmethod
    def of(cls, model: Model) -> AttentionShape:
        return cls(model.n_head, max(1, model.n_head_kv), model.head_width)

    @property
    def query_width(self) -> int:
        return self.n_head * self.head_width

    @property
    def quick_layers(self) -> int:
        """Layers to measure with: few enough to be quick; a single one would stay in the CPU's caches."""
        return max(1, min(_MOST_LAYERS, _QUERIES // self.query_width))


def write_attention_model(path: Path, shape: AttentionShape, n_layers: int) -> None:
    """Write the GGUF: F16, a few tens of MB with `quick_layers`, whatever the shape."""
    import gguf

    width = min(shape.query_width, _MAX_WIDTH)
    ffn_widths = [_LEAST_FFN] * (n_layers - 1) + [n_layers * _FFN_WIDTHS * width]
    writer = gguf.GGUFWriter(path, _ARCHITECTURE)
    writer.add_context_length(_N_CTX)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(ffn_widths)
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
    for name, size in _matrices(shape, width, ffn_widths).items():
        writer.add_tensor(f"{name}.weight", np.resize(noise, size))
    for norm in ("output_norm", *(f"blk.{i}.{part}_norm" for i in range(n_layers) for part in ("attn", "ffn"))):
        writer.add_tensor(f"{norm}.weight", np.ones(width, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _matrices(shape: AttentionShape, width: int, ffn_widths: list[int]) -> dict[str, tuple[int, int]]:
    """Rows and columns of every matrix."""
    queries, keys = shape.query_width, shape.n_head_kv * shape.head_width
    sizes = {"token_embd": (_N_VOCAB, width)}
    for i, ffn_width in enumerate(ffn_widths):
        sizes |= {
            f"blk.{i}.attn_q": (queries, width),
            f"blk.{i}.attn_k": (keys, width),
            f"blk.{i}.attn_v": (keys, width),
            f"blk.{i}.attn_output": (width, queries),
            f"blk.{i}.ffn_gate": (ffn_width, width),
            f"blk.{i}.ffn_up": (ffn_width, width),
            f"blk.{i}.ffn_down": (width, ffn_width),
        }
    return sizes
