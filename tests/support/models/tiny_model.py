"""A GGUF that loads in milliseconds: two layers of random F32 weights over bytes. What it says is noise, but exact.

Use the fixture `tiny_model`: the path of the file, written once a session.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np

from ggufd.llama.log import LogCapture

N_EMBD, N_HEAD, N_HEAD_KV, N_LAYER, N_FF = 32, 4, 2, 2, 48
N_CTX_TRAIN = 1024

MERGED = ("th", "in", "er")
"""Tokens of two bytes, so that there is something to merge."""

SPECIALS = ("<s>", "</s>", "<eot>", "<unused>")
BOS, EOS, EOT = (256 + len(MERGED) + place for place in range(3))
N_VOCAB = 256 + len(MERGED) + len(SPECIALS)
CHAT_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


@functools.cache
def quiet_llama() -> LogCapture:
    """Keep llama.cpp's log off stderr for the rest of the session; cached, so that C's callback stays alive."""
    capture = LogCapture(lambda level, line: None)
    capture.install()
    return capture


def byte_characters() -> list[str]:
    """The printable character that GPT-2's tokenizer writes for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


class Size(NamedTuple):
    """How wide it is, how wide inside, and how many experts it has (0: it is no mixture), two of which are used."""

    width: int = N_EMBD
    n_ff: int = N_FF
    n_experts: int = 0


TINY = Size()

WIDE = Size(width=256, n_ff=512)
"""Rows that are a multiple of 256 long: true K-quants."""

EXPERTS = Size(width=256, n_ff=512, n_experts=4)


def write_tiny_model(
    path: Path,
    *,
    seed: int = 0,
    metadata: dict[str, float] | None = None,
    size: Size = TINY,
    n_used: int = 2,
    control: Sequence[str] = (),
) -> Path:
    """Write the model; `metadata` adds floats, as `general.sampling.temp`. Experts differ, and so does their router.

    `control` are more control tokens, numbered from `N_VOCAB` on.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(N_CTX_TRAIN)
    writer.add_embedding_length(size.width)
    writer.add_feed_forward_length(size.n_ff)
    writer.add_block_count(N_LAYER)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_rope_dimension_count(size.width // N_HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(N_VOCAB + len(control))
    if size.n_experts:
        writer.add_expert_count(size.n_experts)
        writer.add_expert_used_count(n_used)
    for key, value in (metadata or {}).items():
        writer.add_float32(key, value)
    add_vocabulary(writer, control=control)
    _add_weights(writer, np.random.default_rng(seed), size, N_VOCAB + len(control))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_vocabulary(writer: gguf.GGUFWriter, n_vocab: int = N_VOCAB, control: Sequence[str] = ()) -> None:
    """Bytes, a few merges, and control tokens; words that no text has, up to `n_vocab` tokens."""
    normal, special = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    specials = [*SPECIALS, *control]
    # As in a real vocabulary, many share their beginning, and many do not.
    words = [_word(i) if i % 2 else f"word{i}" for i in range(n_vocab - N_VOCAB)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*byte_characters(), *MERGED, *specials, *words])
    writer.add_token_types([normal] * (256 + len(MERGED)) + [special] * len(specials) + [normal] * len(words))
    writer.add_token_merges([" ".join(merged) for merged in MERGED])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_eot_token_id(EOT)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)


def _word(number: int) -> str:
    """Six letters, different ones for every number."""
    mixed = number * 146_410_007 % 26**6
    return "".join(chr(97 + mixed // 26**place % 26) for place in range(6))


def _add_weights(writer: gguf.GGUFWriter, draw: np.random.Generator, size: Size, n_vocab: int) -> None:
    width = size.width
    width_kv = width // N_HEAD * N_HEAD_KV
    experts = (size.n_experts,) if size.n_experts else ()
    suffix = "_exps" if experts else ""
    layer: list[tuple[str, tuple[int, ...]]] = [
        ("attn_q", (width, width)),
        ("attn_k", (width_kv, width)),
        ("attn_v", (width_kv, width)),
        ("attn_output", (width, width)),
        (f"ffn_gate{suffix}", (*experts, size.n_ff, width)),
        (f"ffn_up{suffix}", (*experts, size.n_ff, width)),
        (f"ffn_down{suffix}", (*experts, width, size.n_ff)),
    ]
    if experts:
        layer.append(("ffn_gate_inp", (size.n_experts, width)))
    shapes = [("token_embd", (n_vocab, width)), ("output", (n_vocab, width))]
    shapes += [(f"blk.{i}.{name}", shape) for i in range(N_LAYER) for name, shape in layer]
    for name, shape in shapes:
        # Logits of a standard deviation near 4: not flat, and no token that always wins.
        deviation = 0.7 if name == "output" else 0.35
        weights = draw.normal(0, deviation * (N_EMBD / width) ** 0.5, shape).astype(np.float32)
        if name == "output":
            # Bytes that begin no ASCII character are rare, so that most of what is said is text.
            weights[128:256] *= 0.3
        writer.add_tensor(f"{name}.weight", weights)
    norms = ["output_norm", *(f"blk.{i}.{name}_norm" for i in range(N_LAYER) for name in ("attn", "ffn"))]
    for name in norms:
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
