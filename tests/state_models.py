"""Tiny models whose cache cannot be cut back: a Mamba, a hybrid of it (Jamba), and one with a sliding window (Gemma 3).

Random F32 weights over the tiny model's vocabulary of bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np

from tests.tiny_model import N_VOCAB, add_vocabulary

_WIDTH, _INNER, _STATE, _KERNEL, _RANK, _FF = 32, 64, 8, 4, 4, 48
WINDOW = 64
Shapes = Mapping[str, tuple[int, ...]]

_MAMBA: Shapes = {
    "ssm_in.weight": (2 * _INNER, _WIDTH),
    "ssm_conv1d.weight": (_INNER, _KERNEL),
    "ssm_conv1d.bias": (_INNER,),
    "ssm_x.weight": (_RANK + 2 * _STATE, _INNER),
    "ssm_dt.weight": (_INNER, _RANK),
    "ssm_dt.bias": (_INNER,),
    "ssm_a": (_INNER, _STATE),
    "ssm_d": (_INNER,),
    "ssm_out.weight": (_WIDTH, _INNER),
}
_ATTENTION: Shapes = {
    "attn_q.weight": (_WIDTH, _WIDTH),
    "attn_k.weight": (_WIDTH // 2, _WIDTH),
    "attn_v.weight": (_WIDTH // 2, _WIDTH),
    "attn_output.weight": (_WIDTH, _WIDTH),
}
_FEED_FORWARD: Shapes = {
    "ffn_norm.weight": (_WIDTH,),
    "ffn_gate.weight": (_FF, _WIDTH),
    "ffn_up.weight": (_FF, _WIDTH),
    "ffn_down.weight": (_WIDTH, _FF),
}
_NORM: Shapes = {"attn_norm.weight": (_WIDTH,)}


def write_mamba(path: Path) -> Path:
    """Two layers of nothing but recurrent state."""
    writer = _writer(path, "mamba", n_layers=2)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    _add_state_sizes(writer)
    return _finish(writer, [{**_NORM, **_MAMBA}] * 2)


def write_hybrid(path: Path) -> Path:
    """A layer of recurrent state and one of attention."""
    writer = _writer(path, "jamba", n_layers=2)
    writer.add_feed_forward_length(_FF)
    writer.add_head_count(4)
    writer.add_array("jamba.attention.head_count_kv", [0, 2])
    _add_state_sizes(writer)
    norms: Shapes = {"ssm_dt_norm.weight": (_RANK,), "ssm_b_norm.weight": (_STATE,), "ssm_c_norm.weight": (_STATE,)}
    return _finish(writer, [{**_NORM, **_MAMBA, **norms, **_FEED_FORWARD}, {**_NORM, **_ATTENTION, **_FEED_FORWARD}])


def write_windowed(path: Path) -> Path:
    """Six layers, of which five see the last `WINDOW` tokens alone."""
    writer = _writer(path, "gemma3", n_layers=6)
    writer.add_feed_forward_length(_FF)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(_WIDTH // 4)
    writer.add_value_length(_WIDTH // 4)
    writer.add_sliding_window(WINDOW)
    more: Shapes = {
        "post_attention_norm.weight": (_WIDTH,),
        "attn_q_norm.weight": (_WIDTH // 4,),
        "attn_k_norm.weight": (_WIDTH // 4,),
        "post_ffw_norm.weight": (_WIDTH,),
    }
    return _finish(writer, [{**_NORM, **_ATTENTION, **more, **_FEED_FORWARD}] * 6)


WRITERS: dict[str, Callable[[Path], Path]] = {"mamba": write_mamba, "hybrid": write_hybrid, "window": write_windowed}


def _writer(path: Path, architecture: str, *, n_layers: int) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(f"tiny {architecture}")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(1024)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(n_layers)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(N_VOCAB)
    add_vocabulary(writer)
    return writer


def _add_state_sizes(writer: gguf.GGUFWriter) -> None:
    writer.add_ssm_conv_kernel(_KERNEL)
    writer.add_ssm_inner_size(_INNER)
    writer.add_ssm_state_size(_STATE)
    writer.add_ssm_time_step_rank(_RANK)


def _finish(writer: gguf.GGUFWriter, layers: list[Shapes]) -> Path:
    draw = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (N_VOCAB, _WIDTH),
        "output.weight": (N_VOCAB, _WIDTH),
        "output_norm.weight": (_WIDTH,),
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
