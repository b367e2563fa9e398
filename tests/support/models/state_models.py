"""Tiny models whose cache cannot be cut back: a Mamba, a hybrid of it (Jamba), and one with a sliding window (Gemma 3).

Random F32 weights over the tiny model's vocabulary of bytes; larger ones where memory is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np

from tests.support.models.tiny_model import N_VOCAB, add_vocabulary

_KERNEL, _RANK, _FF = 4, 4, 48
_N_HEAD, _N_HEAD_KV = 4, 2
WINDOW = 64
Shapes = Mapping[str, tuple[int, ...]]


class Size(NamedTuple):
    """How much is kept: `inner * state` numbers by a recurrent layer, `head_width` a head and token by the others."""

    width: int = 32
    state: int = 8
    head_width: int = 8
    n_vocab: int = N_VOCAB

    @property
    def inner(self) -> int:
        """Of a recurrent layer; Jamba takes no other."""
        return 2 * self.width


TINY = Size()


def _mamba(size: Size) -> Shapes:
    inner, state = size.inner, size.state
    return {
        "ssm_in.weight": (2 * inner, size.width),
        "ssm_conv1d.weight": (inner, _KERNEL),
        "ssm_conv1d.bias": (inner,),
        "ssm_x.weight": (_RANK + 2 * state, inner),
        "ssm_dt.weight": (inner, _RANK),
        "ssm_dt.bias": (inner,),
        "ssm_a": (inner, state),
        "ssm_d": (inner,),
        "ssm_out.weight": (size.width, inner),
    }


def _attention(size: Size) -> Shapes:
    return {
        "attn_q.weight": (_N_HEAD * size.head_width, size.width),
        "attn_k.weight": (_N_HEAD_KV * size.head_width, size.width),
        "attn_v.weight": (_N_HEAD_KV * size.head_width, size.width),
        "attn_output.weight": (size.width, _N_HEAD * size.head_width),
    }


def _norm(size: Size) -> Shapes:
    return {"attn_norm.weight": (size.width,)}


def _feed_forward(size: Size) -> Shapes:
    return {
        "ffn_norm.weight": (size.width,),
        "ffn_gate.weight": (_FF, size.width),
        "ffn_up.weight": (_FF, size.width),
        "ffn_down.weight": (size.width, _FF),
    }


def write_mamba(path: Path, size: Size = TINY) -> Path:
    """Two layers of nothing but recurrent state."""
    writer = _writer(path, "mamba", size, n_layers=2)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    _add_state_sizes(writer, size)
    return _finish(writer, size, [{**_norm(size), **_mamba(size)}] * 2)


def write_hybrid(path: Path, size: Size = TINY) -> Path:
    """A layer of recurrent state and one of attention, whose heads share the width."""
    size = size._replace(head_width=size.width // _N_HEAD)
    writer = _writer(path, "jamba", size, n_layers=2)
    writer.add_feed_forward_length(_FF)
    writer.add_head_count(_N_HEAD)
    writer.add_array("jamba.attention.head_count_kv", [0, _N_HEAD_KV])
    _add_state_sizes(writer, size)
    norms: Shapes = {
        "ssm_dt_norm.weight": (_RANK,),
        "ssm_b_norm.weight": (size.state,),
        "ssm_c_norm.weight": (size.state,),
    }
    recurrent = {**_norm(size), **_mamba(size), **norms, **_feed_forward(size)}
    return _finish(writer, size, [recurrent, {**_norm(size), **_attention(size), **_feed_forward(size)}])


def write_windowed(path: Path, size: Size = TINY) -> Path:
    """Six layers, of which five see the last `WINDOW` tokens alone."""
    writer = _writer(path, "gemma3", size, n_layers=6)
    writer.add_feed_forward_length(_FF)
    writer.add_head_count(_N_HEAD)
    writer.add_head_count_kv(_N_HEAD_KV)
    writer.add_key_length(size.head_width)
    writer.add_value_length(size.head_width)
    writer.add_sliding_window(WINDOW)
    more: Shapes = {
        "post_attention_norm.weight": (size.width,),
        "attn_q_norm.weight": (size.head_width,),
        "attn_k_norm.weight": (size.head_width,),
        "post_ffw_norm.weight": (size.width,),
    }
    return _finish(writer, size, [{**_norm(size), **_attention(size), **more, **_feed_forward(size)}] * 6)


WRITERS: dict[str, Callable[..., Path]] = {"mamba": write_mamba, "hybrid": write_hybrid, "window": write_windowed}


def _writer(path: Path, architecture: str, size: Size, *, n_layers: int) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"tiny {architecture}")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(1024)
    writer.add_embedding_length(size.width)
    writer.add_block_count(n_layers)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(size.n_vocab)
    add_vocabulary(writer, size.n_vocab)
    return writer


def _add_state_sizes(writer: gguf.GGUFWriter, size: Size) -> None:
    writer.add_ssm_conv_kernel(_KERNEL)
    writer.add_ssm_inner_size(size.inner)
    writer.add_ssm_state_size(size.state)
    writer.add_ssm_time_step_rank(_RANK)


def _finish(writer: gguf.GGUFWriter, size: Size, layers: list[Shapes]) -> Path:
    draw = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (size.n_vocab, size.width),
        "output.weight": (size.n_vocab, size.width),
        "output_norm.weight": (size.width,),
    }
    shapes |= {f"blk.{i}.{name}": shape for i, layer in enumerate(layers) for name, shape in layer.items()}
    for name, shape in shapes.items():
        if name.endswith("norm.weight") or name.endswith("ssm_d"):
            weights = np.ones(shape)
        elif name.endswith("ssm_a"):
            # Decays, slow ones among them: what was long ago still counts.
            weights = -draw.uniform(0.01, 1.0, shape)
        else:
            weights = draw.normal(0, 0.7 if name == "output.weight" else 0.35, shape)
        writer.add_tensor(name, weights.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert writer.path is not None
    return Path(writer.path)
