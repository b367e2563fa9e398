"""A BERT of random F32 weights that loads in milliseconds: for vectors (cls or mean), or with a head for scores (rank).

Its vocabulary is WordPiece over lower-case letters, so every text has tokens. Use the fixtures that write it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np

N_LAYER = 2


class Size(NamedTuple):
    """How wide it is, how wide inside, and how many tokens it sees at most."""

    width: int = 32
    n_head: int = 4
    n_ff: int = 48
    n_ctx: int = 128


TINY_BERT = Size()
N_EMBD, N_CTX_TRAIN = TINY_BERT.width, TINY_BERT.n_ctx
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
PAD, UNK, CLS, SEP = range(4)
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
# A word begins with the phantom space of WordPiece; "##" is what continues it in llama.cpp's files.
WORDS = (*SPECIALS, *("\u2581" + letter for letter in _LETTERS), *_LETTERS)
N_VOCAB = len(WORDS)
POOLINGS = {"mean": 1, "cls": 2, "last": 3, "rank": 4}


def write_tiny_bert(path: Path, pooling: str = "mean", *, seed: int = 0, size: Size = TINY_BERT) -> Path:
    """Write the model; `pooling` is what its file says, "rank" adds a head of one score."""
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name(f"tiny bert {pooling}")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(size.n_ctx)
    writer.add_embedding_length(size.width)
    writer.add_feed_forward_length(size.n_ff)
    writer.add_block_count(N_LAYER)
    writer.add_head_count(size.n_head)
    writer.add_layer_norm_eps(1e-5)
    writer.add_causal_attention(False)
    writer.add_uint32("bert.pooling_type", POOLINGS[pooling])
    _add_vocabulary(writer)
    _add_weights(writer, np.random.default_rng(seed), size, has_head=pooling == "rank")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_tokenizer_model("bert")
    writer.add_token_list(list(WORDS))
    writer.add_token_types([control] * len(SPECIALS) + [normal] * (N_VOCAB - len(SPECIALS)))
    writer.add_token_type_count(1)
    writer.add_pad_token_id(PAD)
    writer.add_unk_token_id(UNK)
    writer.add_sep_token_id(SEP)
    writer.add_bos_token_id(CLS)
    writer.add_eos_token_id(SEP)
    # [CLS] a text [SEP] another [SEP]
    writer.add_add_eos_token(True)
    writer.add_add_sep_token(False)


def _add_weights(writer: gguf.GGUFWriter, draw: np.random.Generator, size: Size, *, has_head: bool) -> None:
    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, draw.normal(0, 0.35, shape).astype(np.float32))

    def add_norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(size.width, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(size.width, np.float32))

    add("token_embd.weight", N_VOCAB, size.width)
    add("token_types.weight", 1, size.width)
    add("position_embd.weight", size.n_ctx, size.width)
    add_norm("token_embd_norm")
    for i in range(N_LAYER):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{name}.weight", size.width, size.width)
            add(f"blk.{i}.{name}.bias", size.width)
        add(f"blk.{i}.ffn_up.weight", size.n_ff, size.width)
        add(f"blk.{i}.ffn_down.weight", size.width, size.n_ff)
        add_norm(f"blk.{i}.attn_output_norm")
        add_norm(f"blk.{i}.layer_output_norm")
    if has_head:
        add("cls.weight", size.width, size.width)
        add("cls.output.weight", 1, size.width)
